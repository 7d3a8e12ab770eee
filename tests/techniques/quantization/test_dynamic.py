from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_models import Array, constant, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.targets.profiles import default
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.dynamic import ROWS, Dynamic, DynamicLayer, run_time_times
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.layers import Layers
from onnxsqueeze.techniques.quantization.outliers import Smoothing

TIMES = default().times


def tokens(rows: Any, inputs: int, outputs: int, layers: int = 1) -> onnx.ModelProto:
    """Return MatMuls ``x`` → ``y0``, ``y1`` … that all read the same tokens."""
    rng = np.random.default_rng(0)
    constants = [constant(f"w{i}", rng.normal(size=(inputs, outputs))) for i in range(layers)]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(layers)]
    return model(nodes, constants, {"x": [1, rows, inputs]}, {f"y{i}": [1, rows, outputs] for i in range(layers)})


def feeds(rows: int, inputs: int, outliers: float = 1.0, count: int = 3) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    gain = np.ones(inputs)
    gain[:3] = outliers
    return [{"x": (rng.normal(size=(1, rows, inputs)) * gain).astype(np.float32)} for _ in range(count)]


def found(
    proto: onnx.ModelProto, data: list[dict[str, Array]] | None = None, known: dict[str, Smoothing | None] | None = None
) -> dict[str, DynamicLayer]:
    graph = load(proto)
    stats = collect(graph, Int8().needs(View(graph)), data) if data else Statistics()
    layers = Dynamic(Layers(View(graph)), stats, Kept(), known).found
    return {key_of(each.node): each for each in layers}


def smoothing_of(layer: DynamicLayer) -> Smoothing:
    assert isinstance(layer.work, Quantized)
    assert layer.work.smoothing is not None
    return layer.work.smoothing


# ------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "pays"), [(1, 48, 48, False), (2, 64, 64, False), (64, 256, 256, True)]
)
def test_a_small_product_does_not_pay(rows: int, inputs: int, outputs: int, pays: bool) -> None:
    proto = tokens(rows, inputs, outputs)
    layer = found(proto, feeds(rows, inputs))["y0"]
    done = squeeze(proto, "int8", feeds(rows, inputs), validate="none").report.steps[-1].done

    assert (layer.int8_time < layer.float_time) == pays
    assert [site.action for site in done] == ["dynamic" if pays else "stored"]


@pytest.mark.parametrize("outliers", [1.0, 60.0])
def test_layers_that_share_an_input_share_the_form_and_its_cost(outliers: float) -> None:
    data = feeds(16, 128, outliers)
    one, three = found(tokens(16, 128, 64), data), found(tokens(16, 128, 64, 3), data)
    forms = [smoothing_of(layer) for layer in three.values()]

    assert list(three) == ["y0", "y1", "y2"]
    assert all(form is forms[0] for form in forms)
    assert forms[0].error < 1e-3
    assert len(forms[0].outliers) > 0 or forms[0].scale is not None
    assert {layer.work.source for layer in three.values()} == {"x"}
    assert three["y0"].float_time == one["y0"].float_time
    assert three["y0"].int8_time < one["y0"].int8_time


def test_a_known_form_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data, form = feeds(16, 128), Smoothing(rows=True, error=0.25)

    def refuse(*args: object) -> Smoothing:
        raise AssertionError

    monkeypatch.setattr("onnxsqueeze.techniques.quantization.dynamic.smoothing", refuse)
    layers = found(tokens(16, 128, 64, 2), data, {"x": form})

    assert all(smoothing_of(layer) is form for layer in layers.values())
    assert layers["y0"].error == 0.25


@pytest.mark.parametrize(("declared", "fed"), [(40, 40), ("t", 24)])
def test_rows_are_those_of_calibration(declared: Any, fed: int) -> None:
    layer = found(tokens(declared, 64, 64), feeds(fed, 64, count=5))["y0"]
    times = run_time_times((64, 64), float(fed), smoothing_of(layer), 1, TIMES)

    assert (layer.float_time, layer.int8_time) == times


@pytest.mark.parametrize(("declared", "rows"), [(40, 40), ("t", ROWS)])
def test_without_calibration_rows_are_those_of_the_shape_if_it_is_known(declared: Any, rows: int) -> None:
    layer = found(tokens(declared, 64, 64))["y0"]

    assert (layer.float_time, layer.int8_time) == run_time_times((64, 64), float(rows), Smoothing(), 1, TIMES)
    assert layer.error == inf


def test_a_gemm_is_a_run_time_layer_only_as_long_as_its_range_is_not_measured() -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    proto = model([node], [constant("w", rng.normal(size=(32, 64)))], {"x": [128, 64]}, {"y": [128, 32]})
    data: list[dict[str, Array]] = [{"x": rng.normal(size=(128, 64)).astype(np.float32)}]
    without = found(proto)["y"]

    assert (without.float_time, without.int8_time) == run_time_times((64, 32), 128.0, Smoothing(), 1, TIMES)
    assert found(proto, data) == {}


def test_a_layer_in_a_body_goes_by_its_shape_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    out = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 20, 64]) for n in ("t", "e")]
    bodies = [
        helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], out[:1]),
        helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], out[1:]),
    ]
    nodes = [
        helper.make_node("If", ["yes"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    proto = model(
        nodes,
        [constant("w", rng.normal(size=(64, 64))), yes],
        {"x": [1, 20, 64]},
        {"y": [1, 20, 64], "z": [1, 20, 64]},
    )
    layers = found(proto, feeds(20, 64))

    assert set(layers) == {"t", "z"}
    assert all(
        layer.float_time == run_time_times((64, 64), 20.0, Smoothing(), 1, TIMES)[0] for layer in layers.values()
    )


# ------------------------------------------------------------------------------------------------ times

forms = st.builds(
    Smoothing,
    scale=st.sampled_from([None, np.ones(4, np.float32)]),
    outliers=st.sampled_from([(), (1, 2), tuple(range(32))]),
    rows=st.booleans(),
)
sizes = st.tuples(st.integers(16, 4096), st.integers(16, 4096))


@given(sizes, st.integers(1, 2048), forms, st.integers(1, 8))
def test_more_readers_of_an_input_make_each_cheaper(
    size: tuple[int, int], rows: int, form: Smoothing, readers: int
) -> None:
    one, more = (run_time_times(size, float(rows), form, count, TIMES) for count in (readers, readers + 1))

    assert more[0] == one[0]
    assert more[1] < one[1]


@given(sizes, st.integers(1, 2048), forms, st.integers(1, 8))
def test_more_rows_take_longer_and_favour_integers(
    size: tuple[int, int], rows: int, form: Smoothing, readers: int
) -> None:
    one, more = (run_time_times(size, float(count), form, readers, TIMES) for count in (rows, 2 * rows))

    assert more[0] > one[0]
    assert more[1] > one[1]
    assert more[1] < 2 * one[1]


@given(sizes, st.integers(1, 2048), st.integers(1, 8))
def test_whatever_is_done_about_outliers_takes_time(size: tuple[int, int], rows: int, readers: int) -> None:
    scale: NDArray[np.float32] = np.ones(4, np.float32)
    steps = [Smoothing(), Smoothing(scale), Smoothing(scale, (1, 2)), Smoothing(scale, (1, 2), True)]
    times = [run_time_times(size, float(rows), form, readers, TIMES) for form in steps]

    assert len({one for one, _ in times}) == 1
    assert [two for _, two in times] == sorted({two for _, two in times})


def test_a_large_product_takes_about_a_quarter_of_its_time_in_float() -> None:
    one, other = run_time_times((2048, 2048), 512.0, Smoothing(), 1, TIMES)

    assert 0.25 < other / one < 0.35


def test_a_single_row_of_a_small_matrix_takes_longer() -> None:
    one, other = run_time_times((64, 64), 1.0, Smoothing(), 1, TIMES)

    assert other > 1.5 * one
