"""What exits see: features of places in a graph and the answers of the whole model, a row an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Instrument
from onnxsqueeze.runtime.shapes import activations
from onnxsqueeze.techniques.exits.cuts import Cut
from onnxsqueeze.techniques.exits.features import MOST
from onnxsqueeze.techniques.exits.split import Depth, with_features

__all__ = ["depths", "gathered", "seen_at"]

Progress = Callable[[str, int, int], None]
ROWS = 16384
"""Inputs that are looked at, at most."""
ANSWERS = 1024
"""Elements of an answer, of which one that is no scores may have no more."""
CLASSES = 4096
EARLIER = 256
"""Features that are taken of each of up to two earlier tensors."""


def depths(graph: Graph, view: View, places: Sequence[Cut], feed: Mapping[str, Any]) -> list[Depth]:
    """Return the places with the shapes that their tensors have on a feed."""
    shapes = activations(graph, feed)
    found = []
    made = {str(t.name): t for node in graph.nodes for t in node.outputs}
    for cut in places:
        shape = shapes[cut.tensor][0] if cut.tensor in shapes else ()
        inferred = view.shape(made[cut.tensor]) or ()
        fixed = len(inferred) == len(shape) and all(isinstance(d, int) for d in inferred[2:])
        found.append((cut.tensor, tuple(shape), MOST, fixed))
    return found


def seen_at(places: Sequence[Depth], number: int) -> list[Depth]:
    """Return what an exit sees: its own tensor, and the means of the two before it."""
    return [*(_earlier(depth) for depth in places[max(0, number - 2) : number]), places[number]]


def _earlier(depth: Depth) -> Depth:
    name, shape, _, _ = depth
    return name, shape, EARLIER, False


def gathered(
    graph: Graph, places: Sequence[Depth], data: Sequence[Mapping[str, Any]], progress: Progress
) -> tuple[dict[Depth, NDArray[Any]], NDArray[Any]]:
    """Return the features of every depth and the answers, a row each."""
    wanted = list(dict.fromkeys([*places, *map(_earlier, places)]))
    copy, names = with_features(graph, wanted)
    answer = str(graph.outputs[0].name)
    session = Instrument(copy)
    found: dict[str, list[Any]] = {name: [] for name in (answer, *names.values())}
    count = 0
    for number, feed in enumerate(data):
        progress("calibrating", number, len(data))
        values = session.run(feed, list(found))
        for name, values_of in found.items():
            values_of.append(np.asarray(values[name], np.float32))
        count += len(found[answer][-1])
        if count >= ROWS:
            break
    rows = {name: np.concatenate(values) for name, values in found.items()}
    if any(len(value) != len(rows[answer]) for value in rows.values()):
        raise UsageError("the answers have other rows than what is inside the model: early exits need one row an input")
    limit = CLASSES if rows[answer].shape[1] > ANSWERS else ANSWERS
    if rows[answer].shape[1] > limit:
        raise UsageError(f"an answer of {rows[answer].shape[1]} numbers is more than pooled features can give")
    return {depth: rows[name] for depth, name in names.items()}, rows[answer].astype(np.float64)
