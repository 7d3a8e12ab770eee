"""What a layer's rewrite does to the model's answers, measured one by one in sessions with a switch for each.

A rewrite works on a copy of its nodes, and an input of the model says whose result goes on. So a few sessions measure
hundreds of rewrites, and none of them needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.measure.answers import Answers, Ruler
from onnxsqueeze.runtime.cut import Part, behind, varying
from onnxsqueeze.runtime.session import first_samples

__all__ = [
    "SAMPLES",
    "Detour",
    "Feeds",
    "Switchboard",
    "impacts",
    "measure",
    "sound",
    "worst_error",
]

Array = NDArray[np.generic]
Matrix = NDArray[np.float64]
Feeds = Sequence[Mapping[str, Array]]
K = TypeVar("K")
Progress = Callable[[str, int, int], None]


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


TOGETHER = 24
"""Rewrites of one session: all copies compute in every run, but a session takes as long to open as some runs."""
WHERE = 9
"""The first opset with Where; before, a switch multiplies the difference."""
SAMPLES = 2
"""Samples of a feed on which ``impacts`` measures."""


def impacts(
    original: Graph,
    feeds: Feeds,
    rewrites: Mapping[str, Sequence[Rewrite]],
    progress: Progress | None = None,
    ruler: Ruler | None = None,
    also: Mapping[str, Sequence[str]] | None = None,
    most: int | None = None,
) -> dict[str, list[float]]:
    """Return, per layer, the relative squared error of the worst output for each of its rewrites alone.

    ``rewrites`` maps the name of a layer's output to functions that rewrite the node making a given tensor. Feeds are
    cut to two samples. Layers inside bodies are left out. ``also`` names other layers that are rewritten with one;
    ``most`` is that of ``measure``.
    """
    alike = also or {}
    variants = [
        (key, dict.fromkeys((key, *alike.get(key, ())), function))
        for key, functions in rewrites.items() for function in functions
    ]  # fmt: skip
    found: dict[str, list[float]] = {}
    score = (ruler or Ruler.of(original)).error
    errors = measure(original, [variant for _, variant in variants], feeds, score, SAMPLES, progress, most)
    for (key, _), error in zip(variants, errors, strict=True):
        if error is not None:
            found.setdefault(key, []).append(error)
    return found


def measure(
    original: Graph,
    variants: Sequence[Mapping[str, Rewrite]],
    feeds: Feeds,
    score: Callable[[Answers, Answers], float],
    samples: int | None = None,
    progress: Progress | None = None,
    most: int | None = None,
) -> list[float | None]:
    """Return the score of every variant's answers against the original's.

    A variant maps names of tensors to functions, each of which rewrites the node that makes a given tensor, or to
    detours behind it; all nodes of a variant are switched together. Feeds are cut to ``samples``. A variant with a
    node in a body, or with bodies of its own, gets None, and so does one that does not run. Of more than ``most``
    variants so many are measured, evenly spread, and the others get the score of the nearest one.
    """
    found: list[float | None] = [None] * len(variants)
    plain = [node for node in original.nodes if not any(subgraphs(node))]
    keys = {t.name for node in plain for t in node.outputs} | {t.name for t in original.inputs}
    places = {str(t.name): i for i, node in enumerate(original.nodes) for t in node.outputs}
    able = [i for i, variant in enumerate(variants) if variant and variant.keys() <= keys]
    count = len(able) if most is None else min(most, len(able))
    numbers = [able[(2 * i + 1) * len(able) // (2 * count)] for i in range(count)]
    # neighbours share a session, so that most of the graph lies before its switches, or is run only once
    numbers.sort(key=lambda i: min(places.get(key, -1) for key in variants[i]))
    for start in range(0, len(numbers), TOGETHER):
        group = numbers[start : start + TOGETHER]
        for board, switched in sound(original, {i: variants[i] for i in group}, feeds, samples):
            for step, number in enumerate(switched):
                if progress:
                    progress("measuring layers", start + step, len(numbers))
                found[number] = score(board.expected, board.answers((step,)))
    measured = [number for number in numbers if found[number] is not None]
    if count < len(able) and measured:
        for number in set(able).difference(numbers):
            found[number] = found[min(measured, key=lambda other: abs(other - number))]
    return found


def sound(
    original: Graph, variants: Mapping[K, Mapping[str, Rewrite]], feeds: Feeds, samples: int | None
) -> list[tuple[Switchboard, tuple[K, ...]]]:
    """Return switchboards that run, each with the names of its variants: one for all, or several without some.

    A switch stands in the way of what ONNX Runtime folds, and a node may be one that it cannot run but folded.
    """
    if not variants:
        return []
    names = list(variants)
    try:
        return [(Switchboard(original, [variants[name] for name in names], feeds, samples), tuple(names))]
    except UnmeasuredError:
        if len(names) == 1:
            return []
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return [each for half in halves for each in sound(original, {n: variants[n] for n in half}, feeds, samples)]


def worst_error(expected: Answers, found: Answers) -> float:
    """Return the relative squared error of the worst output with nothing known of the graph, infinity if it is NaN."""
    return Ruler().error(expected, found)


class Switchboard:
    """A session in which each of several variants of a graph can be switched on and off, on the same feeds.

    A variant maps names of tensors to rewrites and detours, as in ``measure``. Feeds are cut to ``samples``. Raises
    UnmeasuredError if the graph does not run with the switches, though it does without: ``sound`` says which do.
    """

    def __init__(
        self, original: Graph, variants: Sequence[Mapping[str, Rewrite]], feeds: Feeds, samples: int | None = None
    ) -> None:
        graph = edit.duplicate(original)
        nodes = {key_of(node): node for node in graph.nodes}
        self._switches: list[str] = []
        for number, variant in enumerate(variants):
            switch = gs.Variable(edit.mint(graph, f"switch_{number}"), np.bool_, ())
            graph.inputs.append(switch)
            self._switches.append(str(switch.name))
            for key, rewrite in variant.items():
                if isinstance(rewrite, Detour):
                    _switch_tensor(graph, _tensor(graph, key), rewrite, switch)
                else:
                    _switch(graph, nodes[key], rewrite, switch)
        edit.tidy(graph)
        self._outputs = [str(t.name) for t in original.outputs]
        ahead = varying(graph) - behind(graph, (), self._switches)
        first = {str(t.name) for node in graph.nodes if id(node) in ahead for t in node.outputs if t.name}
        read = {str(t.name) for node in graph.nodes if id(node) not in ahead for t in edit.reads(node)}
        self._done = sorted(first & {*read, *self._outputs})
        """What no switch reaches: it is computed once."""
        self._asked = [name for name in self._outputs if name not in {*self._done, *(t.name for t in graph.inputs)}]
        short = list(feeds) if samples is None else [first_samples(feed, samples) for feed in feeds]
        self._known: list[dict[str, Array]] = []
        try:
            self.expected = self._opened(graph, short)
            """The answers with all variants switched off."""
        except UnmeasuredError:
            if all(one is other for one, other in zip(short, feeds, strict=True)):
                raise
            self.expected = self._opened(graph, feeds)  # there are models that run on whole feeds alone

    def _opened(self, graph: Graph, feeds: Feeds) -> Answers:
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
