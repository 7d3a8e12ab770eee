from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias, shares_inside
from onnxsqueeze.runtime.session import Session


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


@pytest.mark.parametrize(
    "attrs",
    [
        {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 2, 1, 3], "strides": [2, 1]},
        {"pads": [4, 4, 4, 4], "dilations": [2, 3]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"},
        {"pads": [8, 8, 8, 8], "strides": [16, 16]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [5, 8])
def test_each_tap_counts_by_the_share_of_windows_in_which_it_is_inside(attrs: dict[str, Any], size: int) -> None:
    kernel = (3, 2)
    taps = np.eye(6, dtype=np.float32).reshape(6, 1, *kernel)  # channel i of y sees tap i alone
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attrs)
    proto = model([node], [constant("w", taps)], {"x": [1, 1, size, size]}, {"y": [1, 6, "h", "w"]})
    y = np.asarray(Session(proto).run({"x": np.ones((1, 1, size, size), np.float32)})["y"])
    (conv,) = View(load(proto)).nodes

    assert np.allclose(shares_inside(conv, kernel, (1, 1, size, size)), y.mean((0, 2, 3)).reshape(kernel))
    assert np.array_equal(shares_inside(conv, kernel, None), np.ones(kernel))
