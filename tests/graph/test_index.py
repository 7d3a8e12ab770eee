"""What a graph remembers of itself while it is edited."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from linear_models import model
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph, Index, Node

COUNT = 5000


def chain(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(count)]
    return model(nodes, [], {"t0": [1, 4]}, {f"t{count}": [1, 4]})


def test_a_copy_remembers_nothing_of_the_graph_that_it_was_made_from() -> None:
    graph = load(chain(3))
    edit.find(graph, "t2")
    assert edit.mint(graph, "t1") == "t1_2"
    assert View(graph).is_output(graph.outputs[0])
    assert graph.index.places is not None

    twin = graph.copy()
    assert vars(twin.index) == vars(Index())
    assert edit.mint(twin, "t1") == "t1_2"
    assert edit.mint(graph, "t1") == "t1_3"
    assert edit.find(twin, "t2")[0] is not edit.find(graph, "t2")[0]
    assert edit.find(twin, "t2")[1] is twin


def test_tidy_forgets_names_and_places() -> None:
    graph = load(chain(3))
    node, scope = edit.find(graph, "t2")
    edit.mint(graph, "spare")
    node.outputs[0].name = "other"

    edit.tidy(graph)

    assert edit.mint(graph, "spare") == "spare"
    assert edit.find(graph, "other") == (node, scope)


def test_many_edits_look_through_the_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(chain(COUNT))
    walks: list[object] = []

    def counted(graph: Graph) -> Iterator[tuple[Node, Graph]]:
        walks.append(graph)
        return walk(graph)

    monkeypatch.setattr(edit, "walk", counted)

    for i in range(1, COUNT):
        node, scope = edit.find(graph, f"t{i}")
        if i % 2:
            edit.replace(graph, scope, node, "Tanh", list(node.inputs))
        else:
            edit.insert(graph, scope, "Abs", [node.outputs[0]], f"a{i}", after=node)

    assert len(walks) == 2
    assert len(graph.nodes) == COUNT + COUNT // 2 - 1
