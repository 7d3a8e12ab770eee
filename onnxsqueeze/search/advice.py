"""What a user would learn from the tries of a search, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.report.search import Figures, Try
from onnxsqueeze.search.space import Candidate
from onnxsqueeze.search.wishes import Wish
from onnxsqueeze.targets.profiles import DEFAULT, NATIVE
from onnxsqueeze.words import decibels

__all__ = ["advice"]

FASTER = 0.95
"""A share of the run time under which something counts as faster."""
ANSWERS = 0.03
"""The error, 15 dB, up to which a plan is worth to be named."""


def advice(chosen: Try, known: Mapping[Candidate, Figures], wanted: Wish, opened: Opened) -> Iterator[str]:
    """Yield sentences for the report: what the search had no data for, and what does not pay on this target."""
    if opened.data is None:
        yield (
            "without calibration data only forms of numbers were tried, on random feeds: with calibration=, layers are "
            "factored and pruned too, and losses mean something"
        )
    timed = "latency" in wanted.limits or wanted.best in ("latency", "trade")
    if timed and opened.recipe.target not in (None, NATIVE, DEFAULT):
        yield "latency was measured on this machine, which may not be the target: limit the size for others"
    integers = known.get(Candidate("", 1.0, "int8"))
    if integers is not None and integers.latency > FASTER:
        told = f"int8 saves no time here ({100 * integers.latency:.0f} % of the latency)"
        other = min(
            ((each, found) for each, found in known.items() if found.latency < FASTER and found.error < ANSWERS),
            key=lambda pair: pair[1].latency,
            default=None,
        )
        if other is None:
            yield f"{told}, and nothing else that was tried does at over 15 dB: it makes the file smaller"
        else:
            each, found = other
            yield (
                f"{told}: {each.pipeline} does, with {100 * found.latency:.0f} % of the latency at "
                f"{decibels(found.error)} dB SQNR"
            )
    lost = chosen.confirmed
    if lost is not None and chosen.measured is not None and "drop" not in wanted.limits:
        error = chosen.measured.drop
        if lost > 2 * max(error, 1e-6):
            yield (
                f"on feeds that nothing was chosen by, {decibels(lost)} dB SQNR instead of {decibels(error)}: "
                "more calibration data would make the choice surer"
            )
