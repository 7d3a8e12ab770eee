"""Every form that is written: ONNX Runtime loads it, folds or fuses it as promised, and computes what it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_models import constant, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic
from onnxsqueeze.techniques.quantization.emit.nbits import decoded, pack, restored, unpack
from onnxsqueeze.techniques.quantization.fewbits import Fit, Grid, fit, rows_of
from onnxsqueeze.techniques.quantization.grids import Affine

Floats = NDArray[np.floating]
RNG = np.random.default_rng(0)
each_width = pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
each_opset = pytest.mark.parametrize("opset", [13, 21])


def optimized(graph: Graph, tmp_path: Path) -> tuple[Session, Counter[str]]:
    """Return a session, and the operators that ONNX Runtime has made of the graph."""
    edit.tidy(graph)
    onnx.checker.check_model(encode(graph))
    session = Session(graph, optimized=tmp_path / "optimized.onnx")
    return session, Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def answer(graph: Graph, feed: Mapping[str, NDArray[np.generic]], **options: str) -> NDArray[np.float32]:
    return np.asarray(Session(graph, **options).run(dict(feed))["y"], np.float32)  # type: ignore[arg-type]


def graph_of(op: str, weight: Floats, shape: list[int], opset: int, **attrs: object) -> Graph:
    node = helper.make_node(op, ["x", "w"], ["y"], **attrs)  # type: ignore[arg-type]
    proto = model([node], [constant("w", weight)], {"x": shape}, {"y": ["a"]})
    proto.opset_import[0].version = opset
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    for i in range(len(shape)):
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"d{i}"
    proto.ir_version = 10
    return load(proto)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4, 6]), st.integers(1, 70), st.integers(0, 2**31))
def test_what_is_packed_is_unpacked(bits: int, n: int, seed: int) -> None:
    grid = Grid(bits)
    q = np.random.default_rng(seed).integers(grid.low, grid.high + 1, (3, n)).astype(np.int8)
    codes = pack(q, bits)

    np.testing.assert_array_equal(unpack(codes, bits, n), q)
    assert codes[0].size <= n * bits / 8 + 3


@each_width
@each_opset
@pytest.mark.parametrize(
    ("op", "shape", "x", "attrs"),
    [
        ("Conv", (16, 8, 3, 3), [1, 8, 9, 9], {}),
        ("MatMul", (96, 40), [5, 96], {}),
        ("Gemm", (40, 96), [5, 96], {"transB": 1}),
        ("Conv", (7, 3, 3, 3), [1, 3, 9, 9], {}),
    ],
    ids=["conv", "matmul", "gemm", "odd"],
)
def test_stored_weights_fold_when_they_are_loaded(
    bits: int, opset: int, op: str, shape: tuple[int, ...], x: list[int], attrs: dict[str, int], tmp_path: Path
) -> None:
    weight = RNG.standard_normal(shape).astype(np.float32)
    graph = graph_of(op, weight, x, opset, **attrs)
    rows = rows_of(weight, op, bool(attrs))
    found = fit(rows, Grid(bits), rows.shape[1] if op == "Conv" else 16)
    restored(graph, graph, graph.nodes[0].inputs[1], found, columns_first=op == "MatMul")
    session, ops = optimized(graph, tmp_path)
    values = found.weight.T if op == "MatMul" else found.weight.reshape(shape)
    expected = Session(graph_of(op, np.ascontiguousarray(values), x, opset, **attrs))
    feed = {"x": RNG.standard_normal(x).astype(np.float32)}

    assert set(ops) <= {"Conv", "MatMul", "Gemm", "ReorderInput", "ReorderOutput", "FusedConv"}
    np.testing.assert_array_equal(session.run(feed)["y"], expected.run(feed)["y"])
    assert len(encode(graph).SerializeToString()) < weight.nbytes * bits / 32 + 1800


@each_width
@each_opset
def test_integer_convolutions_read_few_bits_at_full_speed(bits: int, opset: int, tmp_path: Path) -> None:
    weight = RNG.standard_normal((16, 8, 3, 3)).astype(np.float32)
    found = fit(weight.reshape(16, -1), Grid(bits), 72, signs=False, compact=False)
    q, affine = found.q.reshape(weight.shape), Affine(0.05, 128)

    def made(bits: int) -> Graph:
        graph = graph_of("Conv", weight, [1, 8, 12, 12], opset)
        node = graph.nodes[0]
        integers = decoded(graph, graph, "w", q, Grid(bits), TensorProto.INT8, node)
        node.inputs[0] = qdq.dequantized(graph, node.inputs[0], affine)
        qdq.weight(graph, node, 1, integers, found.scales, 0)
        qdq.requantize(graph, node.outputs[0], Affine(0.3, 128))
        return graph

    session, ops = optimized(made(bits), tmp_path)
    feed = {"x": RNG.standard_normal([1, 8, 12, 12]).astype(np.float32)}

    assert set(ops) - {"Transpose"} == {"QuantizeLinear", "QLinearConv", "DequantizeLinear"}
    np.testing.assert_array_equal(session.run(feed)["y"], Session(made(8)).run(feed)["y"])


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@each_opset
def test_layers_that_quantize_their_input_read_few_bits_at_full_speed(bits: int, opset: int, tmp_path: Path) -> None:
    weight = RNG.standard_normal((96, 40)).astype(np.float32)
    graph = graph_of("MatMul", weight, [5, 96], opset)
    dynamic(graph, graph, graph.nodes[0], bits=bits)
    _, ops = optimized(graph, tmp_path)
    feed = {"x": RNG.standard_normal([5, 96]).astype(np.float32)}
    values = fit(weight.T, Grid(bits), 96, signs=False, compact=False).weight.T

    assert ops == {"DynamicQuantizeMatMul": 1}
    np.testing.assert_allclose(answer(graph, feed), np.matmul(feed["x"], values), atol=0.3)
    np.testing.assert_allclose(answer(graph, feed), answer(graph, feed, optimize="none"), atol=1e-4, rtol=1e-4)


def test_scales_of_any_size_are_written(tmp_path: Path) -> None:
    weight = RNG.standard_normal((96, 40)).astype(np.float32) * 1e-8
    graph = graph_of("MatMul", weight, [5, 96], 17)
    found = fit(weight.T, Grid(4), 32)
    restored(graph, graph, graph.nodes[0].inputs[1], found, columns_first=True)
    edit.tidy(graph)
    kinds = {str(np.dtype(t.dtype)) for node in graph.nodes for t in node.inputs if hasattr(t, "_values")}

    assert "float16" not in kinds
    feed = {"x": RNG.standard_normal([5, 96]).astype(np.float32)}
    np.testing.assert_allclose(answer(graph, feed), np.matmul(feed["x"], found.weight.T), rtol=1e-4, atol=1e-12)


def test_int4_is_typed_where_the_opset_has_it() -> None:
    for opset, dtype in ((13, "uint8"), (21, "int4")):
        graph = graph_of("MatMul", np.ones((96, 40), np.float32), [5, 96], opset)
        found = Fit(np.ones((40, 96), np.int8), np.ones((40, 3), np.float32), Grid(4))
        restored(graph, graph, graph.nodes[0].inputs[1], found, columns_first=True)
        edit.tidy(graph)
        first = next(t for t in graph.nodes[0].inputs if t.name.startswith("w_int4"))

        assert (str(first.dtype), peek(first).size) == (dtype, 96 * 40 // (2 if opset == 13 else 1))


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_what_weights_are_unpacked_with_is_there_once(bits: int) -> None:
    held = {name: RNG.normal(size=(32, 32)).astype(np.float32) for name in "vw"}
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = load(model(nodes, [constant(*each) for each in held.items()], {"x": [2, 32]}, {"y": [2, 32]}))
    fits = {name: fit(value.T, Grid(bits), 32) for name, value in held.items()}
    for node, found in zip(list(graph.nodes), fits.values(), strict=True):
        restored(graph, graph, node.inputs[1], found, True)
    x = RNG.normal(size=(2, 32)).astype(np.float32)
    names = Counter(str(tensor.name) for tensor in encode(graph).graph.initializer)

    assert sum("unpack_right" in name for name in names) == 1
    assert sum("unpack_middle" in name for name in names) == 1
    np.testing.assert_allclose(
        answer(graph, {"x": x}), x @ fits["v"].weight.T @ fits["w"].weight.T, rtol=1e-4, atol=1e-3
    )
