"""Whether what a pass has made of a graph may stay: checked, loaded, run, and its answers compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import onnx

from onnxsqueeze.arrays import Array
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine.run import Run
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import tensors
from onnxsqueeze.measure.answers import Answers, answer, decibels
from onnxsqueeze.runtime.session import Session, shortened

__all__ = ["CollapseError", "culprits", "judge", "objection_to"]

P = TypeVar("P", bound=Hashable)

COLLAPSE = 3.0
"""A pass whose worst output falls under this SQNR in dB has wrecked the model and is rolled back.

Half of what the answers vary by is error then. Over the plans of ``benchmarks/ruler.py`` every one under it has lost
more than a point of its task's score, and those that lose 30 points are all under it.
"""
INVENTED = -20.0
"""The same on made-up feeds, which say little: errors ten times as large as what the answers vary by."""
LOSSLESS = 60.0
"""A pass that says it is lossless, and whose answers are under this SQNR in dB, is not: rounding alone costs less."""
NOISE = 3.0
"""The dB under the model's own noise of rounding that are rounding still."""
SEEN = 8
"""Calibration feeds on which a lossless pass is judged besides the held-out ones."""
SEEN_SLOW = 2
"""The same of a model whose runs take long."""
SAMPLES = 2
"""Samples of each of them that are run."""


class CollapseError(ModelError):
    """The answers are so far away that the model is wrecked, or that what the pass bounds does not hold."""


def judge(pass_: Pass, graph: Graph, given: Graph, run: Run) -> float | None:
    """Return this pass's own SQNR in dB, None without feeds; ModelError says why it must be rolled back."""
    _check(graph, given)
    before = _seen(given, run) if pass_.lossless and run.reference else None
    try:
        session = Session(graph)
        if not run.reference:
            return None
        found = answer(session, None, run.held, run.progress)
        after = [] if before is None else answer(session, None, before[1])
    except (ModelError, FeedError) as error:
        raise ModelError(f"the result does not run: {error}") from error
    low = decibels(run.ruler.error(run.reference, found))
    if low < (INVENTED if run.invented else COLLAPSE):
        raise CollapseError(f"the answers collapse to {low:.1f} dB SQNR")
    own = decibels(run.ruler.error(run.previous, found))
    floor = pass_.floor()
    if floor is not None and own < floor and not run.invented:
        raise CollapseError(f"the answers are at {own:.1f} dB SQNR on feeds that were not used to calibrate")
    if before is not None:
        _refuse_loss(given, before, after, own, run)
        run.seen = graph, after, before[1]
    run.previous = found
    return own


def culprits(places: Sequence[P], works: Callable[[set[P]], bool], most: int) -> set[P]:
    """Return places without which it works, as few as ``most`` trials find, given that with all it does not.

    ``works(left)`` tries it without some places. A part of the places that works is taken; one that does not is
    halved, down to single places, which are left out: about 2·log₂ n trials for each place that fails.
    """
    left = set(places)
    parts = [list(places)]
    trials = 0
    while parts and trials < most:
        part = parts.pop()
        whole = len(part) == len(places)
        trials += not whole
        if not whole and works(left - set(part)):
            left -= set(part)
        elif len(part) > 1:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return left


def _seen(given: Graph, run: Run) -> tuple[Answers, list[Mapping[str, Array]]]:
    """Return the answers of what a lossless pass is given on a few samples of some calibration feeds, and these."""
    if run.seen is not None and run.seen[0] is given:
        return run.seen[1], run.seen[2]
    count = min(SEEN_SLOW if run.slow else SEEN, len(run.calib))
    session = Session(given)
    feeds = [shortened(session, run.calib[i * len(run.calib) // count], SAMPLES) for i in range(count)]
    return answer(session, None, feeds), feeds


def _refuse_loss(
    given: Graph, before: tuple[Answers, list[Mapping[str, Array]]], after: Answers, own: float, run: Run
) -> None:
    """Raise ModelError if the answers on held-out and on some calibration feeds have moved by more than rounding."""
    answers, feeds = before
    worst = min(own, decibels(run.ruler.error(answers, after)))
    if worst < LOSSLESS and worst < _noise(given, feeds, answers, run) - NOISE:
        raise ModelError(f"its answers should stay the same, and are at {worst:.1f} dB SQNR")


def _noise(graph: Graph, feeds: Sequence[Mapping[str, Array]], answers: Answers, run: Run) -> float:
    """Return the SQNR in dB between a graph's answers with and without optimizations, which only round otherwise."""
    try:
        session = Session(graph, optimize="none")
        held = decibels(run.ruler.error(run.previous, [session.run(feed) for feed in run.held]))
        plain = [session.run(feed) for feed in feeds]
    except (ModelError, FeedError):  # some nodes run only as ONNX Runtime folds them
        return math.inf
    return min(held, decibels(run.ruler.error(answers, plain)))


def _check(graph: Graph, given: Graph) -> None:
    """Raise ModelError if ONNX's checker objects to the graph and did not object to what the pass was given."""
    objection = objection_to(graph)
    if objection is not None and objection_to(given) is None:
        raise ModelError(f"the checker refuses the result: {objection}")


def objection_to(graph: Graph) -> str | None:
    """Return what ONNX's checker says against the graph, None if nothing."""
    model = encode(graph, skeleton=True)
    for tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # left out: the checker would look for the file
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    return None
