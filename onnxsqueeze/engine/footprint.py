"""What the original and the result take of memory at run time, and the refusal of a result that takes too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.errors import ToleranceError, UsageError
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.report.run import Report
from onnxsqueeze.runtime.memory import Memory, memory
from onnxsqueeze.words import amount

__all__ = ["footprints", "refuse_memory"]


def footprints(
    original: Graph | Path, graph: Graph, feeds: Sequence[Mapping[str, NDArray[np.generic]]]
) -> tuple[Memory, Memory] | None:
    """Return what both take on the first feed, each in a process of its own; None without one, or if it is not told."""
    if not len(feeds):
        return None
    before, after = (memory(each, feeds[0]) for each in (original, graph))
    return None if before is None or after is None else (before, after)


def refuse_memory(report: Report, most: float | None) -> None:
    """Raise ToleranceError if the result takes more than ``most`` bytes, UsageError if that was not measured."""
    if most is None:
        return
    if report.memory is None:
        raise UsageError(
            "max_memory= cannot be checked: it takes feeds, a run that compares, and a system with /proc; "
            "nothing was written"
        )
    before, after = report.memory
    if after.resident > most:
        raise ToleranceError(
            f"the result takes {amount(after.resident, 'B')} of memory at run time, over the {amount(most, 'B')} asked "
            f"for (the original takes {amount(before.resident, 'B')}); nothing was written. Let more layers compute in "
            "integers, or use lowrank or prune",
            report,
        )
