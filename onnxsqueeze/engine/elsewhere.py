"""What the same file is predicted to do on the targets that it was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.analysis.check import breaches
from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.errors import SqueezeError
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.forecast import Forecast
from onnxsqueeze.report.run import Elsewhere
from onnxsqueeze.targets.profiles import NATIVE, find, names

__all__ = ["elsewhere", "native_note"]

NATIVE_NOTE = (
    "native took the rules and times of {}, which fits this processor and was measured on another machine: "
    "onnxsqueeze profile-target -o mine.toml measures this one, and target=mine.toml goes by it"
)


def native_note(opened: Opened) -> list[str]:
    """Return what to say where the target is this machine: nothing on it was measured."""
    return [NATIVE_NOTE.format(opened.original.target.name)] if opened.recipe.target == NATIVE else []


def elsewhere(original: Graph, graph: Graph, feed: Mapping[str, NDArray[np.generic]] | None) -> tuple[Elsewhere, ...]:
    """Return, target by target, the predicted latency over that of the original, and how many rules are broken.

    The first is the target that the plan was made for. Latencies are predicted from the times of each profile, on
    ``feed``; there are none without it, and for profiles without times of their own.
    """
    own = original.target
    before = after = None
    with suppress(SqueezeError):
        before, after = (Forecast(each, feed) for each in (original, graph)) if feed is not None else (None, None)
    found = []
    for target in (own, *(find(name) for name in names() if name not in (own.name, NATIVE))):
        ratio = None
        if before is not None and after is not None and before.complete and target.timed:
            ratio = after.nanoseconds(target.times) / max(before.nanoseconds(target.times), 1.0)
        broken = sum(not breach.notice for breach in breaches(graph, target))
        found.append(Elsewhere(target.name, ratio, broken))
    return tuple(found)
