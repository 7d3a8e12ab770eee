"""How often something happens at most, from how often it was seen."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "missing", "threshold", "upper_bound"]

CONFIDENCE = 0.95
"""How sure a bound is."""


def upper_bound(seen: int, trials: int) -> float:
    """Return the share that with 95 % confidence is not exceeded, of which ``seen`` of ``trials`` were found.

    The one-sided bound of Clopper and Pearson (1934): the p at which Σ_{i ≤ k} C(n, i) pⁱ (1 − p)ⁿ⁻ⁱ = 5 %.

    >>> round(upper_bound(0, 299), 4), upper_bound(3, 3)
    (0.01, 1.0)
    """
    if seen >= trials:
        return 1.0
    low, high = seen / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(seen, trials, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def _at_most(seen: int, trials: int, share: float) -> float:
    """Return the probability of at most ``seen`` in ``trials``, each with the probability ``share``."""
    terms = (
        lgamma(trials + 1) - lgamma(i + 1) - lgamma(trials - i + 1) + i * log(share) + (trials - i) * log1p(-share)
        for i in range(seen + 1)
    )
    return sum(map(exp, terms)) if 0 < share < 1 else float(share <= 0)


def missing(trials: int, limit: float) -> int:
    """Return how many trials more it takes to show at all that a share is under ``limit``: (1 − limit)ⁿ ≤ 5 %."""
    return max(0, ceil(log(1 - CONFIDENCE) / log1p(-limit)) - trials)


def threshold(
    confidence: NDArray[np.float64], wrong: NDArray[np.bool_], limits: Sequence[float], share: float
) -> float | None:
    """Return the lowest of ``limits`` at which at most ``share`` of the inputs leave early and are wrong, or None.

    ``confidence`` and ``wrong`` are of inputs that neither made the answers nor the limits. Limits are tried from the
    highest, each at the 5 % level, until one fails: the bound of the last that passed holds with 95 % confidence
    however many were tried (fixed sequence testing; Bauer 1991, Angelopoulos et al. 2021).
    """
    found = None
    for limit in sorted(set(limits), reverse=True):
        if upper_bound(int(np.sum(wrong & (confidence >= limit))), len(wrong)) > share:
            break
        found = limit
    return found
