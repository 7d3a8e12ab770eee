"""What a layer's rewrite does to the model's answers, measured one by one in sessions with a switch for each.

A rewrite works on a copy of its nodes, and an input of the model says whose result goes on. So a few sessions measure
hundreds of rewrites, and none of them needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.measure.answers import Answers, Ruler
from onnxsqueeze.measure.lending import Lent, alone
from onnxsqueeze.measure.switches import Feeds, Switchboard, switched
from onnxsqueeze.workers import Workers

__all__ = [
    "SAMPLES",
    "impacts",
    "measure",
    "sound",
    "worst_error",
]

K = TypeVar("K")
Progress = Callable[[str, int, int], None]


TOGETHER = 24
"""Rewrites of one session: all copies compute in every run, but a session takes as long to open as some runs."""
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
    workers: Workers | None = None,
) -> dict[str, list[float]]:
    """Return, per layer, the relative squared error of the worst output for each of its rewrites alone.

    ``rewrites`` maps the name of a layer's output to functions that rewrite the node making a given tensor. Feeds are
    cut to two samples. Layers inside bodies are left out. ``also`` names other layers that are rewritten with one;
    ``most`` and
    ``workers`` are those of ``measure``.
    """
    alike = also or {}
    variants = [
        (key, dict.fromkeys((key, *alike.get(key, ())), function))
        for key, functions in rewrites.items() for function in functions
    ]  # fmt: skip
    found: dict[str, list[float]] = {}
    score = (ruler or Ruler.of(original)).error
    errors = measure(original, [variant for _, variant in variants], feeds, score, SAMPLES, progress, most, workers)
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
    workers: Workers | None = None,
) -> list[float | None]:
    """Return the score of every variant's answers against the original's, measured by ``workers`` if there are some.

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
    groups = [{i: variants[i] for i in numbers[start : start + TOGETHER]} for start in range(0, len(numbers), TOGETHER)]
    for step, (number, value) in enumerate(_alone(original, groups, feeds, score, samples, workers)):
        if progress:
            progress("measuring layers", step, len(numbers))
        found[number] = value
    measured = [number for number in numbers if found[number] is not None]
    if count < len(able) and measured:
        for number in set(able).difference(numbers):
            found[number] = found[min(measured, key=lambda other: abs(other - number))]
    return found


def _alone(
    original: Graph,
    groups: Sequence[Mapping[int, Mapping[str, Rewrite]]],
    feeds: Feeds,
    score: Callable[[Answers, Answers], float],
    samples: int | None,
    workers: Workers | None,
) -> Iterator[tuple[int, float]]:
    """Yield the variants of all groups that run, each with its score; a group is measured in one session."""
    away = None
    if workers is not None and workers.away:
        made = (switched(original, list(group.values())) for group in groups)
        outputs = [str(t.name) for t in original.outputs]
        away = alone((Lent((*each, outputs, feeds, samples), score, workers) for each in made), workers)
    for group in groups:
        known = None if away is None else next(away)
        if known is not None:
            yield from zip(group, known, strict=True)
            continue
        for board, names in sound(original, group, feeds, samples):
            for step, name in enumerate(names):
                yield name, score(board.expected, board.answers((step,)))


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
