"""How long models take."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, inf
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.errors import SqueezeError
from onnxsqueeze.runtime.session import Session

__all__ = ["Latency", "latency", "milliseconds", "profile"]

CONFIDENCE = 0.999
"""How sure the interval of a ratio of times is."""
LEAST = 11
"""Rounds that are timed at least, unless a run takes over half a second: from 11 on there is an interval."""
FEW = 5
"""Rounds that show a ratio."""
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
"""Seconds of this thread, where the system counts them finely enough."""


@dataclass(frozen=True)
class Latency:
    """The processor time of sessions that ran in turn: ``milliseconds`` of each for a feed, the mean over the feeds of
    the least time of each, and the last over the first, which is ``ratio``.

    With ``CONFIDENCE`` the median ratio of a round lies from ``low`` to ``high``, whatever the distribution: the
    interval between two order statistics of the rounds (the sign test).
    """

    milliseconds: tuple[float, ...]
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The last session's time over the first's."""
        return self.milliseconds[-1] / self.milliseconds[0]


def latency(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, NDArray[np.generic]]],
    seconds: float = 1.0,
    threads: int = 1,
    most: int = 500,
    sure: bool = True,
) -> Latency:
    """Time sessions of as many ``threads`` in turn on the same feeds, by the processor time of this thread.

    That time does not run while the machine does something else; with more threads (0: all) the clock on the wall
    counts, and the machine should be idle. There are at most so many rounds. Each times every session on one feed, best
    of three (once, if a run takes over 20 ms). Each feed has at least three rounds, two feeds if a run takes over
    20 ms, one feed from 500 ms on; one round is all if a run takes over 1 s. ``seconds`` are processor time.
    What need not be ``sure`` has five rounds at least, and no interval.
    """
    rounds: list[list[float]] = []
    clocks = None if threads == 1 else (time.perf_counter,) * 3
    first = max(milliseconds(session, feeds[0], clocks) for session in sessions)
    repeat = 3 if first < 20 else 1
    used = feeds if first < 20 else feeds[:2] if first < 500 else feeds[:1]
    least = max(3 * len(used), LEAST if sure else FEW) if first < 500 else 3 if first < 1000 else 1
    spent = 0.0
    while (spent < 1000 * seconds and len(rounds) < most) or len(rounds) < least:
        feed = used[len(rounds) % len(used)]
        runs = [[milliseconds(session, feed, clocks) for _ in range(repeat)] for session in sessions]
        rounds.append([min(times) for times in runs])
        spent += sum(map(sum, runs))
    best = [
        [min(times) for times in zip(*rounds[i :: len(used)], strict=True)] for i in range(min(len(used), len(rounds)))
    ]
    low, high = _interval([times[-1] / times[0] for times in rounds])
    return Latency(tuple(sum(times) / len(best) for times in zip(*best, strict=True)), low, high)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return order statistics between which the median lies with ``CONFIDENCE``; all numbers if there are too few."""
    ordered, count = sorted(values), len(values)
    outside, chance = -1, 0.0
    while 2 * (chance := chance + comb(count, outside + 1) / 2**count) <= 1 - CONFIDENCE:
        outside += 1
    return (ordered[outside], ordered[-1 - outside]) if outside >= 0 else (0.0, inf)


def milliseconds(
    session: Session, feed: Mapping[str, NDArray[np.generic]], clocks: Sequence[Callable[[], float]] | None = None
) -> float:
    """Return the time of one run of a session: by these ``clocks``, or the processor time of this thread."""
    for clock in (_clock, _clock, time.perf_counter) if clocks is None else clocks:
        start = clock()
        session.run(feed)
        if (passed := clock() - start) > 0:  # the time of a thread is sometimes brought up to date only later
            return passed * 1000
    return 1e-6


def profile(
    model: onnx.ModelProto, folder: Path | None, feeds: Sequence[Mapping[str, NDArray[np.generic]]], runs: int = 8
) -> tuple[dict[tuple[str, str], float], float]:
    """Run the model with ONNX Runtime's profiler; return median milliseconds per (name, operator), and of a run.

    The nodes are those that ONNX Runtime has made of the model: a fused one carries the name of one of its nodes, or
    of the tensor that it makes. Two runs more are made to warm up, and not counted. Raises SqueezeError if the
    temporary folder is full.
    """
    with tempfile.TemporaryDirectory() as where:
        session = Session(model, folder, threads=1, profile=Path(where) / "profile")
        for i in range(runs + 2):
            session.run(feeds[i % min(len(feeds), runs)])
        try:
            events = json.loads(Path(session.end_profile()).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # ONNX Runtime says nothing of what it cannot write
            raise SqueezeError(
                f"ONNX Runtime could not write its profile to {tempfile.gettempdir()}: make room there, or set TMPDIR"
            ) from None
    nodes: dict[tuple[str, str], list[float]] = {}
    whole: list[float] = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            whole.append(event["dur"] / 1000)
        elif event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = re.sub(r"(_token_\d+|_nchwc)*$", "", name.removesuffix("_kernel_time"))
            nodes.setdefault((name, str(event["args"].get("op_name", ""))), []).append(event["dur"] / 1000)
    return {key: median(_per_run(times, runs + 2)[2:]) for key, times in nodes.items()}, median(whole[2:])


def _per_run(times: Sequence[float], runs: int) -> list[float]:
    """Sum what one node took in each run, in which it may run several times; fewer runs count as none at all."""
    parts = max(1, len(times) // runs)
    sums = [sum(times[i : i + parts]) for i in range(0, len(times), parts)]
    return sums + [0.0] * (runs - len(sums))
