"""The original's answers on held-out feeds, against which every result is held."""

from __future__ import annotations

import time
from pathlib import Path

from onnxsqueeze.contract.bench import SLOW
from onnxsqueeze.engine.run import Run
from onnxsqueeze.errors import FeedError, ModelError, UnmeasuredError
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import Feeds, Input
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import answer
from onnxsqueeze.measure.rig import Rig
from onnxsqueeze.runtime.session import Session

__all__ = ["held_words", "prepare"]

RANDOM = 2
"""Feeds that are made up where there are none."""


def prepare(run: Run, original: Graph | Path, inputs: tuple[Input, ...], data: Feeds | None, rig: Rig) -> list[str]:
    """Run the original on the held-out feeds; without feeds, on two random ones, only to see that results run."""
    notes = []
    if data is None and not run.stages:
        notes.append(
            "no calibration data: ranges and errors are not measured. With calibration=, int8 also quantizes "
            "activations of convolutions, and lowrank fits the factors to real inputs"
        )
    elif data is not None and data.invented:
        notes.append("calibrated on random values: the figures say little about real inputs")
    if rig.draws.nodes or rig.draws.left:
        notes += rig.draws.words()
    if not run.check:
        return notes
    if data is None:
        Session(original)
        try:
            made_up = list(read_feeds("random", inputs, seed=run.seed)[:RANDOM])
            run.held = rig.feeds(made_up, run.seed)
            _answer(run, original)
            notes.append(f"compared on {RANDOM} random feeds, which shows that the model runs, not how good it is")
        except (FeedError, ModelError):
            run.held, run.reference = (), []
            notes.append("the model does not run on random feeds: nothing was compared")
    elif rig.graph is rig.model:
        _answer(run, original)
    else:
        try:
            _answer(run, original)
        except FeedError as error:
            raise UnmeasuredError(str(error)) from error
    run.held = run.held[: len(run.reference)]
    run.previous = run.reference
    return notes


def _answer(run: Run, original: Graph | Path) -> None:
    session = Session(original)
    start = time.process_time()
    run.reference = answer(session, None, run.held, run.progress)
    run.slow = time.process_time() - start >= SLOW * len(run.reference)


def held_words(run: Run, data: Feeds | None) -> str:
    """Say for the report what results were compared on."""
    if not run.reference:
        return ""
    if data is None:
        return f"{len(run.held)} random feeds"
    if len(data) == 1:
        return "the only feed, which was calibrated on too"
    return f"{len(run.held)} of {len(data)} feeds, held out"
