from __future__ import annotations

import numpy as np
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.cut import Part, before, behind, varying


def graph() -> Graph:
    """y = relu(x·w)·v, beside a weight that a node computes."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Neg", ["raw"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    weights = [constant("raw", rng.normal(size=(6, 5))), constant("v", rng.normal(size=(5, 3)))]
    return decode(model(nodes, weights, {"x": [4, 6]}, {"y": [4, 3]}))


def names(graph: Graph, found: set[int]) -> list[str]:
    return [key_of(node) for node in graph.nodes if id(node) in found]


def test_nodes_stand_before_and_behind_others() -> None:
    whole = graph()

    assert names(whole, behind(whole, ["b"])) == ["b", "y"]
    assert names(whole, behind(whole, [], ["raw"])) == ["w", "a", "b", "y"]
    assert names(whole, before(whole, ["b"], [])) == ["w", "a", "b"]
    assert names(whole, before(whole, ["y"], ["b"])) == ["y"]
    assert names(whole, varying(whole)) == ["a", "b", "y"]


def test_a_graph_in_two_parts_answers_as_it_does_in_one() -> None:
    whole = graph()
    feed = {"x": np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)}
    expected = np.asarray(Part(whole, ["y"], {}).run(feed)["y"])

    first = np.asarray(Part(whole, ["b"], {}).run(feed)["b"])
    last = Part(whole, ["y"], {"b": first}).run({**feed, "b": first})

    np.testing.assert_allclose(np.asarray(last["y"]), expected, rtol=1e-6)
    assert names(whole, varying(whole)) == ["a", "b", "y"]  # the graph itself is as it was
