from __future__ import annotations

import numpy as np
import onnx
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias


def layers() -> onnx.ModelProto:
    """A Gemm with a bias, one whose bias has no name, one with two inputs, and a MatMul."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["with"]),
        helper.make_node("Gemm", ["with", "w", ""], ["empty"]),
        helper.make_node("Gemm", ["empty", "w"], ["short"]),
        helper.make_node("MatMul", ["short", "w"], ["y"]),
    ]
    weights = [constant("w", np.eye(4, dtype=np.float32)), constant("b", np.arange(4, dtype=np.float32)[None])]
    return model(nodes, weights, {"x": [1, 4]}, {"y": [1, 4]})


def test_a_bias_is_the_third_input_that_has_a_name() -> None:
    view = View(load(layers()))
    first, *others = view.nodes

    found = bias_tensor(first)
    assert found is not None
    assert found.name == "b"
    assert [bias_tensor(node) for node in others] == [None, None, None]


def test_the_value_is_a_row_in_double_precision_or_zero() -> None:
    view = View(load(layers()))
    first, *others = view.nodes

    value = np.asarray(bias_value(view, first))
    assert value.dtype == np.float64
    assert value.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert [bias_value(view, node) for node in others] == [0.0, 0.0, 0.0]


def test_a_bias_is_set_whether_or_not_there_is_one() -> None:
    graph = load(layers())
    new = edit.constant(graph, "new", np.ones(4, np.float32))
    for node in graph.nodes[:3]:
        set_bias(node, new)

    assert [bias_tensor(node) is new for node in graph.nodes[:3]] == [True, True, True]
