"""Statistics of chunks of feeds, added up along one tree: the sums do not depend on who measured which chunk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from onnxsqueeze.errors import UsageError
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import PARTS, Moments

__all__ = ["Partial"]

Node = tuple[int, int]
"""A level and a place: node (l, k) holds the chunks from k·2ˡ to (k + 1)·2ˡ − 1, as far as there are any."""


@dataclass
class Partial:
    """What is known of the ``chunks`` chunks of one data set, by node of a binary tree over their numbers.

    Two nodes become their parent as soon as both are known, always the left plus the right, and a node without a right
    neighbour is its own parent. So the root holds the same bits whatever the order in which chunks arrive, and whoever
    measures them; what waits is one node a level for chunks in order. ``key`` is a digest of all that decides the
    numbers, ``stage`` the pipeline text that has led to the graph.
    """

    key: str
    stage: str
    chunks: int
    nodes: dict[Node, Statistics] = field(default_factory=dict)

    def add(self, chunk: int, found: Statistics) -> None:
        """Add the statistics of one chunk; UsageError if they are there already."""
        if any(chunk in part for part in self.known()):
            raise UsageError(f"chunk {chunk} of the calibration data is there twice")
        self._insert((0, chunk), _doubled(found))

    def merge(self, other: Partial) -> Partial:
        """Return what both know; UsageError if they are of other data, another model, or know the same chunk."""
        if (self.key, self.stage, self.chunks) != (other.key, other.stage, other.chunks):
            raise UsageError(
                "the parts are of different runs: model, calibration data, pipeline, seed and versions have to be one"
            )
        both = replace(self, nodes=dict(self.nodes))
        for node, statistics in sorted(other.nodes.items()):
            span = _span(node, self.chunks)
            if any(span.start < part.stop and part.start < span.stop for part in both.known()):
                raise UsageError(f"two parts hold the chunks {words(span)}: give each part once")
            both._insert(node, statistics)
        return both

    def known(self) -> list[range]:
        """Return which chunks are there."""
        return sorted((_span(node, self.chunks) for node in self.nodes), key=lambda span: span.start)

    def missing(self) -> list[range]:
        """Return which chunks are not there."""
        found, at = [], 0
        for span in [*self.known(), range(self.chunks, self.chunks)]:
            if at < span.start:
                found.append(range(at, span.start))
            at = span.stop
        return found

    def so_far(self) -> Statistics:
        """Return the sum over what is there, the right-most nodes first: all of it, were there no more chunks."""
        parts = [self.nodes[node] for node in sorted(self.nodes, key=lambda node: _span(node, self.chunks).start)]
        return reduce(lambda right, left: left.merge(right), reversed(parts), Statistics())

    def whole(self) -> Statistics:
        """Return the sum over all chunks. Raises UsageError that names those that are missing."""
        if gaps := self.missing():
            lost = ", ".join(map(words, gaps))
            raise UsageError(f"of {self.chunks} chunks of the calibration data these are missing: {lost}")
        return next(iter(self.nodes.values()))

    def _insert(self, node: Node, statistics: Statistics) -> None:
        while True:
            level, place = node
            if place == 0 and 1 << level >= self.chunks:
                break
            sibling = (level, place ^ 1)
            if place % 2 == 0 and sibling[1] << level >= self.chunks:
                pass
            elif sibling in self.nodes:
                other = self.nodes.pop(sibling)
                statistics = other.merge(statistics) if place % 2 else statistics.merge(other)
            else:
                break
            node = (level + 1, place // 2)
        self.nodes[node] = statistics


def words(span: range) -> str:
    """Return the numbers of chunks as a user reads them.

    >>> words(range(3, 6)), words(range(3, 4))
    ('3 to 5', '3')
    """
    return str(span.start) if len(span) == 1 else f"{span.start} to {span.stop - 1}"


def _span(node: Node, chunks: int) -> range:
    level, place = node
    return range(place << level, min((place + 1) << level, chunks))


def _doubled(found: Statistics) -> Statistics:
    """Return the statistics with all sums in float64, as files hold them: what is read again adds up alike."""
    return Statistics(found.ranges, {need: _in_float64(moments) for need, moments in found.moments.items()})


def _in_float64(moments: Moments) -> Moments:
    parts = {part: value.astype(np.float64) for part in PARTS if (value := getattr(moments, part)) is not None}
    held = None if moments.held is None else _in_float64(moments.held)
    return replace(moments, total=moments.total.astype(np.float64), **parts, held=held)
