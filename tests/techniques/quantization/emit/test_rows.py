"""Weights that stay in few bits in memory: what ONNX Runtime fuses them to, and that it computes what they mean."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import constant
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.targets.profiles import default
from onnxsqueeze.techniques.quantization.emit.rows import codes, fuses, multiplied, rows_of
from onnxsqueeze.techniques.quantization.fewbits import Fit, Grid, fit
from onnxsqueeze.techniques.quantization.lowbits import heads, weights

Floats = NDArray[np.floating]
RNG = np.random.default_rng(0)
K, N = 320, 48


def graph_of(*nodes: onnx.NodeProto, opset: int = 21, kind: int = TensorProto.FLOAT, **held: Floats) -> Graph:
    inputs = [helper.make_tensor_value_info("x", kind, ["m", K] if kind == TensorProto.FLOAT else ["a", "b"])]
    flat = kind == TensorProto.FLOAT or nodes[-1].op_type == "Gemm"
    outputs = [
        helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["o", "p"] if flat else list("opq"))
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [constant(name, value) for name, value in held.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return load(proto)


def optimized(graph: Graph, folder: Path) -> list[onnx.NodeProto]:
    edit.tidy(graph)
    onnx.checker.check_model(encode(graph))
    Session(graph, optimized=folder / "optimized.onnx")
    return list(onnx.load(folder / "optimized.onnx").graph.node)


def answer(graph: Graph, feed: NDArray[np.generic], optimize: str = "all") -> Floats:
    return np.asarray(next(iter(Session(graph, optimize=optimize).run({"x": feed}).values())), np.float64)


def fitted(weight: Floats, bits: int, block: int = 32) -> Fit:
    return fit(weight, Grid(bits), block)


def rows(m: int = 3) -> Floats:
    return RNG.standard_normal((m, K)).astype(np.float32)


def with_form(graph: Graph, form: str) -> Graph:
    target = default()
    graph.made_for = replace(target, decoding=replace(target.decoding, form=form))  # type: ignore[arg-type]
    return graph


def attribute(node: onnx.NodeProto, name: str) -> object:
    return next(helper.get_attribute_value(each) for each in node.attribute if each.name == name)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_those_of_the_operator(bits: int) -> None:
    found = fitted(RNG.standard_normal((N, K)).astype(np.float32), bits)
    held = codes(found)
    whole = np.stack([held >> (bits * i) & ((1 << bits) - 1) for i in range(8 // bits)], axis=-1)

    assert held.shape == (N, K // 32, 32 * bits // 8)
    np.testing.assert_array_equal(whole.reshape(N, K).astype(int) - (1 << (bits - 1)), found.q)


@pytest.mark.parametrize(
    ("op", "bits", "form", "attrs"),
    [
        *(("MatMul", bits, form, {}) for bits in (4, 8) for form in ("dequantize", "operator")),
        ("MatMul", 2, "dequantize", {}),
        ("Gemm", 4, "dequantize", {"transB": 1}),
        ("Gemm", 4, "operator", {"transB": 1}),
        ("Gemm", 4, "dequantize", {}),
    ],
)
@pytest.mark.parametrize("block", [16, 32, 64])
def test_a_product_runs_in_few_bits(
    op: str, bits: int, form: str, attrs: dict[str, int], block: int, tmp_path: Path
) -> None:
    if bits == 2 and block == 16:
        pytest.skip("ONNX Runtime has no quick kernel for it")
    weight = RNG.standard_normal((N, K)).astype(np.float32)
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    held = {"w": weight if attrs else weight.T, "b": RNG.standard_normal(N).astype(np.float32)}
    graph = graph_of(helper.make_node(op, inputs, ["y"], **attrs), **held)  # type: ignore[arg-type]
    found = fitted(weight, bits, block)
    multiplied(with_form(graph, form), graph, graph.nodes[0], found, fuses(View(graph), graph.nodes[0]))
    nodes = optimized(graph, tmp_path)
    feed = rows()
    exact = feed @ found.weight.T.astype(np.float64) + (held["b"] if op == "Gemm" else 0)
    error = answer(graph, feed) - exact

    assert [node.op_type for node in nodes] == ["MatMulNBits"]
    assert [attribute(nodes[0], name) for name in ("bits", "block_size", "accuracy_level")] == [bits, block, 4]
    assert 10 * np.log10(np.square(exact).sum() / np.square(error).sum()) > 38  # inputs are rounded to 8 bits
    if form == "dequantize" and bits != 2:
        np.testing.assert_allclose(answer(graph, feed, "none"), exact, atol=1e-4)


def test_older_opsets_and_what_is_not_fused_get_the_operator(tmp_path: Path) -> None:
    weight = RNG.standard_normal((N, K)).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["h"])
    two = helper.make_node("MatMul", ["x", "v"], ["g"])
    cases = {
        "old": graph_of(product, opset=17, w=weight.T),
        "relu": graph_of(
            product, helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Neg", ["r"], ["y"]), w=weight.T
        ),
        "sum": graph_of(product, two, helper.make_node("Add", ["h", "g"], ["y"]), w=weight.T, v=-weight.T),
        "shortcut": graph_of(
            product, helper.make_node("MatMul", ["x", "o"], ["g"]), helper.make_node("Add", ["g", "h"], ["y"]),
            w=weight.T, o=np.ones((K, 1), np.float32),
        ),
    }  # fmt: skip
    for name, graph in cases.items():
        view = View(graph)
        assert not fuses(view, graph.nodes[0])
        for node in [n for n in graph.nodes if n.op == "MatMul" and n.inputs[1].name in "wv"]:
            multiplied(graph, graph, node, fitted(np.asarray(node.inputs[1].values).T, 4), fuses(view, node))
        counts = Counter(node.op_type for node in optimized(graph, tmp_path))
        assert counts["MatMulNBits"] == (2 if name == "sum" else 1)
        assert not counts["DequantizeLinear"] + counts["Gemm"]


@pytest.mark.parametrize("behind", ["Relu", "Add"])
def test_what_is_said_not_to_be_fused_is_not(behind: str, tmp_path: Path) -> None:
    weight = RNG.standard_normal((K, K)).astype(np.float32)
    last = helper.make_node(behind, ["h", "x"] if behind == "Add" else ["h"], ["r"])
    graph = graph_of(
        helper.make_node("MatMul", ["x", "w"], ["h"]), last, helper.make_node("Neg", ["r"], ["y"]), w=weight
    )
    assert not fuses(View(graph), graph.nodes[0])
    multiplied(with_form(graph, "dequantize"), graph, graph.nodes[0], fitted(weight, 4), fused=True)
    counts = Counter(node.op_type for node in optimized(graph, tmp_path))

    assert counts["DequantizeLinear"] == 1
    assert not counts["MatMulNBits"]


def test_a_shortcut_around_a_layer_of_three_axes_is_fused(tmp_path: Path) -> None:
    weight = RNG.standard_normal((K, K)).astype(np.float32)
    graph = graph_of(
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["x", "h"], ["y"]), w=weight
    )
    proto = encode(graph)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_value=1))
    graph = load(proto)
    assert fuses(View(graph), graph.nodes[0])
    multiplied(with_form(graph, "dequantize"), graph, graph.nodes[0], fitted(weight, 4), fused=True)

    assert Counter(node.op_type for node in optimized(graph, tmp_path)) == {"MatMulNBits": 1, "Add": 1}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("opset", [13, 21])
def test_a_table_is_gathered_before_it_is_restored(bits: int, block: int, opset: int, tmp_path: Path) -> None:
    table = RNG.standard_normal((50, K)).astype(np.float32)
    node = helper.make_node("Gather", ["w", "x"], ["y"])
    graph = graph_of(node, opset=opset, kind=TensorProto.INT64, w=table)
    found = fitted(table, bits, block)
    rows_of(graph, "w", found).gathered(graph, graph, graph.nodes[0], rank=2)
    optimized(graph, tmp_path)
    indices = RNG.integers(0, 50, (2, 3))

    np.testing.assert_array_equal(answer(graph, indices), found.weight[indices])
    left = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert max(np.prod(tensor.dims) for tensor in left) <= table.size * bits / 8  # no table in float is left


def tied(head: str) -> Graph:
    table = RNG.standard_normal((300, K)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["w", "x"], ["e"]), helper.make_node("Tanh", ["e"], ["t"])]
    if head == "Gemm":
        shape = np.array([-1, K], np.int64)
        nodes += [helper.make_node("Reshape", ["t", "s"], ["r"]), helper.make_node("Gemm", ["r", "w"], ["y"], transB=1)]
        graph = graph_of(*nodes[:2], kind=TensorProto.INT64, w=table)
        proto = encode(graph)
        proto.graph.node.extend(nodes[2:])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(shape, "s"))
        del proto.graph.output[:]
        proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["o", "p"]))
        return load(proto)
    nodes += [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "wt"], ["y"]),
    ]
    return graph_of(*nodes, kind=TensorProto.INT64, w=table)


@pytest.mark.parametrize("head", ["MatMul", "Gemm"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_that_is_also_a_weight_is_held_once(head: str, bits: int, tmp_path: Path) -> None:
    graph, indices = tied(head), RNG.integers(0, 300, (1, 1))
    whole = answer(graph, indices)
    (entry,) = [each for each in weights(View(graph), Statistics(), lambda _: True, bits, 1) if isinstance(each, list)]
    found = entry[0].fit(bits, np.asarray(View(graph).value(graph.nodes[0].inputs[0])))
    held = rows_of(graph, "w", found)
    held.gathered(graph, graph, graph.nodes[0], entry[0].rank or 0)
    for node in [n for n in graph.nodes if n.op in ("MatMul", "Gemm")]:
        held.multiplied(graph, graph, node, 4)
    counts = Counter(node.op_type for node in optimized(graph, tmp_path))
    error = answer(graph, indices) - whole

    assert counts["MatMulNBits"] == 1
    assert not counts["MatMul"] + counts["Gemm"] + counts["DequantizeLinear"]
    assert 10 * np.log10(np.square(whole).sum() / np.square(error).sum()) > (14 if bits == 4 else 34)
    assert len(encode(graph).SerializeToString()) < 300 * K * bits / 8 * 1.1 + 2500


def test_a_table_that_something_else_reads_too_is_no_head() -> None:
    graph = tied("MatMul")
    assert [node.op for node in heads(View(graph), graph.nodes[0]) or ()] == ["MatMul"]
    proto = encode(graph)
    proto.graph.node.append(helper.make_node("Abs", ["w"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    other = load(proto)

    assert heads(View(other), other.nodes[0]) is None
