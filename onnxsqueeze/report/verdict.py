"""How far the answers moved, in words: per output one sentence, and where the error is largest."""

from __future__ import annotations

import math

from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.report.run import Report
from onnxsqueeze.words import change, db

__all__ = ["sentence", "verdict", "where"]


def sentence(each: Deviation) -> str:
    """Return what a user would ask first of an output, "" if the figures say all: ``same class in 99.6 % of 512``."""
    if each.agreement is not None and each.kind == "rows":
        return f"{_percent(each.agreement)} of {each.rows} rows are found again"
    if each.agreement is not None:
        return f"same label in {_percent(each.agreement)} of {each.rows}"
    if each.top1 is not None and each.rows:
        told = f"same class in {_percent(each.top1)} of {each.rows}"
        return told if each.kl is None else f"{told}, {each.kl:.2g} nats apart"
    if each.kind == "values" and math.isfinite(each.sqnr_db) and each.reason:
        return f"within {_percent(10 ** (-each.sqnr_db / 20))} of how it varies"
    return ""


def where(each: Deviation) -> str:
    """Return where the error of an output is largest, and how sure the figure is; "" if nothing can be said."""
    parts = []
    if each.worst_feed is not None:
        place = f", {each.worst_channel}" if each.worst_channel else ""
        parts.append(f"worst on feed {each.worst_feed}{place}")
    if each.interval_db is not None and each.interval_db[1] - each.interval_db[0] >= 0.1:
        low, high = each.interval_db
        parts.append(f"few feeds: {db(low)} to {db(high)} dB with 95 %")
    return "; ".join(parts)


def verdict(report: Report) -> str:
    """Return in one sentence what a run has brought and what it has cost."""
    before, after = report.before, report.after
    gains = [change(before.bytes, after.bytes, "smaller")]
    if report.latency_ratio is not None:
        gains.append(change(1.0, report.latency_ratio, "faster"))
    told = " and ".join(gain for gain in gains if gain) or "no smaller"
    if report.sqnr_db is None:
        return f"The model is {told}; its answers were not compared."
    worst = min(report.deviations, key=lambda each: -math.inf if math.isnan(each.sqnr_db) else each.sqnr_db)
    answers = (
        "its answers are the same" if report.sqnr_db == math.inf else f"its answers are at {db(report.sqnr_db)} dB SQNR"
    )
    said = "" if report.sqnr_db == math.inf else sentence(worst)
    score = report.score
    scored = f", {score.name} is {score.after:.4g} instead of {score.before:.4g}" if score is not None else ""
    return f"The model is {told}; {answers}{f', {said}' if said else ''}{scored}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 0.9995 or share == 1 else f"{100 * share:.5g} %"
