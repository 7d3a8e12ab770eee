"""Rewrites of a graph that an input switches on and off, each beside what it rewrites, and a session of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.runtime.cut import Part, behind, varying
from onnxsqueeze.runtime.session import first_samples

__all__ = ["Detour", "Feeds", "Switchboard", "switched"]

Array = NDArray[np.generic]
Feeds = Sequence[Mapping[str, Array]]

WHERE = 9
"""The first opset with Where; before, a switch multiplies the difference."""


@dataclass(frozen=True)
class Detour:
    """A rewrite that changes a tensor, a model input or what a node makes, instead of the node that makes it.

    ``through(graph, tensor)`` adds nodes that read the tensor and returns what is read in its place; the node itself
    is not computed a second time.
    """

    through: Callable[[Graph, gs.Tensor], gs.Tensor]

    def __call__(self, graph: Graph, key: str) -> None:
        """Change the tensor for all its readers, and the model output that it is."""
        tensor, output = _opened(graph, _tensor(graph, key), f"{key}_raw")
        readers = list(tensor.outputs)
        changed = self.through(graph, tensor)
        if output is not None:
            changed = edit.insert(graph, graph, "Identity", [changed], [output])
        edit.redirect(tensor, changed, only=readers)


def switched(original: Graph, variants: Sequence[Mapping[str, Rewrite]]) -> tuple[Graph, list[str]]:
    """Return a copy of the graph with a switch for each variant, a boolean input, and the names of the switches.

    A variant maps names of tensors to rewrites of the nodes that make them and to detours; one switch is for all.
    """
    graph = edit.duplicate(original)
    nodes = {key_of(node): node for node in graph.nodes}
    switches: list[str] = []
    for number, variant in enumerate(variants):
        switch = gs.Variable(edit.mint(graph, f"switch_{number}"), np.bool_, ())
        graph.inputs.append(switch)
        switches.append(str(switch.name))
        for key, rewrite in variant.items():
            if isinstance(rewrite, Detour):
                _switch_tensor(graph, _tensor(graph, key), rewrite, switch)
            else:
                _switch(graph, nodes[key], rewrite, switch)
    edit.tidy(graph)
    return graph, switches


class Switchboard:
    """A session in which each of several variants of a graph can be switched on and off, on the same feeds.

    A variant maps names of tensors to rewrites and detours, as in ``measure``. Feeds are cut to ``samples``. Raises
    UnmeasuredError if the graph does not run with the switches, though it does without: ``sound`` says which do.
    """

    def __init__(
        self, original: Graph, variants: Sequence[Mapping[str, Rewrite]], feeds: Feeds, samples: int | None = None
    ) -> None:
        self._open(*switched(original, variants), [str(t.name) for t in original.outputs], feeds, samples)

    @classmethod
    def of(
        cls, graph: Graph, switches: Sequence[str], outputs: Sequence[str], feeds: Feeds, samples: int | None
    ) -> Switchboard:
        """Return the switchboard of a graph that has its switches already."""
        board = cls.__new__(cls)
        board._open(graph, switches, outputs, feeds, samples)
        return board

    def _open(
        self, graph: Graph, switches: Sequence[str], outputs: Sequence[str], feeds: Feeds, samples: int | None
    ) -> None:
        self.opened = graph, list(switches), list(outputs), feeds, samples
        """What ``of`` makes the same switchboard of."""
        self._switches, self._outputs = switches, outputs
        ahead = varying(graph) - behind(graph, (), self._switches)
        first = {str(t.name) for node in graph.nodes if id(node) in ahead for t in node.outputs if t.name}
        read = {str(t.name) for node in graph.nodes if id(node) not in ahead for t in edit.reads(node)}
        self._done = sorted(first & {*read, *self._outputs})
        """What no switch reaches: it is computed once."""
        self._asked = [name for name in self._outputs if name not in {*self._done, *(t.name for t in graph.inputs)}]
        short = list(feeds) if samples is None else [first_samples(feed, samples) for feed in feeds]
        self._known: list[dict[str, Array]] = []
        try:
            self.expected = self._ready(graph, short)
            """The answers with all variants switched off."""
        except UnmeasuredError:
            if all(one is other for one, other in zip(short, feeds, strict=True)):
                raise
            self.expected = self._ready(graph, feeds)  # there are models that run on whole feeds alone

    def _ready(self, graph: Graph, feeds: Feeds) -> Answers:
        """Compute what no switch reaches, open a session of the rest, and return the answers."""
        self._known = [dict(feed) for feed in feeds]
        if self._done:
            session = Part(graph, self._done, {}, "basic")
            for known in self._known:
                known |= session.run(known, self._done)  # type: ignore[arg-type]
        self._session = Part(graph, self._asked, self._known[0]) if self._asked else None
        return self.answers(())

    def answers(self, on: Collection[int]) -> Answers:
        """Return the answers with the variants of these numbers switched on."""
        switched = {name: np.array(number in on) for number, name in enumerate(self._switches)}
        found: Answers = []
        for known in self._known:
            values: dict[str, object] = {**known}
            if self._session is not None:
                values |= self._session.run({**known, **switched}, self._asked)
            found.append({name: values[name] for name in self._outputs})
        return found


def _switch(graph: Graph, node: gs.Node, rewrite: Rewrite, switch: gs.Variable) -> None:
    """Copy the node, rewrite the copy, and take its result where the switch says so."""
    y = node.outputs[0]
    hint = f"{y.name}_{switch.name}"
    copy = edit.variable(graph, f"{hint}_copy")
    rest = [edit.variable(graph, f"{hint}_rest") for _ in node.outputs[1:]]
    edit.insert(
        graph, graph, node.op, list(node.inputs), [copy, *rest], dict(node.attrs), after=node, domain=node.domain
    )
    readers = [r for r in y.outputs if r.outputs[0] is not copy]
    chosen: list[gs.Tensor] | str = f"{hint}_chosen"
    if any(y is t for t in graph.outputs):
        raw = edit.variable(graph, f"{hint}_raw")
        node.outputs[0] = raw
        edit.redirect(y, raw)
        chosen, y, readers = [y], raw, []
    result = _choice(graph, switch, copy, y, chosen, hint, node.inputs[1].dtype)
    edit.redirect(y, result, only=readers)
    rewrite(graph, str(copy.name))


def _switch_tensor(graph: Graph, tensor: gs.Tensor, detour: Detour, switch: gs.Variable) -> None:
    """Let all that reads the tensor read what the detour makes of it, where the switch says so."""
    hint = f"{tensor.name}_{switch.name}"
    tensor, output = _opened(graph, tensor, f"{hint}_raw")
    readers = list(tensor.outputs)
    changed = detour.through(graph, tensor)
    chosen: list[gs.Tensor] | str = f"{hint}_chosen" if output is None else [output]
    result = _choice(graph, switch, changed, tensor, chosen, hint, np.float32)
    edit.redirect(tensor, result, only=readers)


def _opened(graph: Graph, tensor: gs.Tensor, hint: str) -> tuple[gs.Tensor, gs.Tensor | None]:
    """Return the tensor, or what takes its place where it is a model output, and then that output, which nobody makes.

    A model input that is an output as well stays one.
    """
    if not tensor.inputs or not any(tensor is t for t in graph.outputs):
        return tensor, None
    raw, producer = edit.variable(graph, hint), tensor.inputs[0]
    producer.outputs[next(i for i, t in enumerate(producer.outputs) if t is tensor)] = raw
    edit.redirect(tensor, raw)
    return raw, tensor


def _tensor(graph: Graph, name: str) -> gs.Tensor:
    """Return a tensor that the main graph makes or takes."""
    tensors = (*(t for node in graph.nodes for t in node.outputs), *graph.inputs)
    return next(tensor for tensor in tensors if tensor.name == name)


def _choice(
    graph: Graph,
    switch: gs.Tensor,
    one: gs.Tensor,
    other: gs.Tensor,
    chosen: list[gs.Tensor] | str,
    hint: str,
    dtype: npt.DTypeLike,
) -> gs.Tensor:
    """Return ``one`` where the switch is on, else ``other``."""
    if graph.opset >= WHERE:
        return edit.insert(graph, graph, "Where", [switch, one, other], chosen)
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    gate = edit.insert(graph, graph, "Cast", [switch], f"{hint}_gate", {"to": to})
    change = edit.insert(graph, graph, "Sub", [one, other], f"{hint}_change")
    scaled = edit.insert(graph, graph, "Mul", [gate, change], f"{hint}_scaled")
    return edit.insert(graph, graph, "Add", [other, scaled], chosen)
