"""What a search over pipelines has tried and found, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxsqueeze.plain import fields_of, plain
from onnxsqueeze.report.ranks import spearman

__all__ = ["AXES", "Figures", "Search", "Try"]

AXES = ("size", "latency", "error")
"""What is predicted of a pipeline before it is tried."""
ENOUGH = 5
"""Tries from which on a rank correlation is given."""


@dataclass(frozen=True)
class Figures:
    """What a model costs and loses: its bytes and its run time as shares of the original's, and its error.

    ``error`` is the relative squared error of the worst output (0.01 is 20 dB) on the feeds that the search chooses on,
    ``drop`` what the user's score loses there, or ``error`` where there is no score. ``packed`` are the bytes after
    ``onnxsqueeze pack`` as a share of the original's, None where nobody asked.
    """

    size: float
    latency: float
    error: float
    drop: float
    packed: float | None = None


@dataclass(frozen=True)
class Try:
    """One pipeline that was run: what it was predicted to be, what it is, and what it is on further feeds.

    ``measured`` is None where the pipeline came to nothing, and ``problem`` says why. ``confirmed`` holds what was lost
    on feeds that nothing was chosen by.
    """

    pipeline: str
    predicted: Figures | None
    measured: Figures | None
    confirmed: float | None = None
    seconds: float = 0.0
    remembered: bool = False
    """Whether it was measured in an earlier search."""
    problem: str = ""
    recipe: str = ""
    """The text of a recipe that repeats it to the byte, for those on the frontier."""


@dataclass(frozen=True)
class Search:
    """A search: what was asked for, all tries, which of them are the frontier (small to accurate), and what was taken.

    ``feeds`` are the numbers of feeds for statistics, choosing and confirming. ``advice`` is what a user would learn
    from the tries, in words.
    """

    asked: str
    tries: tuple[Try, ...]
    frontier: tuple[int, ...]
    chosen: int
    feeds: tuple[int, int, int]
    advice: tuple[str, ...]
    stopped: str
    """Why it came to an end."""
    axis: str
    """The cost that the frontier is drawn over: size, latency, packed, or trade, the geometric mean of the first."""
    score: str
    """The name of the score whose loss ``drop`` and ``confirmed`` are, "" if they are errors."""
    seconds: float

    def cost(self, each: Try) -> float:
        """Return what a try costs on the axis of the frontier, as a share of the original; 1 if it came to nothing."""
        found = each.measured
        if found is None:
            return 1.0
        if self.axis == "trade":
            return math.sqrt(found.size * found.latency)
        return float(getattr(found, self.axis) or 1.0)

    @property
    def correlation(self) -> dict[str, float | None]:
        """Spearman's rank correlation of what was predicted before each try and what was measured then."""
        found: dict[str, float | None] = {}
        for axis in AXES:
            pairs = [
                (getattr(each.predicted, axis), getattr(each.measured, axis))
                for each in self.tries
                if each.predicted is not None and each.measured is not None
            ]
            found[axis] = spearman(pairs) if len(pairs) >= ENOUGH else None
        return found

    def to_dict(self) -> dict[str, object]:
        """Return the search as JSON values."""
        return {**fields_of(self), "correlation": plain(self.correlation)}
