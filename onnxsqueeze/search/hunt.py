"""The search itself: first what every search tries, then what is expected to gain most, until nothing is."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.report.search import Figures, Search, Try
from onnxsqueeze.search import next as choice
from onnxsqueeze.search.advice import advice
from onnxsqueeze.search.predict import Predictor
from onnxsqueeze.search.space import Candidate, candidates, hopeless
from onnxsqueeze.search.store import Kept
from onnxsqueeze.search.trials import Trials
from onnxsqueeze.search.wishes import Wish

__all__ = ["EFFORTS", "Hunt"]

EFFORTS = {"quick": 60.0, "default": 300.0, "max": 1200.0}
"""Seconds that a search may take in all."""
RESERVE = 0.1
"""The share of them that is left for the end: measuring once more and writing."""
ENOUGH = {60.0: 0.12, 300.0: 0.05, 1200.0: 0.01}
"""The expected gain in nats under which a search ends."""
MARGIN = 0.97
"""The share of a limit that plans are searched under, so that they keep it when they are measured once more."""
LEAST = 0.02
"""What a try has to bring to be worth it."""
PATIENCE = 9
"""Tries in a row that bring nothing for what the user wants, and end the search for it."""
MUCH = 12
"""Tries that are much to start from."""
ADDED = 4
"""Tries in a row that bring nothing where there was much to start from."""
EXHAUSTED = "nothing further is expected to gain much"
ABREAST = 2
"""Tries that are under way at once: each is chosen while the others are only predicted. So many workers have something
to do, and the search goes the same way with fewer."""
FIRST = ("float", "int8", "4 bits", "4 bits in integers")
"""Forms of numbers that every search tries: whatever is taken is held against them."""
ALONE = ("lowrank", "prune")
"""Forms of structure that every search tries alone."""


class Hunt:
    """Tries pipelines for wishes, each with its weight, and for a frontier beside them."""

    def __init__(
        self, trials: Trials, opened: Opened, wishes: Sequence[tuple[Wish, float]], seconds: float, start: float
    ) -> None:
        self.trials, self.opened, self.seconds = trials, opened, seconds
        self.deadline = start + seconds * (1 - RESERVE)
        self.axis = _axis(wishes[0][0])
        self.wishes = [(each.stricter(MARGIN), weight) for each, weight in wishes]
        self.wishes += [(each, choice.FRONTIER) for each in choice.levels(self.axis)]
        self.predictor = Predictor(_graph(opened))
        self.tries: dict[str, Try] = {}
        self.pool = candidates(opened.data is not None, trials.packed)
        self.unscored = opened.run.score is None
        self.stopped = EXHAUSTED
        self.patience = max(PATIENCE // len(wishes), 2)
        self._failed: dict[int, int] = {}
        self._of: dict[str, Candidate] = {}
        self._begun: deque[tuple[list[Candidate], int | None]] = deque()

    def go(self, progress: Callable[[str, int, int], None]) -> None:
        """Try until nothing is expected to gain much, time is up or the user interrupts."""
        self._remember()
        first = self._first()
        try:
            while True:
                while len(self._begun) < ABREAST and (found := next(first, None) or self._next()) is not None:
                    self._begin(found[0], found[1], progress)
                if not self._begun:
                    break
                if self.predictor.known and not self.trials.begun and self._late(self._begun[0][0][-1]):
                    break
                self._end()
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt or not self.predictor.known:
                raise
            self.stopped = "it was interrupted"

    def _next(self) -> tuple[list[Candidate], int] | None:
        """Return what to try next, for which wish; those that have begun are believed to be what is predicted."""
        believed = Predictor(self.predictor.graph, dict(self.predictor.known))
        for group, _ in self._begun:
            for each in group:
                believed.told(each, believed(each))
        expected = partial(self._expected, believed)
        found = choice.choose(self.wishes, self.pool, believed, expected, ENOUGH[self.seconds])
        if found is None:
            self.stopped = EXHAUSTED
        if found is None or self._late(found[0]):
            return None
        each, number = found
        bare = [each.bare] if each.structure and each.bare not in believed.known and each.bare in self.pool else []
        return list(dict.fromkeys([*bare, each])), number

    def _late(self, each: Candidate) -> bool:
        """Whether time would be up before a candidate was run."""
        late = time.perf_counter() + self._expected(self.predictor, each) > self.deadline
        if late:
            self.stopped = f"the time for it, {self.seconds / 60:g} min, was up"
        return late

    def _begin(self, group: list[Candidate], number: int | None, progress: Callable[[str, int, int], None]) -> None:
        count = len(self.tries) + sum(len(each) for each, _ in self._begun)
        progress(f"try {count + 1}: {group[-1].pipeline}", 0, 0)
        self._begun.append((group, number))
        self.trials.begin(*(each.pipeline for each in group))

    def _end(self) -> None:
        """Learn what came of the candidates that have begun first."""
        group, number = self._begun.popleft()
        before = None if number is None else self._reached(number)
        for each, kept in zip(group, self.trials.finish(), strict=False):
            self._note(each, kept, self.predictor(each), False)
        if number is not None and before is not None:
            self._judge(number, before)

    def _remember(self) -> None:
        """Take over what earlier searches have measured; where that is much, little is added to it."""
        of = {each.pipeline: each for each in self.pool}
        for pipeline, kept in self.trials.known().items():
            if pipeline in of:
                self._note(of[pipeline], kept, None, True)
        if len(self.predictor.known) >= MUCH and self.seconds <= EFFORTS["default"]:
            self.patience = min(self.patience, ADDED)
            self.wishes = [(wish, weight if weight == 1 else 0.0) for wish, weight in self.wishes]

    def _reached(self, number: int) -> tuple[float, float]:
        """Return how far a wish is from its limits, and what is best within them."""
        wish = self.wishes[number][0]
        first = choice.best(wish, self.predictor.known)
        return (math.inf, math.inf) if first is None else wish.rank(self.predictor.known[first])

    def _judge(self, number: int, before: tuple[float, float]) -> None:
        """Give a wish up for which several tries in a row have brought nothing.

        What has begun for a point of the frontier is then forgotten; for what the user wants it is finished.
        """
        wish, weight = self.wishes[number]
        excess, value = self._reached(number)
        better = excess < before[0] - LEAST or (excess == 0 and value < before[1] * (1 - LEAST))
        self._failed[number] = 0 if better else self._failed.get(number, 0) + 1
        if self._failed[number] >= (self.patience if weight == 1 else 2):
            self.wishes[number] = wish, 0.0
            for position in reversed(range(len(self._begun))):
                if self._begun[position][1] == number and weight != 1:
                    del self._begun[position]
                    self.trials.drop(position)

    def _first(self) -> Iterator[tuple[list[Candidate], None]]:
        """Yield what every search tries: forms of numbers, and each form of structure alone as it suits the wish."""
        found = [each for each in self.pool if not each.structure and each.numbers in FIRST]
        wanted = self.wishes[0][0]
        for structure in ("", *ALONE):
            if structure:
                found = [each for each in self.pool if each.structure == structure and each.numbers == "float"]
                known = any(each in self.predictor.known for each in found)
                found = [] if known or not found else [min(found, key=lambda each: wanted.rank(self.predictor(each)))]
            for each in found:
                if each.pipeline not in self.tries and not (
                    self.predictor.known and time.perf_counter() > self.deadline
                ):
                    yield [each], None

    def confirmed(self, pipeline: str, wanted: Wish, latency: float | None = None, error: float | None = None) -> bool:
        """Whether a plan keeps the limits on the feeds that confirm too, and with what was measured since."""
        found, lost = self.tries[pipeline].measured, self.tries[pipeline].confirmed
        assert found is not None
        drop = max(found.drop, found.drop if lost is None else lost)
        if self.unscored:
            drop = error = max(drop, drop if error is None else error)
        else:
            error = max(found.error, found.error if error is None else error)
        return wanted.excess(replace(found, latency=latency or found.latency, drop=drop, error=error)) == 0

    def ranked(self, wanted: Wish) -> list[str]:
        """Return the pipelines that were measured, the best first."""
        known = dict(self.predictor.known)
        order = []
        while (first := choice.best(wanted, known)) is not None:
            order.append(first.pipeline)
            del known[first]
        return order

    def told(self, chosen: str, wanted: Wish, text: str, seconds: float) -> Search:
        """Return the search as data, with a recipe for each point of the frontier."""
        trials = self.trials
        points = [each.pipeline for each in choice.frontier(self.predictor.known, self.axis)]
        for pipeline in points:
            self.tries[pipeline] = replace(self.tries[pipeline], recipe=trials.recipe(pipeline).to_toml())
        useful = {each.pipeline for each in choice.undominated(self.predictor.known)}
        for pipeline in self.tries:
            if pipeline not in (*points, *useful, chosen):
                trials.store.forget(pipeline)
        order = list(self.tries)
        return Search(
            asked=f"{text}: {wanted.words()}",
            tries=tuple(self.tries.values()),
            frontier=tuple(order.index(each) for each in points),
            chosen=order.index(chosen),
            feeds=(len(self.opened.run.calib), len(trials.choosing), len(trials.confirming)),
            advice=tuple(advice(self.tries[chosen], self.predictor.known, wanted, self.opened)),
            stopped=self.stopped,
            axis=self.axis,
            score="" if self.unscored or self.opened.scorer is None else self.opened.scorer.name,
            seconds=seconds,
        )

    def _note(self, each: Candidate, kept: Kept, predicted: Figures | None, remembered: bool) -> None:
        self._of[each.pipeline] = each
        self.tries[each.pipeline] = Try(
            each.pipeline, predicted, kept.found, kept.confirmed, kept.seconds, remembered, kept.problem
        )
        if kept.found is not None:
            self.predictor.told(each, kept.found)
        else:
            self.pool = [other for other in self.pool if not hopeless(other, each, kept.problem)]

    def _expected(self, known: Predictor, each: Candidate) -> float:
        """Return the seconds that a try is expected to take: the mean of those alike."""
        found = 0.0
        if each.structure and each.bare not in known.known:
            found += _mean([each.seconds for name, each in self.tries.items() if self._of[name].structure])
        if each.numbers != "float":
            found += _mean([each.seconds for name, each in self.tries.items() if not self._of[name].structure])
        return found


def _graph(opened: Opened) -> float:
    """Return the share of the model's file that is no weights."""
    return float(min(encode(opened.original, skeleton=True).ByteSize() / max(opened.before.bytes, 1), 0.9))


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 1.0


def _axis(wanted: Wish) -> str:
    """Return the cost that the frontier is drawn over."""
    for axis in ("packed", "latency", "size"):
        if axis in wanted.limits or wanted.best == axis:
            return axis
    return "trade"
