from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from linear_models import constant, model
from onnx import ModelProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.plugin import Graph, Pass, Site, Skip, Statistics, View, edit, key_of

WIDE = 128
COUNT = 40


@dataclass(frozen=True)
class Doubles(Pass):
    """Writes ``W·x`` as ``(W/2)·x + (W/2)·x``, with two constants."""

    name: ClassVar[str] = "doubles"
    summary: ClassVar[str] = "doubles weights"
    cleans_first: ClassVar[bool] = False

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        yield from (Site(key_of(node), "doubled") for node in view.of("MatMul"))

    def apply(self, site: Site, graph: Graph) -> None:
        node, scope = edit.find(graph, site.key)
        half = np.asarray(View(graph).value(node.inputs[1])) / 2
        ways = [
            edit.insert(
                graph, scope, "MatMul", [node.inputs[0], edit.constant(graph, "half", half)], "way", before=node
            )
            for _ in range(2)
        ]
        edit.replace(graph, scope, node, "Add", ways)


@dataclass(frozen=True)
class Explains(Doubles):
    """The same, with a reason."""

    name: ClassVar[str] = "explains"
    grows: ClassVar[str] = "two halves can be computed at once"


@dataclass(frozen=True)
class Relents(Doubles):
    """The same, with a mild form."""

    name: ClassVar[str] = "relents"

    def milder(self) -> Pass | None:
        return Copies()


@dataclass(frozen=True)
class Copies(Doubles):
    """Puts Identities behind a layer."""

    name: ClassVar[str] = "copies"

    def apply(self, site: Site, graph: Graph) -> None:
        node, scope = edit.find(graph, site.key)
        raw = edit.insert(graph, scope, "MatMul", list(node.inputs), "raw", before=node)
        for _ in range(COUNT):
            raw = edit.insert(graph, scope, "Identity", [raw], "raw", before=node)
        edit.replace(graph, scope, node, "Identity", [raw])


def one() -> ModelProto:
    weight = np.random.default_rng(0).normal(size=(WIDE, WIDE))
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", weight)], {"x": [2, WIDE]}, {"y": [2, WIDE]}
    )


@pytest.mark.parametrize("validate", ["full", "none"])
def test_a_pass_that_makes_the_file_larger_is_rolled_back(validate: str) -> None:
    proto = one()
    result = squeeze(proto, [Doubles()], validate=validate)
    step = result.report.steps[-1]

    assert not step.kept
    assert step.reason == "the file would grow from 65.6 kB to 131 kB"
    assert result.model.ByteSize() == proto.ByteSize()


def test_a_pass_may_say_why_the_file_is_larger() -> None:
    step = squeeze(one(), [Explains()]).report.steps[-1]

    assert step.kept
    assert "the file is 65.6 kB larger: two halves can be computed at once" in step.notes


def test_a_few_nodes_are_told() -> None:
    step = squeeze(one(), [Copies()]).report.steps[-1]

    assert step.kept
    assert any(note.endswith("B larger: that is what its new nodes take") for note in step.notes)


def test_the_mildest_form_is_tried_where_the_file_would_grow() -> None:
    step = squeeze(one(), [Relents()]).report.steps[-1]

    assert step.kept
    assert step.notes[0] == "as asked for, the file would grow from 65.6 kB to 131 kB: done in its mildest form, copies"
