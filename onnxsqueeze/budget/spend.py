"""One budget over all layers: every layer has options, each with a cost and an error; which to take, all at once.

The options of a layer are reduced to their lower convex hull; walking all hulls at once in the order of the error that
a unit of saved cost adds is the Lagrangian ``min Σ error + μ·Σ cost`` for every μ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Literal, TypeVar

__all__ = [
    "DEFAULT_ERROR",
    "By",
    "Option",
    "combined",
    "frontier",
    "hull",
    "settled",
    "spend",
    "uniform",
    "within",
    "worth",
]

By = Literal["macs", "params", "latency"]
Found = TypeVar("Found")

DEFAULT_ERROR = 0.002
"""The relative squared error of the answers, 27 dB, that a pass may make whose user gave no budget.

At 0.01 (20 dB) detectors lost 1 to 2 points of their score; see docs/report.md.
"""
LEAST = 0.05
"""The share of the cost that the whole of that error has to save."""
FLOOR = 1e-9
"""Relative squared errors under this, 90 dB, are rounding noise of the algebra and count as none."""


@dataclass(frozen=True)
class Option:
    """A way to treat a layer, what it costs and the error that it makes; ``choice`` is the caller's.

    Errors that differ by rounding noise are equal: those under ``FLOOR`` are 0, the others have six digits. So the
    last bits of an eigenvalue, which other processors compute otherwise, decide nothing; what costs less does.
    """

    cost: float
    error: float
    choice: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", settled(self.error))


def settled(error: float) -> float:
    """Return a relative squared error without its rounding noise.

    >>> settled(3e-16), settled(0.1234567891)
    (0.0, 0.123457)
    """
    return 0.0 if 0 < error < FLOOR else float(f"{error:.6g}")


def frontier(options: Iterable[Option]) -> list[Option]:
    """Return the options that no other beats in cost and error, dearest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best[::-1]


def hull(options: Iterable[Option]) -> list[Option]:
    """Return the lower convex hull of the options, dearest first: each step adds more error per cost saved."""
    kept: list[Option] = []
    for option in frontier(options):
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def _slope(dear: Option, cheap: Option) -> float:
    saved = dear.cost - cheap.cost
    return (cheap.error - dear.error) / saved if saved > 0 else inf


def combined(layers: Sequence[Sequence[Option]]) -> list[Option]:
    """Return the hull of several layers taken together; a choice is the tuple of theirs."""
    hulls = [hull(options) for options in layers]
    at = [0] * len(hulls)
    steps = sorted(
        (_slope(h[i], h[i + 1]), n, i) for n, h in enumerate(hulls) for i in range(len(h) - 1)
    )  # within a hull the slopes rise, so its steps stay in order
    found = [_sum(hulls, at)]
    for _, n, i in steps:
        at[n] = i + 1
        found.append(_sum(hulls, at))
    return found


def _sum(hulls: Sequence[Sequence[Option]], at: Sequence[int]) -> Option:
    chosen = [h[i] for h, i in zip(hulls, at, strict=True)]
    return Option(sum(o.cost for o in chosen), sum(o.error for o in chosen), tuple(o.choice for o in chosen))


def spend(layers: Sequence[Sequence[Option]], *, cost: float = inf, error: float = inf) -> list[Option]:
    """Choose an option per layer: the least total error within ``cost``, or the least total cost within ``error``.

    When even the cheapest options exceed ``cost`` they are returned; when the budget is ``error``, the dearest are
    the start, whatever their error. The result is never worse than the best that treats all layers alike.
    """
    hulls = [hull(options) for options in layers]
    at = [0] * len(hulls)
    steps = sorted((_slope(h[i], h[i + 1]), n, i) for n, h in enumerate(hulls) for i in range(len(h) - 1))
    total_cost = sum(h[0].cost for h in hulls)
    total_error = sum(h[0].error for h in hulls)
    closed: set[int] = set()
    for _, n, i in steps:
        if cost < inf and total_cost <= cost:
            break
        added = hulls[n][i + 1].error - hulls[n][i].error
        if n in closed or total_error + added > error:
            closed.add(n)
            continue
        at[n] = i + 1
        total_error += added
        total_cost -= hulls[n][i].cost - hulls[n][i + 1].cost
    chosen = [h[i] for h, i in zip(hulls, at, strict=True)]
    if cost == inf:
        return chosen
    chosen = _spend_rest(layers, chosen, cost)
    alike = uniform(layers, cost)
    return alike if alike is not None and _error(alike) < _error(chosen) else chosen


def _spend_rest(layers: Sequence[Sequence[Option]], chosen: list[Option], cost: float) -> list[Option]:
    """Take back, while the budget allows it, the options that save the most error for what is left."""
    chosen = list(chosen)
    frontiers = [frontier(options) for options in layers]
    while True:
        left = cost - sum(o.cost for o in chosen)
        moves = [
            (chosen[n].error - option.error, -n, option)
            for n, options in enumerate(frontiers)
            for option in options
            if option.error < chosen[n].error and option.cost - chosen[n].cost <= left
        ]
        if not moves:
            return chosen
        _, n, option = max(moves, key=lambda move: move[:2])
        chosen[-n] = option


def uniform(layers: Sequence[Sequence[Option]], cost: float) -> list[Option] | None:
    """Give every layer the same share of its dearest cost, the largest that fits ``cost``; None if none fits."""
    frontiers = [frontier(options) for options in layers]
    shares = sorted({o.cost / f[0].cost for f in frontiers for o in f if f[0].cost > 0}, reverse=True)
    for share in shares:
        chosen = [next((o for o in f if o.cost <= share * f[0].cost * (1 + 1e-12)), f[-1]) for f in frontiers]
        if sum(o.cost for o in chosen) <= cost:
            return chosen
    return None


def within(
    budget: float,
    solve: Callable[[float], Found],
    error_of: Callable[[Found], float],
    nothing: Found,
    *,
    tries: int,
    grow: int = 0,
) -> tuple[Found, float]:
    """Return what ``solve`` finds under a limit of predicted error and whose measured error keeps the budget, and that.

    The limit starts at the budget and shrinks, by a little more than the measured error exceeds the budget, until that
    holds. After ``tries`` measurements that failed it is 0, and if even that does not hold, ``nothing`` is left to do:
    what was not measured is never returned. Where under three quarters of the budget are used, up to ``grow`` times
    a larger limit is tried, under the least one that was too large.
    """
    limit, over = budget, inf
    for left in range(tries, -1, -1):
        found = solve(limit if left else 0.0)
        error = error_of(found)
        if error <= budget:
            break
        over = limit
        limit *= 0.8 * budget / error if isfinite(error) else 0.1
    else:
        return nothing, 0.0
    for _ in range(grow if left else 0):
        if not 0 < error < 0.75 * budget:
            break
        wider = min(limit * 0.95 * budget / error, sqrt(limit * over))
        larger = solve(wider)
        if (measured := error_of(larger)) <= budget:
            found, error, limit = larger, measured, wider
        else:
            over = wider
    return found, error


def worth(saved: float, error: float) -> bool:
    """Return whether a share of the cost is worth a relative squared error that nobody asked for.

    >>> worth(0.05, DEFAULT_ERROR), worth(0.02, DEFAULT_ERROR), worth(0.02, DEFAULT_ERROR / 3)
    (True, False, True)
    """
    return saved >= LEAST * error / DEFAULT_ERROR


def _error(options: Sequence[Option]) -> float:
    return sum(o.error for o in options)
