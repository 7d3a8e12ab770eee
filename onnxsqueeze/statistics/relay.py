"""Runs of a graph that is edited from front to back: what lies before the edits is computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.cut import Part, before, behind, varying

__all__ = ["Relay"]

Array = NDArray[np.generic]
HELD = 1 << 25
"""Bytes of tensors that wait for the next run, of all feeds together as the first one says; with more of them it starts
further ahead."""


class Relay:
    """A graph and feeds on which it is run again and again, each time from where the last run has ended.

    Between two runs the nodes that the last one was told of may get other weights, and they alone.
    """

    def __init__(self, graph: Graph, feeds: Sequence[Mapping[str, Array]], held: int = HELD) -> None:
        self.graph, self.feeds, self.held = graph, feeds, held
        self._known: list[dict[str, Array]] = [{} for _ in feeds]
        """What waits for the next run, by feed."""

    def run(self, wanted: Sequence[str], changed: Collection[str]) -> Iterator[dict[str, object]]:
        """Yield the values of the tensors ``wanted`` on every feed; the nodes with keys in ``changed`` are next."""
        if not self._known:
            return
        here = {**self.feeds[0], **self._known[0]}
        done = (before(self.graph, wanted, here) & varying(self.graph)) - behind(self.graph, changed)
        made = {str(t.name) for node in self.graph.nodes if id(node) in done for t in node.outputs if t.name}
        left = before(self.graph, [str(t.name) for t in self.graph.outputs], {*here, *made})
        read = {str(t.name) for node in self.graph.nodes if id(node) in left for t in edit.reads(node)}
        carried = sorted(made & read)
        asked = [name for name in dict.fromkeys((*wanted, *carried)) if name not in here]
        session = Part(self.graph, asked, here) if asked else None
        goes_on = False
        own = {str(t.name) for t in self.graph.inputs}
        fed = any(name in own for name in (*wanted, *(session.inputs if session is not None else ())))
        for i, known in enumerate(self._known):
            given = {**self.feeds[i], **known} if fed else known
            values: dict[str, object] = dict(given)
            if session is not None:
                values |= session.run(given, asked)
            kept = {name: values[name] for name in (*known, *carried) if name in read}
            arrays = {name: value for name, value in kept.items() if isinstance(value, np.ndarray)}
            if not i:
                size = sum(value.nbytes for value in arrays.values()) * len(self._known)
                goes_on = len(arrays) == len(kept) and size <= self.held
            if goes_on:
                self._known[i] = arrays
            yield {name: values[name] for name in wanted}
