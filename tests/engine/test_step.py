"""What a pass is judged by."""

from __future__ import annotations

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
