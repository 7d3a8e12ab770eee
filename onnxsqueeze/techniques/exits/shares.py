"""What the parts of a model that is cut in two take."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session, shortened
from onnxsqueeze.runtime.timing import milliseconds

__all__ = ["times"]

ROUNDS = 15
"""Rounds in which the parts and the whole are timed in turn."""


def times(graph: Graph, parts: tuple[Graph, dict[str, str]], behind: Graph, data: Any) -> tuple[float, float]:
    """Return the time of the stem and of the rest as shares of that of the whole model, for one input on one thread."""
    first, names = parts
    whole, front, back = (Session(each, threads=1) for each in (graph, first, behind))
    feeds = [shortened(whole, data[i], 1) for i in range(min(8, len(data)))]
    wanted, given = list(names.values()), str(behind.inputs[0].name)
    shares = []
    for number in range(ROUNDS):
        feed = feeds[number % len(feeds)]
        crossing = {given: np.asarray(front.run(feed, wanted)[names["crossing"]])}
        turns = ((whole, feed), (front, feed), (back, crossing))
        runs = [min(milliseconds(session, given_to) for _ in range(3)) for session, given_to in turns]
        shares.append((runs[1] / runs[0], runs[2] / runs[0]))
    return median(each[0] for each in shares), median(each[1] for each in shares)
