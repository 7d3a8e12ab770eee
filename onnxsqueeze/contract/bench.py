"""A pass's own experiments: try a choice of sites, and measure its error and its speed on calibration feeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.contract.plan import Site, W
from onnxsqueeze.errors import FeedError, ModelError, PassError, PlaceError
from onnxsqueeze.graph.edit import duplicate, tidy
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, Deviation, Ruler, answer, decibels
from onnxsqueeze.runtime.batches import of_batch
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import apart
from onnxsqueeze.statistics.needs import Need
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.workers import Workers

__all__ = ["Bench"]

Array = NDArray[np.generic]
TRIAL_FEEDS = 4
UNSEEN_FEEDS = 16
TRIAL_WORK = 2e11
"""Multiply-accumulates that measuring variants of layers one by one may take."""
SLOW = 0.25
"""Processor seconds of a run from which on it is the clock that says what measuring may take, and no more the work."""
TRIAL_RUNS = 12
"""How many variants of layers may be measured then."""
LONG = 0.5
"""Processor seconds of a run from which on too few runs are timed to be sure of anything, and so none."""
SLOW_FEEDS = 2
"""On how many feeds a plan is tried then."""


class Bench:
    """What a pass may use in ``select`` and ``tune``: the graph as it came, and feeds to run it on.

    ``original`` is never edited. Errors are taken on up to 4 calibration feeds, evenly spread, against the answers of
    ``original``; the held-out feeds stay out of every decision, so that the report's figures do not flatter.
    """

    def __init__(
        self,
        original: Graph,
        calib: Sequence[dict[str, Array]],
        seed: int,
        progress: Callable[[str, int, int], None],
        known: list[float] | None = None,
        measured: list[float] | None = None,
        ruler: Ruler | None = None,
    ) -> None:
        self.original = original
        self.ruler = Ruler.of(original) if ruler is None else ruler
        """What an error of the answers is."""
        self.stats = Statistics()
        """What was measured for the plan that ``select`` is given."""
        self.calib = calib
        self.teacher: Graph | None = None
        """The model before the first pass that has lost anything, from which a pass may learn; never edited."""
        self.seed = seed
        self.progress = progress
        self.known = [] if known is None else known
        """Times of an earlier run, in order, which are taken before anything is measured."""
        self.measured = [] if measured is None else measured
        """Run-time ratios that ``latency`` has returned; before them, minus the seconds of a run if it is slow."""
        self._seconds = 0.0
        self.keeps: Callable[[Graph], bool] | None = None
        """Whether a graph keeps the limit that the user has set for a score of his own; None if there is none."""
        self.label: Callable[[int, str], Array] | None = None
        """Labels of a calibration feed by its number and their name, for a pass that ``reads`` them."""
        self.workers: Workers | None = None
        """Who measures besides this process."""
        self.notes: list[str] = []
        """What the report should say of the experiments."""

    @cached_property
    def feeds(self) -> list[dict[str, Array]]:
        """The feeds that trials run on."""
        return [self.calib[i] for i in self._tried]

    @cached_property
    def _tried(self) -> list[int]:
        count = min(TRIAL_FEEDS, len(self.calib))
        return [i * len(self.calib) // count for i in range(count)]

    @cached_property
    def slow(self) -> bool:
        """Whether a run takes so long that measuring is bounded by the number of runs.

        A recipe keeps what the clock has said.
        """
        _ = self.expected
        return self._seconds > 0

    @property
    def most(self) -> int | None:
        """How many variants of single layers may be measured, None for all; ``measure`` spreads them evenly."""
        return TRIAL_RUNS if self.slow else None

    def affordable(self, macs: int, variants: int) -> list[dict[str, Array]]:
        """Return the feeds, at least one, on which to measure so many variants of a graph of ``macs`` a feed."""
        if self.slow:
            return self.feeds[:1]
        per_feed = max(macs, 1) * (1.3 * variants + 1)
        return self.feeds[: max(int(TRIAL_WORK // per_feed), 1)]

    def affordable_variants(self, macs: int) -> int:
        """Return how many variants, at least 8, of a graph of ``macs`` a feed may be measured on one feed."""
        if self.slow:
            return TRIAL_RUNS
        return max(int(TRIAL_WORK // (1.3 * max(macs, 1))), 8)

    @cached_property
    def unseen(self) -> list[dict[str, Array]]:
        """Up to 16 calibration feeds that are kept apart, so that a fit has not seen them; ``feeds`` if none is."""
        return [self.calib[i] for i in self.unseen_numbers]

    @cached_property
    def unseen_numbers(self) -> list[int]:
        """The numbers of the calibration feeds in ``unseen``."""
        there = [i for i in range(len(self.calib)) if apart(i)]
        count = min(SLOW_FEEDS if self.slow else UNSEEN_FEEDS, len(there))
        return [there[i * len(there) // count] for i in range(count)] or self._tried

    @cached_property
    def expected(self) -> Answers:
        """The original's answers on ``feeds``, on the first two of them if the model is slow."""
        session = Session(self.original)
        start = time.process_time()
        first = answer(session, None, self.feeds[:1])
        seconds = time.process_time() - start
        if self.known:
            seconds = -self.known.pop(0) if self.known[0] < 0 else 0.0
        if seconds >= SLOW:
            self.measured.append(-seconds)
            self._seconds = seconds
        return first + answer(session, None, self.feeds[1 : SLOW_FEEDS if self._seconds else None])

    @cached_property
    def _expected_unseen(self) -> Answers:
        return answer(self.original, None, self.unseen)

    def variant(self, apply: Callable[[Site[W], Graph], None], sites: Iterable[Site[W]]) -> Graph:
        """Return a copy of the original with these sites applied, by the ``apply`` of a pass.

        Raises PlaceError, which names the site, for what a pass says that it cannot do.
        """
        graph = duplicate(self.original)
        for site in sites:
            try:
                apply(site, graph)
            except (ModelError, PassError) as error:
                raise PlaceError(str(error), site.key, site.action) from error
        tidy(graph)
        return graph

    def deviations(self, graph: Graph) -> tuple[Deviation, ...]:
        """Return how far each output of ``graph`` is from the original's."""
        return self.ruler.compare(self.expected, self._answers(graph))

    def sqnr(self, graph: Graph) -> float:
        """Return the SQNR in dB of the worst output."""
        return decibels(self.error(graph))

    def error(self, graph: Graph) -> float:
        """Return the relative squared error of the worst output.

        It is infinite for NaN, where the graph does not run, and where the user's score falls too far.
        """
        return self._found(graph, self.expected, self.feeds)[1]

    def unseen_error(self, graph: Graph) -> float:
        """Return the same on ``unseen`` for a fit without these, plus two standard errors for how few they are.

        A single feed counts three times.
        """
        expected = self._expected_unseen
        found, error = self._found(graph, expected, self.unseen)
        if not math.isfinite(error):
            return math.inf
        each = np.array([self.ruler.error([one], [other]) for one, other in zip(expected, found, strict=False)])
        mean, spread = float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else float(each.mean())
        margin = 1 + 2 * spread / (mean * len(each) ** 0.5) if 0 < mean < np.inf else 1.0
        return margin * error

    def _found(self, graph: Graph, expected: Answers, feeds: Sequence[dict[str, Array]]) -> tuple[Answers, float]:
        try:
            found = answer(graph, None, feeds[: len(expected)])
        except (FeedError, ModelError):  # the original has run on these feeds
            return [], math.inf
        return found, self.ruler.error(expected, found) if self.keeps is None or self.keeps(graph) else math.inf

    def _answers(self, graph: Graph) -> Answers:
        return answer(graph, None, self.feeds[: len(self.expected)])

    def latency(self, graph: Graph, limit: float = 1.0, seconds: float = 0.5) -> float:
        """Return the run time of ``graph`` over that of the original, as close to ``limit`` as it can be.

        The two run in turn on the threads and batches of the target: by default on one thread, a sample at a time, and
        their processor time counts. The ratio is known to
        an interval (99.9 % sure); its end next to ``limit`` is returned, and ``limit`` itself where that lies within:
        then noise hides on which side the ratio is, and nothing should be decided by it.
        """
        if self.known:
            ratio = self.known.pop(0)
        elif self.slow and self._seconds >= LONG:
            ratio = limit
        else:
            threads, batch = self.original.target.threads, self.original.target.batch or 1
            pair = [Session(g, threads=threads, exact_sums=False) for g in (self.original, graph)]
            found = latency(pair, [of_batch(pair[0], feed, batch) for feed in self.feeds], seconds, threads)
            ratio = min(max(limit, found.low), found.high)
        self.measured.append(ratio)
        return ratio

    def collect(self, graph: Graph, needs: Iterable[Need], part: slice = slice(None)) -> Statistics:
        """Gather statistics of a graph over all calibration feeds, or over a part of them."""
        return collect(graph, needs, self.calib[part], seed=self.seed, progress=self.progress)
