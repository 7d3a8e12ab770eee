"""What the library says of its arguments, said with the flags of the command line."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxsqueeze.report.run import Report

__all__ = ["as_flags", "flagged"]

_FLAGS = {
    'validate="none"': "--validate none",
    "calibration=": "--calib",
    "max_score_drop=": "--max-score-drop",
    "max_memory=": "--max-memory",
    "min_sqnr=": "--min-sqnr",
    "score=": "--score",
    "stats=": "--stats",
}
_ARGUMENT = re.compile("|".join(rf"\b{re.escape(argument)}" for argument in _FLAGS))


def as_flags(text: str) -> str:
    """Return a sentence of the library as a user of the command line reads it.

    >>> as_flags('give calibration=')
    'give --calib'
    """
    return _ARGUMENT.sub(lambda found: _FLAGS[found[0]], text)


def flagged(report: Report) -> Report:
    """Return the report with the flags of the command line in its sentences."""
    steps = tuple(
        replace(
            step,
            reason=None if step.reason is None else as_flags(step.reason),
            skipped=tuple(replace(skip, reason=as_flags(skip.reason)) for skip in step.skipped),
            notes=tuple(map(as_flags, step.notes)),
        )
        for step in report.steps
    )
    return replace(report, steps=steps, notes=tuple(map(as_flags, report.notes)))
