"""The tries of a search as points of a curve and rows of a table, for the page."""

from __future__ import annotations

import math

from onnxsqueeze.report.frontier import lost, summary
from onnxsqueeze.report.search import Search, Try
from onnxsqueeze.words import decibels

__all__ = ["tried"]

NAMES = {"trade": "the geometric mean of size and latency", "packed": "packed size"}
BEST, WORST = 60.0, 0.0
"""The SQNR in dB between which points are drawn; others stand at the edge."""


def tried(search: Search) -> dict[str, object]:
    """Return the points of all tries (x and y in a field of 100 x 60), the line of the frontier, and the rows."""
    shown = [(number, each) for number, each in enumerate(search.tries) if each.measured is not None]
    costs = {number: search.cost(each) for number, each in shown}
    low, high = min(costs.values(), default=0.0), max(costs.values(), default=1.0)
    kinds = {number: _kind(number, search) for number in range(len(search.tries))}
    points = [
        {
            "number": number,
            "kind": kinds[number],
            "x": 2 + 96 * (math.log(costs[number] / low) / math.log(high / low) if high > low > 0 else 0.5),
            "y": 58 - 56 * (_db(each) - WORST) / (BEST - WORST),
            "title": f"{each.pipeline}: {_share(costs[number])}, {_db(each):.1f} dB",
        }
        for number, each in shown
    ]
    line = sorted((each for each in points if each["kind"] != "other"), key=lambda each: float(str(each["x"])))
    return {
        "asked": search.asked,
        "summary": summary(search),
        "ranks": ", ".join(f"{axis} {rank:.2f}" for axis, rank in search.correlation.items() if rank is not None),
        "axis": NAMES.get(search.axis, search.axis),
        "points": sorted(points, key=lambda each: each["kind"] != "other"),
        "line": " ".join(f"{each['x']:.2f},{each['y']:.2f}" for each in line),
        "left": _share(low),
        "right": _share(high),
        "bottom": f"{WORST:.0f}",
        "top": f"{BEST:.0f}",
        "rows": [_row(number, each, kinds[number], search) for number, each in enumerate(search.tries)],
    }


def _kind(number: int, search: Search) -> str:
    return "chosen" if number == search.chosen else "frontier" if number in search.frontier else "other"


def _row(number: int, each: Try, kind: str, search: Search) -> dict[str, object]:
    found = each.measured
    note = {"chosen": "taken", "frontier": "frontier"}.get(kind, "remembered" if each.remembered else "")
    size = None if found is None else found.size if found.packed is None else found.packed
    return {
        "number": number,
        "kind": kind,
        "pipeline": each.pipeline,
        "recipe": each.recipe,
        "size": "" if size is None else _share(size),
        "latency": "" if found is None else _share(found.latency),
        "error": "" if found is None else decibels(found.error),
        "confirmed": lost(each, search),
        "note": each.problem or note,
    }


def _db(each: Try) -> float:
    error = 0.0 if each.measured is None else each.measured.error
    return min(max(-10 * math.log10(error), WORST), BEST) if error > 0 else BEST


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
