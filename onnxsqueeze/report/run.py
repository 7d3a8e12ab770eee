"""What a run did, as data: costs before and after, deviations per output, every pass with its sites and its skips."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.measure.cost import Cost
from onnxsqueeze.plain import fields_of, plain
from onnxsqueeze.report.search import Search
from onnxsqueeze.runtime.memory import Memory

__all__ = ["Elsewhere", "Report", "Scored", "StepReport", "Timed"]


@dataclass(frozen=True)
class Scored:
    """A user's score of the original and of the result on held-out feeds; higher is better."""

    name: str
    before: float
    after: float

    @property
    def drop(self) -> float:
        """What was lost, in the unit of the score; negative where the result scores higher."""
        return self.before - self.after


@dataclass(frozen=True)
class Timed:
    """The latency of the original and of the result in ms on so many threads, for so many samples at once."""

    threads: int
    batch: int
    before: float
    after: float
    ratio: float

    @property
    def both(self) -> tuple[float, float]:
        """The two in ms."""
        return self.before, self.after


@dataclass(frozen=True)
class Elsewhere:
    """What the result is predicted to do on a target: its latency over the original's, None where the profile has no
    times of its own, and how many places break a rule there.
    """

    target: str
    ratio: float | None
    broken: int


@dataclass(frozen=True)
class StepReport:
    """What one pass did, or why it was rolled back; ``nodes`` and ``bytes`` are (before, after).

    ``implicit`` marks a pass that the pipeline did not name. ``sqnr_db`` is this pass's own error, its result against
    what it was given; None where it was not measured.
    """

    spec: str
    implicit: bool
    done: tuple[Site, ...]
    skipped: tuple[Skip, ...]
    kept: bool
    reason: str | None
    sqnr_db: float | None
    nodes: tuple[int, int]
    bytes: tuple[int, int]
    seconds: float
    notes: tuple[str, ...]
    score: float | None = None
    """The user's score after this pass."""


@dataclass(frozen=True)
class Report:
    """The whole run. ``latency_ms`` holds the medians (original, squeezed), ``latency_ratio`` their paired ratio."""

    model: str
    output: str | None
    pipeline: str
    calibration: str
    held_out: str
    before: Cost
    after: Cost
    latency_ms: tuple[float, float] | None
    latency_ratio: float | None
    deviations: tuple[Deviation, ...]
    steps: tuple[StepReport, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False
    score: Scored | None = None
    """The user's own score of the original and of the result, if there is one."""
    memory: tuple[Memory, Memory] | None = None
    """What the original and the result take at run time, if it was asked for."""
    target: str = ""
    """Name and version of the profile that the plan was made for, and on how many threads and samples at once."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """What the same file is predicted to do on targets, first on the one that it was made for."""
    latencies: tuple[Timed, ...] = ()
    """Latencies on other numbers of threads and of samples at once than ``latency_ms``: feeds as they come on one."""
    search: Search | None = None
    """The search that has found the pipeline, if it was one."""

    @property
    def sqnr_db(self) -> float | None:
        """The SQNR of the worst output in dB, None where nothing was compared; NaN counts as −∞."""
        return min((-math.inf if math.isnan(each.sqnr_db) else each.sqnr_db for each in self.deviations), default=None)

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON values; infinities become "inf" and "-inf", NaN becomes null."""
        search = None if self.search is None else self.search.to_dict()
        return {"sqnr_db": plain(self.sqnr_db), **fields_of(self), "search": search}

    def to_json(self) -> str:
        """Return the report as indented JSON text that ends with a newline."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A path may hold bytes that are no text; as \udc.. they are valid JSON, and the file valid UTF-8.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
