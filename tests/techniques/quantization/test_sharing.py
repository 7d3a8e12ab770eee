from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest
from shared_models import SHARED

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.techniques.quantization.layers import Layers


def layers(name: str, kept: str = "") -> Layers:
    return Layers(View(load(SHARED[name]().proto)), lambda node: key_of(node) != kept)


def node(found: Layers, key: str) -> gs.Node:
    return next(each for each in found.view.nodes if key_of(each) == key)


@pytest.mark.parametrize(
    ("name", "key", "count", "alone"),
    [
        ("recurrent", "a0", 6, True),
        ("branches", "ta", 2, True),
        ("embedding", "y", 1, False),
        ("both ways", "a", 1, False),
    ],
)
def test_a_shared_weight_knows_the_layers_that_multiply_by_it(name: str, key: str, count: int, alone: bool) -> None:
    found = layers(name)
    tied = found.sharing.layer(node(found, key))

    assert tied is not None
    assert (len(tied.layers), tied.alone, tied.held) == (count, alone, "")


def test_a_weight_of_one_layer_is_not_shared() -> None:
    found = layers("embedding")

    assert found.sharing.layer(node(found, "a")) is None


@pytest.mark.parametrize(("kept", "key"), [("e", "y"), ("a3", "a0")])
def test_a_weight_stays_in_float_with_the_one_reader_that_is_excluded(kept: str, key: str) -> None:
    name = "embedding" if kept == "e" else "recurrent"
    found = layers(name, kept)
    tied = found.sharing.layer(node(found, key))

    assert tied is not None and tied.held == kept
    assert key not in {key_of(each) for each in (*found.static, *found.dynamic)}


def test_the_reason_names_the_reader_that_keeps_a_weight_in_float() -> None:
    result = squeeze(SHARED["recurrent"]().proto, "int8{exclude=a3}")
    reasons = {skip.key: skip.reason for skip in result.report.steps[-1].skipped}

    assert reasons["a0"] == "its weight is shared with 'a3', which keeps it in float"
