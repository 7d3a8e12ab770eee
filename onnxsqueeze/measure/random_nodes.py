"""Nodes that draw random numbers, or lengths: replaced by inputs that get the same recorded values in every model.

A length that is rounded of what a layer makes, as the durations in a voice are, jumps where that moves a little, and
then answers stand beside each other that belong to different moments. So all models get the lengths of the original,
and what is rounded is measured itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of, walk
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.taps import Ancestry, expose
from onnxsqueeze.runtime.session import Instrument

__all__ = ["Draws", "Recorded", "find"]

Array = NDArray[np.generic]
Feed = dict[str, Array]

_SOURCES = """RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial Dropout"""
SOURCES = frozenset(_SOURCES.split())
READ = frozenset(["Bernoulli", "Multinomial"])
"""Operators whose draws depend on the values of their input, not on its shape alone."""


@dataclass(frozen=True)
class Draws:
    """The drawing nodes of a graph, and those that round lengths: those that inputs replace, by key, and how many stay.

    A node in a body, or one whose shape depends on data that a pass may change, stays.
    """

    nodes: tuple[str, ...] = ()
    left: int = 0
    graph: Graph | None = field(default=None, compare=False, repr=False)

    @property
    def kept(self) -> tuple[str, ...]:
        """The tensors that the nodes read: they have to stay as they are, since the nodes are put back at last."""
        return tuple(dict.fromkeys(str(t.name) for node in self._nodes() for t in _read(node) if t.inputs))

    @property
    def measured(self) -> tuple[str, ...]:
        """The tensors whose values decide what is drawn or rounded."""
        deciding = [node for node in self._nodes() if node.op in READ or node.op not in SOURCES]
        return tuple(dict.fromkeys(str(t.name) for node in deciding for t in _read(node) if t.inputs))

    def _nodes(self) -> list[gs.Node]:
        wanted = set(self.nodes)
        return [] if self.graph is None else [node for node in self.graph.nodes if key_of(node) in wanted]

    def as_inputs(self, graph: Graph) -> Graph:
        """Return a copy in which inputs of the same names stand for what the nodes make."""
        copy = edit.duplicate(graph)
        view = View(copy)
        for node in [node for node in copy.nodes if key_of(node) in set(self.nodes)]:
            tensor = node.outputs[0]
            tensor.dtype = tensor.dtype or view.dtype(tensor) or np.float32
            edit.remove(copy, node)
            copy.inputs.append(tensor)
        return copy

    def put_back(self, graph: Graph) -> Graph:
        """Return a copy in which the nodes make again what was an input."""
        copy = edit.duplicate(graph)
        made = {str(t.name): t for node in copy.nodes for t in node.outputs}
        made |= {str(t.name): t for t in copy.inputs}
        for node in self._nodes():
            tensor = next((t for t in copy.inputs if t.name == node.outputs[0].name), None)
            if tensor is None:
                continue
            copy.inputs.remove(tensor)
            inputs = [_copied(copy, t, made) for t in node.inputs]
            edit.insert(copy, copy, node.op, inputs, [tensor], dict(node.attrs))
            copy.nodes[-1].name = node.name
        return copy

    def words(self) -> list[str]:
        """Say for the report what is done about them."""
        drawing = sum(node.op in SOURCES for node in self._nodes())
        rounding = len(self.nodes) - drawing
        found = []
        if rounding:
            found.append(
                f"{rounding} nodes round what answers have their lengths from: all models were compared at the lengths "
                f"of the original, and what is rounded was measured too"
            )
        if self.left:
            found.append(
                f"{self.left} nodes draw random numbers where no draw can be recorded (in a body, or of a length that "
                "depends on data): their noise counts as error"
            )
        elif drawing:
            found.append(f"{drawing} nodes draw random numbers: all models were compared on the same recorded draws")
        return found


def find(graph: Graph) -> Draws:
    """Return the nodes of a graph that draw, or that round what an output has its length from.

    Dropout draws in training mode alone, and is left as it is.
    """
    ancestry = Ancestry(View(graph))
    rounding = dict.fromkeys(key_of(node) for output in graph.outputs for node in ancestry.steps(output))
    nodes = [key for key in rounding if key]
    known = Draws(tuple(nodes), 0, graph)
    given = known.as_inputs(graph) if nodes else graph
    view = View(given)
    ancestry = Ancestry(view)
    left = 0
    for node, scope in walk(given):
        if node.op not in SOURCES or not is_standard(node) or (node.op == "Dropout" and not _trains(view, node)):
            continue
        floating = any(ancestry.front(t, discrete=False) is not None for t in _read(node) if t.inputs)
        if scope is not given or floating or node.op == "Dropout":
            left += 1
        else:
            nodes.append(key_of(node))
    return Draws(tuple(nodes), left, graph)


class Recorded(Sequence[Feed]):
    """Feeds with the draws of each: made by a generator of its own, so that they are the same whoever asks."""

    def __init__(self, feeds: Sequence[Feed], draws: Draws, seed: int, numbers: Sequence[int] | None = None) -> None:
        assert draws.graph is not None
        self.feeds, self.draws, self.seed = feeds, draws, seed
        self.numbers = range(len(feeds)) if numbers is None else numbers
        self._session: Instrument | None = None
        self._drawn: dict[int, Feed] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Feed]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Recorded: ...
    def __getitem__(self, index: int | slice) -> Feed | Recorded:
        if isinstance(index, slice):
            return Recorded(self.feeds, self.draws, self.seed, self.numbers[index])
        number = self.numbers[index]
        feed = self.feeds[number]
        if number not in self._drawn:
            self._drawn[number] = self._draw(number, feed)
        return {**feed, **self._drawn[number]}

    def _draw(self, number: int, feed: Feed) -> Feed:
        graph = self.draws.graph
        assert graph is not None
        nodes = self.draws._nodes()
        names = [str(node.outputs[0].name) for node in nodes]
        reads = [str(t.name) for node in nodes if node.op in READ for t in _read(node) if t.inputs]
        if self._session is None:
            self._session = Instrument(expose(graph, [*names, *reads]))
        values = self._session.run(feed, list(dict.fromkeys([*names, *reads])))
        found: Feed = {}
        for place, node in enumerate(nodes):
            name = str(node.outputs[0].name)
            drawn = np.asarray(values[name])
            source = str(node.inputs[0].name) if node.inputs else ""
            given = np.asarray(values.get(source, feed.get(source, 0.0)))
            rng = np.random.default_rng((self.seed, number, place))
            found[name] = np.asarray(_values(node, drawn, given, rng)).astype(drawn.dtype)
        return found


def _values(node: gs.Node, recorded: Array, given: Array, rng: np.random.Generator) -> Any:
    attrs = node.attrs
    if node.op not in SOURCES:
        return recorded
    shape = recorded.shape
    if node.op.startswith("RandomNormal"):
        return float(attrs.get("mean", 0.0)) + float(attrs.get("scale", 1.0)) * rng.standard_normal(shape)
    if node.op.startswith("RandomUniform"):
        return rng.uniform(float(attrs.get("low", 0.0)), float(attrs.get("high", 1.0)), shape)
    if node.op == "Bernoulli":
        return rng.random(shape) < given.astype(np.float64)
    logits = given.astype(np.float64)
    noise = rng.gumbel(size=(logits.shape[0], shape[1], logits.shape[1]))
    return (logits[:, None] + noise).argmax(-1)


def _read(node: gs.Node) -> list[gs.Tensor]:
    return [t for t in node.inputs[:1] if t.name]


def _trains(view: View, node: gs.Node) -> bool:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    value = view.value(node.inputs[2])
    return value is None or bool(value)


def _copied(graph: Graph, tensor: gs.Tensor, made: dict[str, gs.Tensor]) -> gs.Tensor:
    if str(tensor.name) in made:
        return made[str(tensor.name)]
    assert isinstance(tensor, gs.Constant)
    return edit.constant(graph, str(tensor.name), tensor.values)
