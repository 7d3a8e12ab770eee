from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import constant, model
from numpy.typing import NDArray
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.needs import Channels
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic as quantize_input
from onnxsqueeze.techniques.quantization.outliers import ALPHAS, Smoothing, smoothing

Floats = NDArray[np.floating]


def channel_moments(x: Floats) -> Moments:
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [], {"x": list(x.shape)}, {"y": list(x.shape)})
    needs = [Channels("x", -1)]
    graph = load(proto)
    found = collect(graph, needs, [{"x": x.astype(np.float32)}], seed=0, progress=lambda *_: None).of(needs[0])
    assert found is not None
    return found


def quantized_error(x: Floats, w: Floats, scale: Floats | None, top: int = 127) -> float:
    """The mean relative squared error per row of x·W with 8-bit x (per tensor) and W up to ``top`` (per column)."""
    s = np.ones(x.shape[1]) if scale is None else scale.astype(np.float64)
    xs, ws = x / s, w * s[:, None]
    step = (max(xs.max(), 0) - min(xs.min(), 0)) / 255
    columns = np.abs(ws).max(0) / top
    y = (np.rint(xs / step) * step) @ (np.rint(ws / columns) * columns)
    return float(np.mean(((y - x @ w) ** 2).sum(1) / (x**2).sum(1)) / np.mean(((x @ w) ** 2).sum(1) / (x**2).sum(1)))


def outliers(seed: int = 0, factor: float = 60) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(200, 64)), rng.normal(size=(64, 96)).astype(np.float32) / 8
    x[:, :3] *= factor
    return x, w


@pytest.fixture
def scales_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.techniques.quantization.outliers.OUTLIERS", (0,))
    monkeypatch.setattr("onnxsqueeze.techniques.quantization.outliers.ROUNDED", 1.0)


@pytest.mark.usefixtures("scales_only")
def test_outliers_move_into_the_weight_and_the_true_error_falls_as_predicted() -> None:
    x, w = outliers()
    found = smoothing(channel_moments(x), [w])

    assert found.scale is not None
    assert quantized_error(x, w, found.scale) < 0.5 * quantized_error(x, w, None)
    assert quantized_error(x, w, found.scale) == pytest.approx(found.error, rel=0.5)


@pytest.mark.usefixtures("scales_only")
def test_a_channel_that_stood_still_may_move_on_another_feed() -> None:
    x, w = outliers()
    x[:, 40:52] = 0  # as behind a Relu that never let them through
    found = smoothing(channel_moments(x), [w])
    moving = outliers(1)[0]

    assert found.scale is not None
    assert quantized_error(moving, w, found.scale) < quantized_error(moving, w, None)


@pytest.mark.parametrize("seed", range(5))
def test_smoothing_never_predicts_more_error_than_none(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = outliers(seed, factor=[1, 2, 5, 20, 200][seed])
    moments = channel_moments(x)
    best = smoothing(moments, [w]).error
    monkeypatch.setattr("onnxsqueeze.techniques.quantization.outliers.ALPHAS", ALPHAS[:1])
    monkeypatch.setattr("onnxsqueeze.techniques.quantization.outliers.OUTLIERS", (0,))
    none = smoothing(moments, [w])

    assert none.scale is None
    assert best <= none.error


@pytest.mark.usefixtures("scales_only")
@pytest.mark.parametrize("factor", [20, 60])
def test_weights_of_few_bits_take_over_less_of_the_outliers(factor: float) -> None:
    x, w = outliers(factor=factor)
    moments = channel_moments(x)
    whole, few = smoothing(moments, [w]).scale, smoothing(moments, [w], bits=4).scale

    assert quantized_error(x, w, few, 7) < quantized_error(x, w, whole, 7)


def test_even_channels_are_left_alone_since_a_further_node_would_not_pay() -> None:
    rng = np.random.default_rng(0)

    x, w = rng.uniform(-1, 1, size=(200, 64)), rng.uniform(-1, 1, size=(64, 96)).astype(np.float32)

    assert smoothing(channel_moments(x), [w]).scale is None


def test_channels_that_outweigh_all_others_stay_in_float() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 128)), rng.normal(size=(128, 96)).astype(np.float32)
    x[:, [5, 40, 77]] *= 300
    found = smoothing(channel_moments(x), [w])

    assert {5, 40, 77} <= set(found.outliers)


def test_rows_of_unlike_size_are_divided_by_their_peaks_and_other_rows_are_not() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.uniform(-1, 1, size=(200, 64)), rng.normal(size=(64, 96)).astype(np.float32)
    even, uneven = (smoothing(channel_moments(rows), [w]) for rows in (x, x * 2.0 ** np.arange(200)[:, None] ** 0.4))

    assert not even.rows
    assert uneven.rows
    assert uneven.low == 0


def test_a_channel_that_is_always_zero_gets_a_finite_scale() -> None:
    x, w = outliers()
    x[:, 10] = 0
    w[11] = 0
    found = smoothing(channel_moments(x), [w])

    assert found.scale is not None
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()


@pytest.mark.usefixtures("scales_only")
def test_the_scales_cancel_out_in_the_rewritten_layer() -> None:
    x, w = outliers()
    scale = smoothing(channel_moments(x), [w]).scale
    assert scale is not None
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = load(model(nodes, [constant("w", w)], {"x": [200, 64]}, {"y": [200, 96]}))
    quantize_input(graph, graph, graph.nodes[0], Smoothing(scale))
    edit.tidy(graph)
    constants = {t.name: np.asarray(t.values) for n in graph.nodes for t in n.inputs if hasattr(t, "values")}
    divided = constants["x_smoothing"]
    restored = constants["w_int8"].astype(np.float64) * constants["w_scale"]

    np.testing.assert_allclose(divided * scale, 1, rtol=1e-6)
    assert np.abs(restored * divided[:, None] - w).max() <= 0.5001 * (constants["w_scale"] * divided[:, None]).max()
    y = np.asarray(Session(graph).run({"x": x.astype(np.float32)})["y"])
    assert 10 * np.log10(((x @ w) ** 2).sum() / ((y - x @ w) ** 2).sum()) > 35


def test_many_rows_of_channels_in_float_are_float16_in_the_file_and_fold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(64, 32)).astype(np.float32), rng.normal(size=(2, 50, 64)).astype(np.float32)
    x[..., :16] *= 50
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", weight)], {"x": [2, 50, 64]}, {"y": [2, 50, 32]}
    )
    graph = load(proto)
    quantize_input(graph, graph, graph.nodes[0], Smoothing(outliers=tuple(range(16))))
    edit.tidy(graph)
    y = np.asarray(Session(graph, optimized=tmp_path / "optimized.onnx").run({"x": x})["y"])
    left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    held = {t.name: t.data_type for t in encode(graph).graph.initializer}

    assert [kind for name, kind in held.items() if "outliers_float16" in name] == [onnx.TensorProto.FLOAT16]
    assert "Cast" not in left
    assert "MatMul" in left
    assert ((y - x @ weight) ** 2).sum() < 10**-4.5 * ((x @ weight) ** 2).sum()
