"""Moments over two graphs at once: what an edited graph feeds its layers against what the original answers there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import MASK
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.cut import Part
from onnxsqueeze.statistics.accumulate import input_rows
from onnxsqueeze.statistics.needs import Gram
from onnxsqueeze.statistics.relay import Relay

__all__ = ["Cross", "Pair", "Targets", "accumulate", "targets"]

Array = NDArray[np.generic]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Asks for regressors x, the input rows of layers of the edited graph, against a target y of the original.

    x are the rows of all ``inputs`` side by side; y is the tensor ``target`` of the original less the tensors
    ``less`` of the edited graph, channels along ``axis``. With ``keep`` it is those channels of the target alone.
    """

    inputs: tuple[Gram, ...]
    target: str
    less: tuple[str, ...] = ()
    axis: int = -1
    keep: tuple[int, ...] | None = None


@dataclass
class Cross:
    """``n``, ``Σx``, ``Σxxᵀ``, ``Σy``, ``Σyxᵀ`` and ``Σ‖y‖²`` over rows."""

    n: int = 0
    x: Matrix = field(default_factory=lambda: np.zeros(0))
    xx: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    y: Matrix = field(default_factory=lambda: np.zeros(0))
    yx: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    yy: float = 0.0

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Add rows."""
        if self.n == 0:
            o, k = y.shape[1], x.shape[1]
            self.x, self.xx, self.y, self.yx = np.zeros(k), np.zeros((k, k)), np.zeros(o), np.zeros((o, k))
        self.x = self.x + x.sum(0, dtype=np.float64)
        self.xx += x.T @ x
        self.y += y.sum(0, dtype=np.float64)
        self.yx += y.T @ x
        self.n += len(x)
        self.yy += float(np.einsum("ij,ij->", y, y, dtype=np.float64))

    def merge(self, other: Cross) -> Cross:
        """Return the moments of both sets of rows."""
        if not self.n or not other.n:
            return self if self.n else other
        return Cross(
            self.n + other.n,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.yx + other.yx,
            self.yy + other.yy,
        )

    def error(self, weight: Matrix, bias: Matrix) -> float:
        """Return the mean of ``‖y − W·x − b‖²`` per row."""
        quadratic = float(np.sum((weight @ self.xx) * weight) - 2 * np.sum(weight * self.yx)) + self.yy
        linear = float(2 * bias @ (weight @ self.x - self.y) + self.n * bias @ bias)
        return max(quadratic + linear, 0.0) / max(self.n, 1)


Targets = dict[tuple[str, int, tuple[int, ...] | None], list[NDArray[np.float32]]]


def targets(original: Graph, pairs: Sequence[Pair], feeds: Sequence[dict[str, Array]], rows: int, seed: int) -> Targets:
    """Return the rows of every target on every feed, at most ``rows`` of each over all feeds."""
    names = list(dict.fromkeys(pair.target for pair in pairs))
    session = Part(original, names, {})
    found: Targets = {(pair.target, pair.axis, pair.keep): [] for pair in pairs}
    for i, feed in enumerate(feeds):
        values = session.run(feed, names)
        for (name, axis, keep), taken in found.items():
            rows_of = _rows(values[name], Gram(name, axis), rows // len(feeds), [seed, i])
            taken.append(rows_of if keep is None else rows_of[:, list(keep)])
    return found


def accumulate(
    relay: Relay, pairs: Sequence[Pair], members: Collection[str], expected: Targets, rows: int, seed: int
) -> list[tuple[Cross, Cross]]:
    """Run the edited graph on every feed and return the moments of every pair over the even and over the odd feeds.

    ``members`` are the keys of the nodes that will get other weights by them. ``expected`` is what ``targets`` returned
    for the same feeds, rows and seed: x and y are taken at the same positions. A pair whose shapes do not match on a
    feed gets no rows from it.
    """
    reads = list(dict.fromkeys(n for pair in pairs for n in (*(g.tensor for g in pair.inputs), *pair.less)))
    found = [(Cross(), Cross()) for _ in pairs]
    for i, given in enumerate(relay.run(reads, members)):
        taken: dict[Gram, NDArray[np.float32]] = {}
        for pair, halves in zip(pairs, found, strict=True):
            y = expected[pair.target, pair.axis, pair.keep][i]
            _add(halves[i % 2], pair, y, given, taken, rows // len(relay.feeds), [seed, i])
    return found


def _rows(value: object, gram: Gram, rows: int, seed: list[int]) -> NDArray[np.float32]:
    # the same seed and the same number of positions give the same rows of x and y
    return input_rows(np.asarray(value), gram, max(rows, 64), np.random.default_rng(seed)).astype(np.float32)


def _add(
    cross: Cross,
    pair: Pair,
    y: NDArray[np.float32],
    given: Mapping[str, object],
    taken: dict[Gram, NDArray[np.float32]],
    rows: int,
    seed: list[int],
) -> None:
    """Add the rows of a feed; ``taken`` are those that another pair has read as well."""
    for name in pair.less:
        other = _rows(given[name], Gram(name, pair.axis), rows, seed)
        if other.shape != y.shape:
            return
        y = y - other
    for gram in pair.inputs:
        if gram not in taken:
            taken[gram] = _rows(given[gram.tensor], gram, rows, seed)
    parts = [taken[gram] for gram in pair.inputs]
    if any(len(part) != len(y) for part in parts):
        return
    x = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    usual = (np.abs(x) < MASK).all(1) & (np.abs(y) < MASK).all(1)
    cross.add(x[usual], y[usual])
