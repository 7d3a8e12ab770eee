from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear_models import Array, conv_model
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.linear.chains import rewrite
from onnxsqueeze.linear.fitting import Fitting, relative_error
from onnxsqueeze.linear.layers import Linear, describe, matrix
from onnxsqueeze.statistics.needs import Gram
from onnxsqueeze.techniques.lowrank import forms, separable
from onnxsqueeze.techniques.lowrank.forms import Candidate


def fitting(outputs: int, channels: int, kernel: tuple[int, ...], rows: int = 0, seed: int = 0) -> Fitting:
    rng = np.random.default_rng(seed)
    ones, dims = (1,) * len(kernel), len(kernel)
    layer = Linear("y", "Conv", Gram("x"), outputs, channels, kernel, ones, ones, (0,) * 2 * dims)
    k = layer.columns
    x = (
        rng.normal(size=(rows or 4 * k, k // 2)) @ rng.normal(size=(k // 2, k))
        + 0.2 * rng.normal(size=(rows or 4 * k, k))
        + 1
    )
    return Fitting(layer, rng.normal(size=(outputs, k)), np.cov(x.T) + 1e-4 * np.eye(k), x.mean(0))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, object]:
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axis = st.integers(1, 3)
    return {
        "kernel": tuple(draw(axis) for _ in range(dims)),
        "strides": [draw(st.integers(1, 2)) for _ in range(dims)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(dims)],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * dims)],
        "auto_pad": draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
        "bias": draw(st.booleans()),
    }


@given(convolutions(), st.integers(0, 100))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_form_at_full_rank_answers_as_the_convolution_does(conv: dict[str, object], seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel: tuple[int, ...] = conv["kernel"]  # type: ignore[assignment]
    attrs = {key: conv[key] for key in ("strides", "dilations")}
    attrs |= {"pads": conv["pads"]} if conv["auto_pad"] == "NOTSET" else {"auto_pad": conv["auto_pad"]}
    if str(conv["auto_pad"]).startswith("SAME"):  # ONNX Runtime does not run these together
        attrs["dilations"] = [1] * len(kernel)
    bias = rng.normal(size=5) if conv["bias"] else None
    proto = conv_model(rng.normal(size=(5, 4, *kernel)), [9] * len(kernel), bias, **attrs)
    feed = {"x": rng.normal(size=(1, 4, *[9] * len(kernel))).astype(np.float32)}
    graph = decode(proto)
    expected = run(encode(graph), feed)
    layer = describe(View(graph), graph.nodes[0])
    assert isinstance(layer, Linear)
    whole = Fitting(layer, matrix(View(graph), graph.nodes[0]))
    full = max(prod(kernel), 5, layer.columns)
    found = [*forms.candidates(whole, rank=full), *separable.candidates(whole, rank=full)]
    for candidate in found:
        made = decode(proto)
        compose = separable.branches if candidate.form in separable.FORMS else forms.compose
        branches, weight = compose(whole, candidate)
        rewrite(made, ["y"], (), [branches], [np.zeros(5)], "test")

        np.testing.assert_allclose(weight, whole.weight, atol=1e-6)
        answer = run(encode(made), feed)
        assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max(), candidate


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> NDArray[np.float64]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feed))[0], np.float64)


@pytest.mark.parametrize("kernel", [(), (1, 1), (3,), (3, 3), (2, 3), (1, 3), (2, 2, 2)])
def test_the_predicted_error_is_that_of_the_factors(kernel: tuple[int, ...]) -> None:
    whole = fitting(20, 18, kernel)
    if not kernel:
        whole.layer = Linear("y", "MatMul", Gram("x"), 20, 18)
    for candidate in list(forms.candidates(whole))[::5]:
        made = forms.effective(whole.layer, forms.chain(whole, candidate))

        assert candidate.error == pytest.approx(relative_error(whole, made), rel=1e-3, abs=1e-6), candidate


def test_the_error_falls_with_the_rank_in_every_form() -> None:
    whole = fitting(36, 40, (3, 3))
    for form in forms.forms(whole.layer):
        found = [c for c in forms.candidates(whole, [form]) if len(c.ranks) == 1 or c.ranks[0] == 16]
        errors = [c.error for c in found]

        assert len(errors) > 1, form
        assert all(two <= one + 1e-12 for one, two in pairwise(errors)), form


def test_no_rank_r_weight_is_closer_on_the_inputs_than_the_principal_components_of_the_output() -> None:
    whole = fitting(20, 30, ())
    whole.layer = Linear("y", "MatMul", Gram("x"), 20, 30)
    u, s, v = np.linalg.svd(whole.weight, full_matrices=False)
    for rank in (2, 5, 10):
        best = forms.effective(whole.layer, forms.chain(whole, Candidate("channel", (rank,), 0.0)))
        plain = (u[:, :rank] * s[:rank]) @ v[:rank]

        assert relative_error(whole, best) < relative_error(whole, plain)
        values = forms.channel(whole)[1]
        assert relative_error(whole, best) == pytest.approx(values[rank:].sum() / values.sum(), rel=1e-6)


def test_the_factors_of_a_wide_layer_are_those_of_its_covariance_too() -> None:
    whole = fitting(60, 20, ())
    whole.layer = Linear("y", "MatMul", Gram("x"), 60, 20)
    values = forms.channel(whole)[1]
    direct = np.sort(np.linalg.eigvalsh(whole.output_covariance()))[::-1][:20]

    np.testing.assert_allclose(values, direct, rtol=1e-6, atol=1e-9 * direct[0])


def test_intermediate_channels_have_unit_variance() -> None:
    whole = fitting(24, 24, (3, 3))
    assert whole.covariance is not None
    for form in ("channel", "vertical", "input"):
        stages = forms.chain(whole, Candidate(form, (8,), 0.0))
        first = stages[0].weight.reshape(8, 24, -1)
        cubes = whole.covariance.reshape(24, 3, 3, 24, 3, 3)
        if form == "channel":
            flat = first.reshape(8, -1)
            spread = np.diag(flat @ whole.covariance @ flat.T)
        elif form == "vertical":
            mean = np.einsum("aijbkj->aibk", cubes).reshape(72, 72) / 3
            flat = first.reshape(8, -1)
            spread = np.diag(flat @ mean @ flat.T)
        else:
            mean = np.einsum("aijbij->ab", cubes) / 9
            spread = np.diag(first[:, :, 0] @ mean @ first[:, :, 0].T)

        np.testing.assert_allclose(spread, 1.0, rtol=1e-6)


def test_alternating_least_squares_never_loses_against_one_fit_and_that_not_against_plain_decoupling() -> None:
    whole = fitting(16, 12, (3, 3))
    blind = Fitting(whole.layer, whole.weight)
    for rank in (1, 2, 4):
        plain = separable.recomposed(whole.layer, "depthwise", *separable.depthwise(blind, rank))
        once = separable.recomposed(whole.layer, "depthwise", *separable.depthwise(whole, rank, sweeps=0))
        often = separable.recomposed(whole.layer, "depthwise", *separable.depthwise(whole, rank))
        errors = [relative_error(whole, w) for w in (plain, once, often)]

        assert errors[2] < errors[1] < errors[0]
