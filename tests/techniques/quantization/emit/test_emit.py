from __future__ import annotations

import zlib
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from linear_models import constant, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.emit import stored
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic as quantize_input
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.grids import Affine
from onnxsqueeze.techniques.quantization.outliers import Smoothing

Floats = NDArray[np.floating]


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def one(op: str, weight: Floats, shape: list[int], **attrs: object) -> Graph:
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)  # type: ignore[arg-type]
    proto = model([node], [constant("w", weight)], {"x": shape}, {"y": ["a"]})
    rank = max(len(shape), 2) if op != "MatMul" else len(shape)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    for i in range(rank if op != "Add" else len(weight.shape)):
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"d{i}"
    return load(proto)


def gather(table: Floats, readers: int = 1) -> Graph:
    nodes = [helper.make_node("Gather", ["w", "x"], [f"y{i}"]) for i in range(readers)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [3])]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(readers)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [constant("w", table)])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def store(graph: Graph, slot: int) -> Graph:
    stored.stored(graph, graph, graph.nodes[0], slot)
    edit.tidy(graph)
    return graph


def size(graph: Graph) -> int:
    return len(encode(graph).SerializeToString())


@pytest.mark.parametrize(
    "shape", [(2048, 1), (1024, 2), (512, 9), (64, 64), (10, 1000), (1, 2053), (3000,), (7, 11, 13)]
)
def test_a_stored_weight_takes_at_most_half_and_keeps_its_shape_and_40_db(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph = one("Add", weight, list(shape))
    before = size(graph)
    after = size(store(graph, 1))
    found = np.asarray(Session(graph).run({"x": np.zeros(shape, np.float32)})["y"])

    assert after < before / 2 + 600
    assert found.shape == shape
    assert np.sum((found - weight) ** 2) < 1e-4 * np.sum(weight**2)


@pytest.mark.parametrize(("shape", "form"), [((100, 64), "rows"), ((5000,), "blocks"), ((2000, 4), "blocks")])
def test_a_table_is_gathered_by_rows_unless_they_are_too_narrow(shape: tuple[int, ...], form: str) -> None:
    table = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph = gather(table)
    before = size(graph)
    after = size(store(graph, 0))
    index = np.array([3, 0, 99], np.int64)
    found = np.asarray(Session(graph).run({"x": index})["y0"])

    assert ops(graph).count("Gather") == (2 if form == "rows" else 1)
    assert after < before / 2 + 600
    assert np.abs(found - table[index]).max() < np.abs(table).max() / 200


def test_readers_of_one_weight_share_what_is_stored() -> None:
    graph = gather(np.random.default_rng(0).normal(size=(100, 64)), readers=2)
    for node in list(graph.nodes):
        stored.stored(graph, graph, node, 0)
    edit.tidy(graph)

    tables = {
        id(t): t for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant) and t.dtype == np.int8
    }
    assert len(tables) == 1
    assert ops(graph).count("Gather") == 4  # rows and scales of each


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_weight_that_is_not_finite_stays(value: float) -> None:
    weight = np.ones((40, 40), np.float32)
    weight[3, 3] = value

    assert ops(store(one("MatMul", weight, [2, 40]), 1)) == ["MatMul"]


@pytest.mark.parametrize("shape", [[64], [5, 64], [2, 3, 64], [2, 2, 3, 64]])
def test_run_time_quantization_serves_inputs_of_any_rank(shape: list[int]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    graph = one("MatMul", weight, shape)
    quantize_input(graph, graph, graph.nodes[0], None)
    edit.tidy(graph)
    x = rng.normal(size=shape).astype(np.float32)
    found = np.asarray(Session(graph).run({"x": x})["y"])

    assert found.shape == (x @ weight).shape
    assert np.sum((found - x @ weight) ** 2) < 10**-3.5 * np.sum((x @ weight) ** 2)


@pytest.mark.parametrize("bias", [(32,), (1, 32), (5, 1), (5, 32), (1,)])
def test_a_gemm_that_quantizes_at_run_time_keeps_a_bias_of_any_shape(bias: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight, c = rng.normal(size=(32, 64)), rng.normal(size=bias)
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=1)
    graph = load(model([node], [constant("w", weight), constant("c", c)], {"x": [5, 64]}, {"y": [5, 32]}))
    quantize_input(graph, graph, graph.nodes[0], None)
    edit.tidy(graph)
    x = rng.normal(size=(5, 64)).astype(np.float32)
    expected = x @ weight.T + c
    found = np.asarray(Session(graph).run({"x": x})["y"])

    assert np.sum((found - expected) ** 2) < 10**-3.5 * np.sum(expected**2)


def test_layers_on_one_input_share_its_quantization_at_run_time() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)]
    proto = model(
        nodes, [constant(f"w{i}", rng.normal(size=(64, 32))) for i in range(3)],
        {"x": [5, 64]}, {f"y{i}": [5, 32] for i in range(3)},
    )  # fmt: skip
    graph = load(proto)
    scale = np.linspace(0.5, 2, 64).astype(np.float32)
    for node in list(graph.nodes):
        quantize_input(graph, graph, node, Smoothing(scale))
    edit.tidy(graph)

    assert ops(graph).count("DynamicQuantizeLinear") == 1
    assert sum(n.op == "Mul" and n.outputs[0].name.startswith("x_smoothed") for n in graph.nodes) == 1
    Session(graph)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("low", [0.0, -0.2])
@pytest.mark.parametrize("channels", [(), (3, 17)])
def test_rows_over_their_peaks_and_channels_in_float_save_inputs_of_unlike_size(
    opset: int, low: float, channels: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(64, 32)).astype(np.float32) for _ in range(2)]
    x = (rng.uniform(low or -1, 1, size=(2, 50, 64)) * 10 ** rng.uniform(0, 3, size=(2, 50, 1))).astype(np.float32)
    x = np.maximum(x, low or -np.inf)
    x[..., [3, 17]] *= 50 if channels else 1
    x[0, :3] = 0
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(2)]
    inits = [constant(f"w{i}", w) for i, w in enumerate(weights)]
    proto = model(nodes, inits, {"x": [2, 50, 64]}, {f"y{i}": [2, 50, 32] for i in range(2)})
    proto.opset_import[0].version = opset
    graph = load(proto)
    for node in list(graph.nodes):
        quantize_input(graph, graph, node, Smoothing(outliers=channels, rows=True, low=low))
    edit.tidy(graph)
    found = Session(graph).run({"x": x})

    assert ops(graph).count("ReduceMax") == ops(graph).count("DynamicQuantizeLinear") == 1
    assert ops(graph).count("ReduceMin") == (low == 0)
    assert ops(graph).count("Gather") == bool(channels)
    for i, w in enumerate(weights):
        y = np.asarray(found[f"y{i}"])
        assert not y[0, :3].any()
        error, signal = ((y - x @ w) ** 2).sum(-1), ((x @ w) ** 2).sum(-1)
        assert (error[signal > 0] < 10**-2.8 * signal[signal > 0]).all()


def test_a_pair_that_is_there_is_shared_and_a_model_output_keeps_its_name() -> None:
    graph = load(model([helper.make_node("Relu", ["x"], ["y"])], [], {"x": [4, 4]}, {"y": [4, 4]}))
    node = graph.nodes[0]
    affine = Affine(0.05, 100)
    first = qdq.dequantized(graph, node.inputs[0], affine)
    again = qdq.dequantized(graph, node.inputs[0], affine)
    node.inputs[0] = first
    third = qdq.dequantized(graph, node.inputs[0], affine)
    qdq.requantize(graph, node.outputs[0], affine)
    edit.tidy(graph)

    assert first is again is third
    assert ops(graph) == ["QuantizeLinear", "DequantizeLinear", "Relu", "QuantizeLinear", "DequantizeLinear"]
    assert [t.name for t in graph.outputs] == ["y"]
    assert all(n.inputs[1].shape == () or list(n.inputs[1].shape) == [] for n in graph.nodes if n.op != "Relu")


def test_a_big_weight_is_quantized_when_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    written = []
    for held in (1 << 23, 100):
        monkeypatch.setattr("onnxsqueeze.techniques.quantization.emit.weights.HELD", held)
        written.append(encode(store(one("MatMul", weight, [2, 64]), 1)).SerializeToString())

    assert written[0] == written[1]


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.9, 0.1)])
def test_a_gate_is_a_hardsigmoid_to_half_a_step(alpha: float, beta: float) -> None:
    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=alpha, beta=beta)
    graph = load(model([node], [], {"x": [4001]}, {"y": [4001]}))
    qdq.gate(graph, graph.nodes[0], None)
    edit.tidy(graph)
    found = np.asarray(Session(graph, optimize="none").run({"x": x})["y"])

    assert np.abs(found - np.clip(alpha * x + beta, 0, 1)).max() < 1.01 / 255
    assert found[0] == 0
    assert found[-1] == 1


def test_the_int32_bias_is_in_the_scale_of_the_product() -> None:
    graph = one("Conv", np.ones((4, 3, 1, 1)), [1, 3, 5, 5])
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    qdq.bias(graph, graph.nodes[0], 2, np.array([1.0, 2.0, -3.0, 1e30]), scale, "b")
    dequantize = next(n for n in graph.nodes if n.op == "DequantizeLinear")
    q, s = (np.asarray(t.values) for t in dequantize.inputs if isinstance(t, gs.Constant))

    assert q.dtype == np.int32
    assert len(dequantize.inputs) == 2, "a zero point of zeros would take as many bytes as the bias"
    assert q.tolist() == [10, 10, -10, 2**31 - 1]
    assert s.tolist() == scale.tolist()


def test_the_checker_accepts_a_stored_weight() -> None:
    graph = store(one("MatMul", np.random.default_rng(0).normal(size=(64, 64)), [2, 64]), 1)

    onnx.checker.check_model(encode(graph), full_check=True)


def test_a_weight_in_16_bits_is_restored_all_but_exactly() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 100)).astype(np.float32)
    graph = one("MatMul", weight, [2, 40])
    stored.stored(graph, graph, graph.nodes[0], 1, wide=True)
    edit.tidy(graph)
    x = np.eye(2, 40, dtype=np.float32)
    found = np.asarray(Session(graph).run({"x": x})["y"])

    assert "Cast" in ops(graph)
    np.testing.assert_allclose(found, weight[:2], atol=np.abs(weight).max() / 60000)


def test_different_weights_of_one_checksum_do_not_share_integers() -> None:
    """Four further bytes give any weight any CRC-32."""
    one = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    other = forged(one * 2, zlib.crc32(one.tobytes()))
    assert zlib.crc32(one.tobytes()) == zlib.crc32(other.tobytes())
    assert one.tobytes() != other.tobytes()

    kept = Kept()
    first, second = (kept.get(partial(np.copy, each), each, "integers") for each in (one, other))
    assert (first.tobytes(), second.tobytes()) == (one.tobytes(), other.tobytes())


def forged(values: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    """Return the values with a last one that brings their CRC-32 to ``wanted``: it is linear in each bit."""
    start = values.copy()
    start.view(np.uint32)[-1] = 0
    zero = zlib.crc32(start.tobytes())
    columns = []
    for bit in range(32):
        start.view(np.uint32)[-1] = 1 << bit
        columns.append(zlib.crc32(start.tobytes()) ^ zero)
    target, solution = wanted ^ zero, 0
    basis: dict[int, tuple[int, int]] = {}
    for bit, column in enumerate(columns):
        mask = 1 << bit
        while column and column.bit_length() in basis:
            pivot, used = basis[column.bit_length()]
            column, mask = column ^ pivot, mask ^ used
        if column:
            basis[column.bit_length()] = column, mask
    while target:
        pivot, used = basis[target.bit_length()]
        target, solution = target ^ pivot, solution ^ used
    start.view(np.uint32)[-1] = solution
    return np.asarray(start)
