"""Weights of size zero and inputs that do not vary go through every pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.inspection.inspect import inspect_model

PASSES = (
    "clean",
    "lowrank{ratio=0.5}",
    "prune{ratio=0.7}",
    "sparsify{ratio=0.5}",
    "depthwise",
    "int8",
    "bits{4}",
    "code",
)
RNG = np.random.default_rng(0)


def model(nodes: list[onnx.NodeProto], inits: dict[str, Any], width: int) -> onnx.ModelProto:
    kind = onnx.TensorProto.FLOAT
    ends = [[helper.make_tensor_value_info(name, kind, [16, size])] for name, size in (("x", 64), ("y", width))]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in inits.items()]
    graph = helper.make_graph(nodes, "g", ends[0], ends[1], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def joined() -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Concat", ["a", "e"], ["b"], axis=1),
        node("Relu", ["b"], ["c"]),
        node("MatMul", ["c", "v"], ["y"]),
    ]
    return model(nodes, {"w": weight(64, 64), "e": weight(16, 0), "v": weight(64, 32)}, 32)


def no_outputs() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Concat", ["a", "x"], ["y"], axis=1)]
    return model(nodes, {"w": weight(64, 0)}, 64)


def no_columns() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Slice", ["x", "s", "s", "one"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    ends = {"s": np.array([0]), "one": np.array([1])}
    return model(nodes, {"w": weight(0, 32), "b": weight(16, 32), **ends}, 32)


def two_layers() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    return model(nodes, {"w": weight(64, 64), "v": weight(64, 32)}, 32)


@pytest.mark.parametrize("made", [joined, no_outputs, no_columns], ids=lambda each: each.__name__)
@pytest.mark.parametrize("text", PASSES)
def test_weights_of_size_zero(text: str, made: Any) -> None:
    feeds = [{"x": weight(16, 64)} for _ in range(8)]

    assert all(step.kept for step in squeeze(made(), text, feeds).report.steps)
    assert inspect_model(made()).layers


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("text", PASSES)
def test_inputs_that_do_not_vary(text: str, value: float) -> None:
    feeds = [{"x": np.full((16, 64), value, np.float32)} for _ in range(8)]

    report = squeeze(two_layers(), text, feeds).report

    assert all(step.kept for step in report.steps)
    assert report.sqnr_db is not None
    assert report.sqnr_db > 3
