from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from linear_models import model
from onnx import helper, numpy_helper

from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.floats.border import halve_border

HALF = np.dtype(np.float16)


@pytest.mark.parametrize("inside", [False, True])
def test_an_output_becomes_float16_for_the_caller_alone(inside: bool) -> None:
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"]), helper.make_node("Exp", ["y" if inside else "x"], ["z"])]
    graph = load(model(nodes, [], {"x": [3, 4]}, {"y": [3, 4], "z": [3, 4]}))
    feed = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    before = Session(graph).run(feed)
    for name in "xyz":
        halve_border(graph, name, HALF)
    after = Session(graph).run(feed)

    assert Counter(node.op for node in graph.nodes) == {"Mul": 1, "Exp": 1, "Cast": 3}
    for name, value in before.items():
        found = np.asarray(after[name])
        assert found.dtype == HALF
        np.testing.assert_allclose(found, np.asarray(value), rtol=3e-3, atol=1e-3)


def test_what_computes_in_float16_already_is_fed_and_answers_without_a_cast() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=10),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=1),
    ]
    eye = numpy_helper.from_array(np.eye(4, dtype=np.float16), "w")
    graph = load(model(nodes, [eye], {"x": [3, 4]}, {"y": [3, 4]}))
    graph.nodes[1].outputs[0].dtype = graph.nodes[0].outputs[0].dtype = HALF
    halve_border(graph, "x", HALF)
    halve_border(graph, "y", HALF)
    graph.cleanup()
    x = np.arange(12, dtype=np.float16).reshape(3, 4)

    assert [node.op for node in graph.nodes] == ["MatMul"]
    assert np.array_equal(np.asarray(Session(graph).run({"x": x})["y"]), x)
