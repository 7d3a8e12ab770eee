"""What the passes of one run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, Ruler
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.workers import Workers

__all__ = ["Run"]

Progress = Callable[[str, int, int], None]
Feeds = Sequence[dict[str, NDArray[np.generic]]]


@dataclass
class Run:
    """What the passes of one run share: feeds, statistics by stage, and the answers that results are held against.

    ``reference`` are the original's answers on ``held``, ``previous`` those after the last pass that was kept;
    both are empty where nothing can be run. ``check`` says whether results are checked, run and compared.
    """

    calib: Feeds
    held: Feeds
    stages: dict[str, Statistics]
    check: bool
    seed: int
    progress: Progress
    known: list[float] = field(default_factory=list)
    """Run-time ratios that the pass measured in an earlier run: a recipe repeats its decisions, not its clock."""
    measured: list[float] = field(default_factory=list)
    """Run-time ratios that the pass has measured, or was given, in this run."""
    reference: Answers = field(default_factory=list)
    previous: Answers = field(default_factory=list)
    ruler: Ruler = field(default_factory=Ruler)
    """What an error of the answers is."""
    invented: bool = False
    """Whether the feeds are made up."""
    slow: bool = False
    """Whether a run of the original takes so long that the runs that judge a result are few."""
    score: Callable[[Answers], float] | None = None
    """The user's own score of answers on the held-out feeds."""
    keeps: Callable[[Graph], bool] | None = None
    """Whether the score of a graph on the calibration feeds stays within the user's limit, if there is one."""
    label: Callable[[int, str], NDArray[np.generic]] | None = None
    """Labels of a calibration feed by its number and their name."""
    workers: Workers | None = None
    """Who measures besides this process."""
    teacher: Graph | None = None
    """The model before the first pass that loses anything, from which passes may learn."""
    seen: tuple[Graph, Answers, list[Mapping[str, NDArray[np.generic]]]] | None = None
    """The last graph that was run on calibration feeds to be compared, its answers, and the feeds."""
