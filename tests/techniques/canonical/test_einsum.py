"""Einsum with a weight is a MatMul for every pass, at the same answers."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from small_models import feeds, parse

from onnxsqueeze import squeeze


def spelled(equation: str, x: str, w: str, y: str, swapped: bool = False):  # type: ignore[no-untyped-def]
    order = "w, x" if swapped else "x, w"
    return parse(
        f'g (float[{x}] x) => (float[{y}] y) <float[{w}] w> {{ y = Einsum<equation = "{equation}">({order}) }}'
    )


def agree(model, result) -> bool:  # type: ignore[no-untyped-def]
    feed = feeds(model)[0]
    one, other = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for m in (model, result.model)
    )
    return one.shape == other.shape and bool(np.allclose(one, other, atol=1e-5))


@pytest.mark.parametrize(
    ("equation", "x", "w", "y", "swapped"),
    [
        ("bsk,kn->bsn", "n, s, 32", "32, 48", "n, s, 48", False),
        ("bsk,nk->bsn", "n, s, 32", "48, 32", "n, s, 48", False),
        ("nk,bk->bn", "n, 32", "48, 32", "n, 48", True),
        ("bshd,hdo->bso", "n, s, 4, 8", "4, 8, 48", "n, s, 48", False),
        ("bsd,dhk->bshk", "n, s, 32", "32, 6, 8", "n, s, 6, 8", False),
        ("bshd,ohdk->bsko", "n, s, 4, 8", "6, 4, 8, 5", "n, s, 5, 6", False),
        ("...k,kn->...n", "n, s, 32", "32, 48", "n, s, 48", False),
        ("k,kn->n", "32", "32, 48", "48", False),
    ],
)
def test_a_product_with_a_weight_is_a_matmul(equation: str, x: str, w: str, y: str, swapped: bool) -> None:
    model = spelled(equation, x, w, y, swapped)

    result = squeeze(model, "canonical", feeds(model))

    ops = [node.op_type for node in result.model.graph.node]
    assert "MatMul" in ops
    assert "Einsum" not in ops
    assert agree(model, result)


@pytest.mark.parametrize(
    ("equation", "x", "w", "y"),
    [
        ("bsk,bkn->bsn", "3, 5, 32", "3, 32, 48", "3, 5, 48"),  # a weight for each sample
        ("bks,kn->bsn", "2, 32, 5", "32, 48", "2, 5, 48"),  # not over the last axis
        ("bsk,kn->bns", "2, 5, 32", "32, 48", "2, 48, 5"),  # turned around
        ("bsk,kn->bn", "2, 5, 32", "32, 48", "2, 48"),  # summed besides
        ("...hk,hkn->...n", "2, 4, 8", "4, 8, 48", "2, 48"),  # axes that are not counted
        ("bk,n->bkn", "2, 4", "48", "2, 4, 48"),
    ],
)
def test_what_is_no_plain_product_stays(equation: str, x: str, w: str, y: str) -> None:
    model = spelled(equation, x, w, y)

    assert squeeze(model, "canonical", feeds(model)).model == model
