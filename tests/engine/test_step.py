"""What a pass is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze


def model_without_an_output_shape() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("MatMul", ["i", "w"], ["y"])]
    weight = numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_the_checker_held_against_the_source_is_not_held_against_a_pass() -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(4, 64)).astype(np.float32)} for i in range(4)]
    report = squeeze(model_without_an_output_shape(), "int8", feeds).report

    assert all(step.kept for step in report.steps)
    assert report.after.bytes < 0.5 * report.before.bytes
    assert report.sqnr_db is not None
    assert report.sqnr_db > 30


def newest(op: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [("w", (32, 3, 3, 3)), ("v", (64, 32, 3, 3))]
    stored = [numpy_helper.from_array(rng.normal(0, 0.2, s).astype(np.float32), n) for n, s in weights]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"]), helper.make_node(op, ["c"], ["y"], **ATTRIBUTES[op]),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", 1, ["n", 3, 12, 12])
    y = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=13)


ATTRIBUTES: dict[str, dict[str, Any]] = {"Cast": {"to": 1}, "DepthToSpace": {"blocksize": 2}}


def test_the_opset_is_lowered_where_every_operator_says_the_same_there() -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(2, 3, 12, 12)).astype(np.float32)} for i in range(6)]

    result = squeeze(newest("Cast"), "int8{max-drop=0.5}", feeds)

    step = result.report.steps[-1]
    assert step.kept
    assert {site.action for site in step.done} & {"static"}
    assert "opset lowered from 28 to 27" in step.notes
    assert result.model.opset_import[0].version == 27


def test_an_operator_that_says_something_else_keeps_the_opset() -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(2, 3, 12, 12)).astype(np.float32)} for i in range(6)]

    result = squeeze(newest("DepthToSpace"), "int8{arithmetic=false}", feeds)

    step = result.report.steps[-1]
    assert result.model.opset_import[0].version == 28
    assert any("DepthToSpace means something else in opset 28 than in 27" in note for note in step.notes)
