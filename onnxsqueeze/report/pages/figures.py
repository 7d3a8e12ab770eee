"""Figures of a page as numbers for its templates: bars, histograms, curves, heat; fields are 100 wide and 60 high."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxsqueeze.words import decibels

if TYPE_CHECKING:
    from onnxsqueeze.report.sensitivity import LayerStudy, Sensitivity

__all__ = ["FIGURES", "bars", "curves", "figures", "heat", "profile", "scatter", "span"]

BARS = 20
"""Bars of one ranking."""
FIGURES = 24
"""Histograms and curves of one report."""
CURVES = 24
"""Curves of the most sensitive layers."""
EXACT = 120.0
"""Where what is exact is drawn, in dB."""
WHITE = 60.0
"""The SQNR in dB from which on a cell of the heat map is not red at all."""
EDGE = 80.0
"""The SQNR in dB from which on points and curves stand at the edge, so that what matters gets the room."""


def bars(rows: Iterable[tuple[str, float, str]], label: Any) -> list[dict[str, object]]:
    """Return the largest values as bars, their lengths in per cent."""
    ordered = sorted(rows, key=lambda row: -row[1])[:BARS]
    largest = max((row[1] for row in ordered), default=0.0)
    return [
        {"name": name, "value": label(value), "length": 100 * value / largest if largest else 0, "note": note}
        for name, value, note in ordered
    ]


def figures(key: str, detail: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the histogram (``low``, ``high``, ``counts``, maybe with ``range``) and the curve of a site.

    A curve has ``x`` and ``y``, and maybe the ``chosen`` x, a ``label`` that says what x counts and a ``note`` that
    stands below in place of what was done there.
    """
    found: list[dict[str, object]] = []
    histogram, curve = detail.get("histogram"), detail.get("curve")
    if isinstance(histogram, Mapping) and len(histogram.get("counts", ())):
        found.append({"name": key, "kind": "histogram", **_histogram(histogram, detail.get("range"))})
    if isinstance(curve, Mapping) and len(curve.get("x", ())):
        xs, ys = ([float(value) for value in curve[axis]] for axis in ("x", "y"))
        low, high = min(xs), max(xs)
        chosen = [float(curve["chosen"])] if "chosen" in curve and high > low else []
        found.append({
            "name": key, "kind": "curve", "line": _line(xs, ys), "low": f"{low:.3g}", "high": f"{high:.3g}",
            "marks": _marks(chosen, low, high),
            "chosen": " ".join([*(f"{x:.3g}" for x in chosen), str(curve.get("label", ""))]).strip(),
            **({"note": str(curve["note"])} if "note" in curve else {}),
        })  # fmt: skip
    return found


def _marks(values: Iterable[float], low: float, high: float) -> list[float]:
    return [100 * (min(max(value, low), high) - low) / (high - low) for value in values]


def _histogram(histogram: Mapping[str, Any], chosen: object) -> dict[str, object]:
    """Return bars (x, width, height) in a field of 100 x 60, as high as the roots of the counts, and range marks."""
    counts = [float(count) for count in histogram["counts"]]
    low, high = float(histogram["low"]), float(histogram["high"])
    width, top = 100 / len(counts), max(counts) or 1.0
    limits = [float(limit) for limit in chosen] if isinstance(chosen, (list, tuple)) and high > low else []
    return {
        "bars": [(i * width, width, 60 * math.sqrt(count / top)) for i, count in enumerate(counts)],
        "marks": _marks(limits, low, high),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "chosen": " … ".join(f"{limit:.3g}" for limit in limits),
    }


def _line(xs: Iterable[float], ys: Iterable[float]) -> str:
    """Return the points of a polyline in a field of 100 x 60."""
    x, y = np.asarray(list(xs), float), np.asarray(list(ys), float)
    wide, high = float(np.ptp(x)) or 1.0, float(np.ptp(y)) or 1.0
    return " ".join(
        f"{100 * (u - x.min()) / wide:.2f},{60 - 60 * (v - y.min()) / high:.2f}" for u, v in zip(x, y, strict=True)
    )


def profile(along: Iterable[Any], origin: Any) -> dict[str, object] | None:
    """Return the SQNR along the graph as a line in a field of 100 x 60; exact is drawn as 100 dB."""
    falls = list(along)
    if len(falls) < 2:
        return None
    values = [min(max(fall.sqnr_db, 0.0), 100.0) for fall in falls]
    step = 100 / (len(falls) - 1)
    points = " ".join(f"{i * step:.3f},{60 - 0.6 * value:.2f}" for i, value in enumerate(values))
    mark = next((i * step for i, fall in enumerate(falls) if fall is origin or fall == origin), None)
    return {"points": points, "mark": mark, "first": falls[0].tensor, "last": falls[-1].tensor}


# Sensitivity


def span(found: Sensitivity) -> tuple[float, float]:
    """Return the lowest and the highest SQNR in dB of the layers with curves."""
    points = [p for layer in found.ranked[:CURVES] for p in layer.points]
    values = [min(_db(error), EDGE) for p in points for error in (p.predicted, p.measured) if error is not None]
    return (min(values), max(values)) if values else (0.0, EDGE)


def heat(found: Sensitivity) -> list[tuple[LayerStudy, list[tuple[float, str, float]], list[tuple[float, str]]]]:
    """Return per layer and level what was measured (a key to sort by, text, red in per cent) and predicted."""
    measured = [_db(p.measured) for layer in found.layers for p in layer.points if p.measured is not None]
    low, high = (min(measured), min(max(measured), WHITE)) if measured else (0.0, 1.0)
    rows = []
    for layer in found.layers:
        cells: list[tuple[float, str, float]] = []
        predicted: list[tuple[float, str]] = []
        for label in found.levels:
            point = layer.at(label)
            if point is None or point.measured is None:
                cells.append((-EXACT, "", 0.0))
            else:
                value = _db(point.measured)
                share = 75 * max(high - value, 0.0) / (high - low) if high > low else 0.0
                cells.append((-value, decibels(point.measured), round(share, 1)))
            error = None if point is None else point.predicted
            predicted.append((-EXACT, "") if error is None else (-_db(error), decibels(error)))
        rows.append((layer, cells, predicted))
    return rows


def scatter(found: Sensitivity) -> dict[str, object] | None:
    """Return a point per layer and level (x, y, number of the level, text) and the ends of both axes in dB."""
    known = [
        (
            min(_db(point.predicted), EDGE),
            min(_db(point.measured), EDGE),
            min(number, 4),
            f"{layer.name or layer.key}, {label}",
        )
        for layer in found.layers
        for number, label in enumerate(found.levels)
        if (point := layer.at(label)) is not None and point.predicted is not None and point.measured is not None
    ]
    if len(known) < 2:
        return None
    xs, ys = [each[0] for each in known], [each[1] for each in known]
    points = [
        (
            96 - 92 * (x - min(xs)) / ((max(xs) - min(xs)) or 1),
            4 + 52 * (y - min(ys)) / ((max(ys) - min(ys)) or 1),
            tone,
            name,
        )
        for x, y, tone, name in known
    ]
    ends = {"low": max(xs), "high": min(xs), "bottom": max(ys), "top": min(ys)}
    return {"points": points, **{name: f"{value:.0f}" for name, value in ends.items()}}


def curves(found: Sensitivity) -> list[dict[str, str]]:
    """Return the curves of the most sensitive layers, all in the scale of ``span``."""
    low, high = span(found)
    made = []
    for layer in found.ranked[:CURVES]:
        if len(layer.points) < 2:
            continue
        made.append({
            "name": layer.name or layer.key,
            "measured": _levels([p.measured for p in layer.points], low, high),
            "predicted": _levels([p.predicted for p in layer.points], low, high),
            "first": f"{layer.points[0].label}: {decibels(layer.points[0].measured)} dB",
            "last": f"{layer.points[-1].label}: {decibels(layer.points[-1].measured)} dB",
        })  # fmt: skip
    return made


def _levels(errors: Sequence[float | None], low: float, high: float) -> str:
    """Return a polyline over the levels, empty if one is not known."""
    if any(error is None for error in errors):
        return ""
    step, height = 100 / (len(errors) - 1), (high - low) or 1.0
    return " ".join(
        f"{i * step:.2f},{58 - 56 * (min(_db(error), EDGE) - low) / height:.2f}"
        for i, error in enumerate(errors)
        if error is not None
    )


def _db(error: float) -> float:
    return min(-10 * math.log10(error), EXACT) if 0 < error < math.inf else EXACT if error <= 0 else 0.0
