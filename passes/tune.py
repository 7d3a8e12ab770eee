"""``tune``: weights, biases, norms and roundings are trained towards the original's answers, and by labels too."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from math import inf
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.plugin import Bench, Graph, Need, Range, Selected, Site, Skip, Statistics, View, key_of
from onnxsqueeze.training.leaves import leaves
from onnxsqueeze.training.tuning import BATCH, RATE, TEMPERATURE, Plan, tune

__all__ = ["Tune"]


@dataclass(frozen=True)
class Tune(Selected[None]):
    """Train what other passes have left towards the model that they were given, block after block, by gradients.

    A block ends where one tensor crosses that the original has too. With the inputs x̂ that the trained graph before it
    makes and the original's y at its end, Adam makes ``mean ‖y − f(x̂; θ)‖² / Var y`` small. θ are weights, biases,
    scales of norms, factors, and of weights in up to 4 bits the scales and the integers: these are rounded in every
    step, and gradients go straight through. With ``end-to-end`` the whole model follows, by the same loss or for scores
    by ``T²·KL(softmax(z/T) ‖ softmax(ẑ/T))``; with ``labels`` its scores lose ``1 − mix`` of that and ``mix`` of the
    cross-entropy.

    A block stays only if on calibration feeds that training has not seen its loss falls, and the error of the answers.
    Gradients are ONNX nodes that ONNX Runtime runs; an operator without a rule leaves its block as it is.
    """

    name: ClassVar[str] = "tune"
    summary: ClassVar[str] = "train what other passes have left towards the original's answers"
    float_only: ClassVar[bool] = False

    steps: int = 300
    """Steps of Adam for each block, and for the whole."""
    lr: float = RATE
    """The learning rate, relative to the root mean square of each weight."""
    end_to_end: bool = False
    """Train the whole model after its blocks."""
    temperature: float = TEMPERATURE
    """T, by which logits are divided, end to end and for scores."""
    minutes: float = 0.0
    """The time after which training ends with the best so far; 0: none."""
    seed: int = 0
    """Seed of the order of samples, besides that of the run."""
    labels: str = ""
    """The name of an array of classes in the calibration data, from which the whole learns besides."""
    mix: float = 0.5
    """The weight of the labels in the loss, and 1 − mix that of the original's answers."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: only their weights are trained."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names whose weights stay."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps is at least 1")
        if not self.lr > 0:
            raise ValueError("lr is over 0")
        if not self.temperature > 0:
            raise ValueError("temperature is over 0")
        if self.minutes < 0:
            raise ValueError("minutes is at least 0, which means no limit")
        if self.seed < 0:
            raise ValueError("seed is at least 0")
        if not 0 <= self.mix <= 1:
            raise ValueError("mix is from 0 (the original's answers alone) to 1 (the labels alone)")
        if self.labels and not self.end_to_end:
            raise ValueError("labels are for the whole model: say end-to-end too")

    @property
    def reads(self) -> str:
        """The labels."""
        return self.labels

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the range of an output: whether it is known says whether there are feeds to train on."""
        yield from _probe(view)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[None] | Skip]:
        """Yield a site for every node with a weight that can be trained."""
        blind = bool(stats.missing(list(_probe(view))))
        found = {key for leaf in leaves(view, self._wants) for key in leaf.readers}
        for each in weighted(view):
            key = key_of(each.node)
            if blind:
                yield Skip(key, "training needs calibration data: give calibration=")
            elif key in found:
                yield Site(key, "open to training", {"op": each.node.op})
            elif not self._wants(each.node):
                yield Skip(key, "not asked for")
            else:
                yield Skip(key, f"a weight of {each.node.op} in this form is not trained")

    def select(self, plan: list[Site[None] | Skip], bench: Bench) -> list[Site[None] | Skip]:
        """Leave the model alone if it answers as the original does."""
        reason = ""
        if bench.teacher is None:
            reason = "there is no original to learn from"
        elif _judge(bench, bench.teacher).unseen_error(bench.original) <= 0:
            reason = "it answers as the original does: put tune behind a pass that changes the answers"
        return [Skip(each.key, reason) if reason and isinstance(each, Site) else each for each in plan]

    def apply(self, site: Site[None], graph: Graph) -> None:
        """Do nothing yet: blocks are trained in ``tune``."""

    def tune(self, graph: Graph, done: Sequence[Site[None]], bench: Bench) -> Iterable[str]:
        """Train the blocks."""
        assert bench.teacher is not None
        until = time.monotonic() + 60 * self.minutes if self.minutes else inf
        plan = Plan(
            self.steps,
            self.lr,
            self.temperature,
            BATCH,
            bench.seed + self.seed,
            whole=self.end_to_end,
            until=until,
            wanted=self._wants,
            labels=self.labels,
            mix=self.mix,
        )
        for each in tune(graph, bench.teacher, bench, plan):
            mine, curve = [site for site in done if site.key in each.keys], each.curve()
            if mine and curve is not None:  # a site has one, so that of the whole goes to another than its last block's
                next((site for site in mine[::-1] if "curve" not in site.detail), mine[-1]).detail["curve"] = curve
            yield each.words()

    def _wants(self, node: gs.Node) -> bool:
        return self.wanted((node.name, key_of(node)))


def _probe(view: View) -> Iterator[Need]:
    floats = [t for t in view.graph.outputs if view.dtype(t) == np.float32 and view.producer(t) is not None]
    yield from (Range(str(t.name)) for t in floats[:1])


def _judge(bench: Bench, teacher: Graph) -> Bench:
    return Bench(teacher, bench.calib, bench.seed, bench.progress, ruler=bench.ruler)
