"""What a user wants of a model: limits on what it costs and loses, and what is to be best within them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onnxsqueeze.engine.options import make
from onnxsqueeze.engine.syntax import parse
from onnxsqueeze.errors import UsageError
from onnxsqueeze.report.search import Figures

__all__ = ["NAME", "Auto", "Wish", "is_auto", "wish"]

NAME = "auto"
DROP = 0.005
"""What may be lost where nobody says: 23 dB, or half a point of a score."""
TINY = 1e-12
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}
Amount = float | str | None


@dataclass(frozen=True)
class Auto:
    """The options of ``auto``: each limit is a share of the original, in per cent if it ends so, or an amount."""

    latency: Amount = None
    """The run time that may be left."""
    size: Amount = None
    """The bytes of the file that may be left; 2MB is an amount."""
    packed: Amount = None
    """The bytes that may be left after ``onnxsqueeze pack``."""
    drop: Amount = None
    """What may be lost: of the score, or of how the answers vary; 0.5% where nothing is said."""
    sqnr: float | None = None
    """The same in dB: the least SQNR of the answers."""
    best: Literal["error", "latency", "size", "packed", "trade"] | None = None
    """What is to be least within the limits."""

    name = NAME


@dataclass(frozen=True)
class Wish:
    """Limits by axis (latency, size, packed, drop, error), and the axis that is to be least within them.

    The axis ``trade`` is the geometric mean of size and latency.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    best: str = "error"

    def value(self, found: Figures, axis: str | None = None) -> float:
        """Return what is to be least, or the value of an axis."""
        axis = axis or self.best
        if axis == "trade":
            return math.sqrt(found.size * found.latency)
        value = getattr(found, axis)
        return math.inf if value is None else float(value)

    def excess(self, found: Figures) -> float:
        """Return by how many nats limits are exceeded in all, 0 if they are kept."""
        over = [
            math.log(max(self.value(found, axis), TINY) / limit)
            for axis, limit in self.limits.items()
            if self.value(found, axis) > limit
        ]
        return sum(over)

    def stricter(self, share: float) -> Wish:
        """Return the same wish with limits of so much; those of errors, which differ more, are thrice as strict."""
        powers = {axis: 3 if axis in ("drop", "error") else 1 for axis in self.limits}
        return Wish({axis: limit * share ** powers[axis] for axis, limit in self.limits.items()}, self.best)

    def rank(self, found: Figures) -> tuple[float, float]:
        """Return a key that orders figures: first what exceeds least, then what is best."""
        return self.excess(found), self.value(found)

    def words(self) -> str:
        """Say what is wanted."""
        names = {"error": "loss", "trade": "size and latency", "packed": "packed size"}
        limits = [f"{axis} at most {_limit(axis, limit)}" for axis, limit in self.limits.items()]
        return ", ".join([f"the least {names.get(self.best, self.best)}", *limits])


def is_auto(pipeline: object) -> bool:
    """Whether pipeline text asks for a search; UsageError if it asks for something else besides."""
    if not isinstance(pipeline, str):
        return False
    if pipeline.strip() == NAME:
        return True
    if not pipeline.lstrip().startswith(NAME) and f",{NAME}" not in pipeline.replace(" ", ""):
        return False
    steps = parse(pipeline)
    if all(step.name != NAME for step in steps):
        return False
    if len(steps) > 1:
        raise UsageError("auto stands alone: it chooses the passes itself; leave the others out")
    return True


def wish(text: str, size: int, score: bool, drop: float | None, sqnr: float | None) -> Wish:
    """Return what the text ``auto{...}`` asks for of a model of ``size`` bytes.

    ``drop`` and ``sqnr`` are limits that were given elsewhere. Raises SpecError and UsageError for what cannot be.

    >>> wish("auto{latency=0.5 drop=1%}", 1000, False, None, None)
    Wish(limits={'drop': 0.01, 'latency': 0.5}, best='size')
    """
    (step,) = parse(text)
    auto: Auto = make(Auto, step)
    if auto.drop is not None and auto.sqnr is not None:
        raise UsageError("auto: drop and sqnr say the same in two units: drop one of them")
    limits: dict[str, float] = {}
    if auto.drop is not None or (drop is not None and score):
        limits["drop"] = _share("drop", auto.drop) if auto.drop is not None else float(drop or 0.0)
    least = auto.sqnr if auto.sqnr is not None else sqnr
    if least is not None:
        limits["error"] = 10 ** (-least / 10)
    for axis in ("latency", "size", "packed"):
        value = getattr(auto, axis)
        if value is not None:
            limits[axis] = _share(axis, value, None if axis == "latency" else size)
    costs = [axis for axis in ("size", "latency") if axis not in limits]
    lossy = "drop" in limits or "error" in limits
    if not limits:
        limits["drop"] = DROP
        lossy = True
    best: str
    if auto.best is not None:
        best = "drop" if auto.best == "error" and score else auto.best
    elif not lossy:
        best = "error"
    else:
        best = "trade" if len(costs) == 2 and "packed" not in limits else (costs or ["error"])[0]
    return Wish(limits, best)


def _share(axis: str, value: Amount, size: int | None = None) -> float:
    """Return a limit as a share of the original; amounts in bytes are shares of ``size``."""
    problem = UsageError(
        f"auto: {axis} takes a share like 0.5 or 50%{', or an amount like 2MB' if size else ''}, not {value}"
    )
    if isinstance(value, (int, float)):
        found = float(value)
    else:
        text = str(value).strip().upper()
        try:
            if text.endswith("%"):
                found = float(text[:-1]) / 100
            elif size and text.endswith("B"):
                digits = text[:-1]
                unit = UNITS.get(digits[-1:], 1.0)
                found = float(digits if unit == 1.0 else digits[:-1]) * unit / max(size, 1)
            else:
                raise problem
        except ValueError:
            raise problem from None
    if not 0 < found < math.inf:
        raise problem
    return found


def _limit(axis: str, limit: float) -> str:
    return f"{-10 * math.log10(limit):.1f} dB SQNR" if axis == "error" else f"{100 * limit:.3g} %"
