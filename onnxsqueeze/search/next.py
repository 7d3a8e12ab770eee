"""Which pipeline to try next: the one that is expected to gain most, for what the user wants and for the frontier.

The gain of a candidate for a wish is the expected improvement under limits: ``P(limits kept)·E[max(0, best − value)]``
in nats, with independent normal errors of the logarithms (Gardner et al., Bayesian Optimization with Inequality
Constraints, ICML 2014). Where nothing keeps the limits yet, the improvement is over the least excess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnxsqueeze.report.search import Figures
from onnxsqueeze.search.predict import Predictor
from onnxsqueeze.search.space import Candidate
from onnxsqueeze.search.wishes import Wish

__all__ = ["FRONTIER", "LEVELS", "best", "choose", "frontier", "levels", "undominated"]

LEVELS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08)
"""Costs at each of which the frontier is to have a point."""
UNREACHED = 3.0
"""Nats that are to be gained where nothing keeps the limits yet."""
COST = 4.0
"""How many nats of error a nat of cost is worth: a dB of error is as much as 6 % of cost."""
FRONTIER = 0.25
"""What a gain at the frontier is worth beside one for what the user wants."""
NEAR = 1.02
"""What is within this of the best is as good."""
LOSSES = ("error", "drop")
SMALL = 1e-6
"""Errors under this, 60 dB, are as good as none."""
USELESS = 0.1
"""The error, 10 dB, from which on a model is no point of a frontier."""


def levels(axis: str) -> list[Wish]:
    """Return a wish for each point of the frontier: the least error, under 10 dB, at so much of a cost."""
    return [Wish({axis: level, "error": USELESS}, "error") for level in LEVELS]


def best(wish: Wish, known: Mapping[Candidate, Figures]) -> Candidate | None:
    """Return the candidate that is best for a wish of those that were measured.

    Among those that are within 2 % of the best, the one that loses least is taken, or, where the loss itself is to be
    least, the one that costs least.
    """
    first = min(known, key=lambda each: (*wish.rank(known[each]), each.pipeline), default=None)
    if first is None or wish.excess(known[first]) > 0:
        return first
    limit = max(NEAR * wish.value(known[first]), SMALL if wish.best in LOSSES else 0.0)
    near = [each for each, found in known.items() if wish.excess(found) == 0 and wish.value(found) <= limit]
    other = Wish({}, "trade" if wish.best in LOSSES else "error")
    return min(near, key=lambda each: (other.value(known[each]), each.pipeline))


def frontier(known: Mapping[Candidate, Figures], axis: str) -> list[Candidate]:
    """Return up to 9 candidates that are best at some cost, the smallest first: less error costs more."""
    found: list[Candidate] = []
    for wish in levels(axis):
        first = best(wish, known)
        if first is not None and wish.excess(known[first]) == 0:
            found.append(first)
    return sorted(dict.fromkeys(found), key=lambda each: wish_value(known[each], axis))


def undominated(known: Mapping[Candidate, Figures]) -> list[Candidate]:
    """Return the candidates than which no other is smaller, faster and more accurate at once."""
    keys = {each: (found.size, found.latency, found.error) for each, found in known.items()}
    return [
        each for each, own in keys.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in keys.values())
    ]  # fmt: skip


def wish_value(found: Figures, axis: str) -> float:
    """Return the cost of figures on an axis."""
    return Wish({}, axis).value(found)


def choose(
    wishes: Sequence[tuple[Wish, float]],
    pool: Iterable[Candidate],
    predictor: Predictor,
    seconds: Callable[[Candidate], float],
    least: float,
) -> tuple[Candidate, int] | None:
    """Return the candidate that is expected to gain most for its ``seconds``, None if none gains ``least`` nats.

    Gains are those for the wish to which it brings most, each with its weight; the number of that wish comes along.
    """
    found: tuple[float, str, Candidate, int] | None = None
    incumbents = [_incumbent(wish, predictor) for wish, _ in wishes]
    for each in pool:
        if each in predictor.known:
            continue
        predicted, spread, time = predictor(each), predictor.spread(each), 1.0 + seconds(each)
        logs = {axis: _log(Wish({}, axis).value(predicted)) for axis in spread}
        for number, (wish, weight) in enumerate(wishes):
            gain = weight * _gain(wish, logs, spread, incumbents[number]) if weight else 0.0
            if gain >= least and (found is None or (gain / time, each.pipeline) > found[:2]):
                found = gain / time, each.pipeline, each, number
    return None if found is None else found[2:]


def _incumbent(wish: Wish, predictor: Predictor) -> float | None:
    """Return the logarithm of the best value that keeps the limits, None if nothing does."""
    first = best(wish, predictor.known)
    if first is None or wish.excess(predictor.known[first]) > 0:
        return None
    return _log(wish.value(predictor.known[first]))


def _gain(wish: Wish, logs: Mapping[str, float], spread: Mapping[str, float], incumbent: float | None) -> float:
    kept = 1.0
    for axis, limit in wish.limits.items():
        kept *= _chance((math.log(limit) - logs[axis]) / spread[axis] - 0.5)
    if kept < 1e-3:
        return 0.0
    value = logs[wish.best]
    if incumbent is None:
        return kept * (UNREACHED - 0.2 * min(value, 0.0))
    sigma = spread[wish.best]
    z = (incumbent - value) / sigma
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    weight = 1.0 if wish.best in LOSSES else COST
    return kept * weight * sigma * (z * _chance(z) + density)


def _chance(z: float) -> float:
    """Return the share of a normal distribution that lies under so many standard deviations."""
    return 0.5 * math.erfc(-z * math.sqrt(0.5))


def _log(value: float) -> float:
    return math.log(min(max(value, SMALL), 1e6))
