from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze import edit
from onnxsqueeze.errors import PassError
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph


def chain(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x" if i == 0 else f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    nodes.append(helper.make_node("Neg", [f"t{count}"], ["y"]))
    return model(nodes, [], {"x": [1, 4]}, {"y": [1, 4]})


def keys(graph: Graph) -> list[str]:
    return [key_of(node) for node in graph.nodes]


def test_nodes_are_sorted_so_that_each_stands_behind_what_it_reads() -> None:
    graph = load(chain(40))
    expected = keys(graph)
    random.Random(0).shuffle(graph.nodes)
    edit.tidy(graph)

    assert keys(graph) == expected


def test_nodes_that_may_stay_where_they_are_do() -> None:
    nodes = [helper.make_node("Neg", ["x"], [name]) for name in ("c", "a", "b")]
    nodes.append(helper.make_node("Sum", ["a", "b", "c"], ["y"]))
    graph = load(model(nodes, [], {"x": [1, 4]}, {"y": [1, 4]}))
    graph.nodes.insert(0, graph.nodes.pop())
    edit.tidy(graph)

    assert keys(graph) == ["c", "a", "b", "y"]


def test_a_cycle_is_named() -> None:
    graph = load(chain(3))
    first, *_, last = graph.nodes
    first.inputs[0] = last.outputs[0]

    with pytest.raises(PassError, match=r"it has a cycle at '\w+', which depends on itself"):
        edit.tidy(graph)


def test_what_no_output_needs_leaves() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["unread"])]
    graph = load(model(nodes, [], {"x": [1, 4]}, {"y": [1, 4]}))
    edit.tidy(graph)

    assert keys(graph) == ["y"]


def test_minted_names_are_new_and_readers_are_redirected() -> None:
    graph = load(chain(2))
    node = graph.nodes[0]
    added = edit.constant(graph, "t1", np.ones(4, np.float32))
    result = edit.insert(graph, graph, "Mul", [node.outputs[0], added], "t1", after=node)
    edit.redirect(node.outputs[0], result, only=[graph.nodes[2]])
    edit.tidy(graph)

    assert len({tensor.name for each in graph.nodes for tensor in each.outputs}) == len(graph.nodes)
    assert added.name != "t1"
    assert [each.op for each in graph.nodes] == ["Relu", "Mul", "Relu", "Neg"]
    assert graph.nodes[2].inputs[0] is result


def test_two_tensors_of_one_name_are_refused() -> None:
    add = helper.make_node("Add", ["x", "w"], ["y"])
    graph = load(model([add], [constant("w", np.ones(4))], {"x": [1, 4]}, {"y": [1, 4]}))
    graph.nodes[0].inputs[1] = gs.Constant("x", np.ones(4, np.float32))

    with pytest.raises(PassError, match="two tensors are called 'x'"):
        edit.tidy(graph)


def test_names_of_one_hint_are_counted_on_and_never_given_twice() -> None:
    graph = load(chain(2))
    taken = edit.mint(graph, "new_3")

    names = [edit.mint(graph, "new") for _ in range(4)]

    assert taken == "new_3"
    assert names == ["new", "new_2", "new_4", "new_5"]
    edit.tidy(graph)
    assert edit.mint(graph, "new") == "new"  # nothing bears the name: none of them has entered the graph
