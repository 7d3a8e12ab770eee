"""What the parts of a model that is cut in two take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session, shortened

__all__ = ["times"]

ROUNDS = 15
"""Rounds in which the parts and the whole are timed in turn."""


def times(graph: Graph, parts: tuple[Graph, dict[str, str]], behind: Graph, data: Any) -> tuple[float, float]:
    """Return the time of the stem and of the rest as shares of that of the whole model, for one input on one thread."""
    first, names = parts
    whole, front, back = (Session(each, threads=1) for each in (graph, first, behind))
    feeds = [_one(whole, data[i]) for i in range(min(8, len(data)))]
    wanted, given = list(names.values()), str(behind.inputs[0].name)
    shares = []
    for number in range(ROUNDS):
        feed = feeds[number % len(feeds)]
        crossing = {given: np.asarray(front.run(feed, wanted)[names["crossing"]])}
        runs = [_least(call) for call in (lambda: whole.run(feed), lambda: front.run(feed), lambda: back.run(crossing))]  # noqa: B023
        shares.append((runs[1] / runs[0], runs[2] / runs[0]))
    return median(each[0] for each in shares), median(each[1] for each in shares)


def _one(session: Session, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first input of a feed, or all of it where the model takes no other number."""
    return dict(shortened(session, feed, 1))


def _least(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)
