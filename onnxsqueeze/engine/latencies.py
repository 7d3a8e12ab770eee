"""How long the original and the result take: on one thread and on all, on feeds as they come and on other batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.report.run import Timed
from onnxsqueeze.runtime.batches import of_batch, samples_in
from onnxsqueeze.runtime.device import CORES
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency

__all__ = ["latencies"]

FIRST = 0.4
"""Processor seconds that the first measurement takes at least."""
SECONDS, ROUNDS = 0.3, 40
"""What each measurement may take besides the first."""
SLOW = 500.0
"""Milliseconds of a run from which a model is timed on feeds as they come alone."""
BATCHES = 3
"""Batch sizes of feeds that are timed."""
Feed = Mapping[str, NDArray[np.generic]]


def latencies(
    models: Sequence[Graph | Path], feeds: Sequence[Feed], recipe: Recipe, progress: Progress
) -> tuple[Timed, ...]:
    """Return the times of feeds as they come on one thread, and then those on other threads and batch sizes.

    The models are the original and the result, or one if they are the same, which is timed on feeds as they come alone,
    as slow ones are. The others are one sample, the first batch sizes of the feeds, and all threads; and what the plan
    is for.
    """
    progress("timing", 0, 1)
    threads, batch = recipe.threads, recipe.batch
    pair = [Session(each, threads=1, exact_sums=False) for each in models]
    used = list(feeds[:8])
    times = latency(pair, used, FIRST, sure=False)
    found = [Timed(1, samples_in(used[0]), times.milliseconds[0], times.milliseconds[-1], times.ratio)]
    if len(models) == 1 or max(times.milliseconds) > SLOW:
        return tuple(found)
    sizes: dict[int, Feed] = {}
    for feed in used:
        sizes.setdefault(samples_in(feed), feed)
    first = next(iter(sizes))
    wanted = [] if len(sizes) == 1 else list(sizes)[:BATCHES]
    one = of_batch(pair[0], sizes[first], 1)
    wanted += [1] if samples_in(one) != first else []
    wanted += [] if batch is None else [batch]
    for size in [each for each in dict.fromkeys(wanted) if each != first]:
        feed = sizes[size] if size in sizes else of_batch(pair[0], sizes[first], size)
        found.append(_timed(pair, feed, 1))
    for count in dict.fromkeys((CORES, threads or CORES)):
        if count > 1:
            more = [Session(each, threads=count, exact_sums=False) for each in models]
            least = {first: sizes[first]} | ({1: one} if samples_in(one) == 1 else {})
            chosen = least | ({batch: of_batch(pair[0], sizes[first], batch)} if batch is not None else {})
            found += [_timed(more, feed, count) for feed in chosen.values()]
    return tuple(found)


def _timed(pair: Sequence[Session], feed: Feed, threads: int) -> Timed:
    times = latency(pair, [feed], SECONDS, threads=threads, most=ROUNDS, sure=False)
    return Timed(threads, samples_in(feed), times.milliseconds[0], times.milliseconds[-1], times.ratio)
