"""The opset that a pass writes for, and the proof that the model in it is the same."""

from __future__ import annotations

import math

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.engine import promises
from onnxsqueeze.engine.run import Run
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.opset import lower_opset, raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import decibels
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.measured import Statistics

__all__ = ["in_opset"]

CONVERTED = 60.0
"""A raised or lowered opset under this SQNR in dB is another model: an operator was misread."""


def in_opset(pass_: Pass, graph: Graph, run: Run, notes: list[str]) -> Graph | None:
    """Return the graph in an opset of the pass if its own is none and the pass has something to do, else None."""
    raises = graph.opset < pass_.min_opset
    if not raises and graph.opset <= (pass_.max_opset or graph.opset):
        return None
    # without statistics a plan is quick; on a copy, since a plan may be one that breaks its promise to only look
    if not any(isinstance(entry, Site) for entry in promises.plan(pass_, View(graph.copy()), Statistics())):
        return None
    try:
        found = raise_opset(graph, pass_.min_opset) if raises else lower_opset(graph, pass_.max_opset or 1)
    except ModelError as error:
        if raises:
            raise
        notes.append(f"opset {graph.opset} stays, though not all that {pass_.name} writes is known there: {error}")
        return None
    if run.check and run.reference:
        low = _converted(graph, found, run)
        if low < CONVERTED:
            raise ModelError(
                f"opset {found.opset} instead of {graph.opset} changes the model's answers ({low:.1f} dB SQNR); "
                f"export the model for opset {found.opset}"
            )
    notes.append(f"opset {'raised' if raises else 'lowered'} from {graph.opset} to {found.opset}")
    return found


def _converted(graph: Graph, raised: Graph, run: Run) -> float:
    """Return the SQNR in dB between both, without optimizations, so that they compute the same way, if they run so."""
    for optimize in ("none", "all"):
        sessions = [Session(each, optimize=optimize) for each in (graph, raised)]
        try:
            return decibels(run.ruler.error(*([session.run(feed) for feed in run.held[:2]] for session in sessions)))
        except FeedError:
            continue
    return -math.inf
