"""What a part of a model is trained on: its inputs and targets, feed by feed or as one pool of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.training.steps import Batch, Steps

__all__ = ["Samples", "pooled"]

CLOSE = 1e-3
"""How near the answers on joined feeds are to those on each, relative to the largest: then samples do not mix."""


@dataclass(frozen=True)
class Samples:
    """Batches as they came, or with ``pool`` all of them joined along their first axis.

    The first ``real`` feeds, or samples of the pool, are the user's; half of each batch is drawn from them.
    """

    feeds: Sequence[Batch]
    real: int
    pool: Batch | None = None

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[Batch]]:
        """Yield batches of about ``size`` samples without end, each as the parts that run at once."""
        if self.pool is not None:
            for chosen in self._choices(len(next(iter(self.pool.values()))), size, rng):
                yield [{name: value[chosen] for name, value in self.pool.items()}]
        each = max((value.shape[0] for value in self.feeds[0].values() if value.ndim), default=1)
        for chosen in self._choices(len(self.feeds), max(size // each, 1), rng):
            yield [self.feeds[i] for i in chosen]

    def all(self) -> Sequence[Batch]:
        """Return all batches, each once."""
        return self.feeds if self.pool is None else [self.pool]

    def _choices(self, count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        more = count - self.real
        part = min(size - size // 2 if more else size, self.real)
        others = _dealt(more, min(size - part, more), rng)
        for chosen in _dealt(self.real, part, rng):
            yield np.concatenate([chosen, self.real + next(others)])


def pooled(steps: Steps, seen: Sequence[Batch], unseen: Sequence[Batch], real: int) -> tuple[Samples, Samples]:
    """Return the samples to train on and those to judge by: joined, if the part treats each sample for itself.

    That is seen from a trial: two feeds are run together and apart. The first ``real`` of ``seen`` are the user's.
    """
    alike = len({tuple((n, v.shape[1:], v.ndim) for n, v in each.items()) for each in (*seen, *unseen)}) == 1
    counts = {len(v) if v.ndim else 0 for v in seen[0].values()}
    if len(seen) < 2 or not alike or len(counts) != 1 or 0 in counts or not _apart(steps, seen[0], seen[1]):
        return Samples(seen, real), Samples(unseen, len(unseen))
    rows = sum(len(next(iter(each.values()))) for each in seen[:real])
    return Samples(seen, rows, _joined(seen)), Samples(unseen, len(unseen), _joined(unseen) if unseen else None)


def _joined(feeds: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def _apart(steps: Steps, one: Batch, other: Batch) -> bool:
    """Whether the outputs on two feeds that are joined are those on each."""
    values = [leaf.start for leaf in steps.leaves]
    try:
        whole = steps.outputs(values, _joined([one, other]))
    except Exception:  # a shape that is fixed somewhere inside
        return False
    for together, *each in zip(whole, *(steps.outputs(values, feed) for feed in (one, other)), strict=True):
        if any(not part.ndim for part in each):
            return False
        expected: NDArray[Any] = np.concatenate(each)
        if together.shape != expected.shape:
            return False
        if np.abs(together - expected).max(initial=0) > CLOSE * np.abs(expected).max(initial=0):
            return False
    return True


def _dealt(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield ever new choices of ``size`` among ``count``, each of them once before any comes again."""
    left: NDArray[np.int64] = np.zeros(0, np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(count)])
        yield left[:size]
        left = left[size:]
