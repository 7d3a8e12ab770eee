"""Training a rewritten graph towards the model that it came from: block after block, and at last as a whole."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.opset import raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import decibels
from onnxsqueeze.statistics.moments import apart
from onnxsqueeze.training.blocks import Block, blocks, crossings
from onnxsqueeze.training.capture import KEPT, captured, fewer
from onnxsqueeze.training.data import pooled
from onnxsqueeze.training.fit import Fitted, Schedule, fit
from onnxsqueeze.training.leaves import leaves
from onnxsqueeze.training.losses import NO_CLASS, Loss, scale_of, target_of, with_labels
from onnxsqueeze.training.mixing import mixed
from onnxsqueeze.training.steps import Batch, Steps
from onnxsqueeze.training.tape import Unsupported

__all__ = ["BATCH", "MIXED", "OPSET", "RATE", "TEMPERATURE", "Plan", "Tuned", "trained", "tune"]

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Inside = dict[int, dict[str, Array]]
"""Tensors from inside a model by the number of the feed."""
OPSET = 18
"""The opset of step graphs: that of the operators which rules emit."""
RATE, TEMPERATURE, BATCH = 0.02, 4.0, 32
"""The learning rate, relative to the size of weights, what divides logits, and the samples of a step."""
MIXED = 8
"""Mixed feeds for each that there is."""


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` of Adam for each block, and as many end to end if that is asked for."""

    steps: int
    rate: float
    temperature: float
    batch: int
    seed: int
    whole: bool = False
    blocks: bool = True
    until: float = inf
    wanted: Callable[[gs.Node], bool] = field(default=lambda node: True)
    labels: str = ""
    """The classes in the calibration data that the whole learns from besides, with the weight ``mix``."""
    mix: float = 0.5


@dataclass(frozen=True)
class Tuned:
    """What became of one block, or of all: how its training went, or why it was left or taken back."""

    name: str
    fitted: Fitted | None = None
    left: str = ""
    keys: tuple[str, ...] = ()
    """The nodes of the block."""

    def curve(self) -> dict[str, object] | None:
        """Return the loss on unseen samples by steps, as reports draw it."""
        if self.fitted is None or len(self.fitted.looks) < 2:
            return None
        x, y = ([float(f"{one:.4g}") for one in column] for column in zip(*self.fitted.looks, strict=True))
        note = f"{self.name.partition(',')[0]}: loss {y[0]:.3g} to {min(y):.3g}"
        return {"x": x, "y": y, "chosen": x[y.index(min(y))], "label": "steps", "note": note}

    def words(self) -> str:
        """Say it for the report."""
        if self.fitted is None:
            return f"{self.name}: {self.left}"
        found = self.fitted
        loss = f"unseen loss {found.before:.3g} to {found.after:.3g}"
        ended = f"; ended after {found.steps} steps, since {found.stopped}" if found.stopped else ""
        kept = f", taken back: {self.left}" if self.left else ""
        return f"{self.name}: {loss}{kept}{ended}"


def tune(graph: Graph, teacher: Graph, bench: Bench, plan: Plan) -> Iterator[Tuned]:
    """Train the graph in place towards the teacher's answers inside, and say what became of each block.

    A block is fed what the graph before it makes, once that is trained, and held against what the teacher has at its
    end. It is kept if its loss on feeds that training does not see falls. All of them are kept if the error of the
    answers on these feeds falls, and so is what is trained end to end; with labels its loss, which has both, decides.
    """
    judge = Bench(teacher, bench.calib, bench.seed, bench.progress, ruler=bench.ruler)
    judge.keeps = bench.keeps
    numbers = [i for i in range(len(bench.calib)) if not apart(i)] or list(range(len(bench.calib)))
    seen = [bench.calib[i] for i in numbers]
    more = mixed(seen, MIXED, np.random.default_rng([plan.seed, len(seen)]))
    work = _Work(graph, teacher, judge, seen, more, list(judge.unseen), plan)
    if plan.labels:
        with_labels([Loss(n, "scores") for n, kind in bench.ruler.kinds.items() if kind.name == "scores"], plan.mix)
        work.classes = _classes(bench, plan.labels, numbers, more, judge.unseen_numbers)
    view = View(graph)
    found = leaves(view, plan.wanted)
    parts = blocks(view, found, work.alike(crossings(view, found))) if plan.blocks else []
    yield from work.train({f"block {i + 1} of {len(parts)}, to '{b.outputs[-1]}'": b for i, b in enumerate(parts)})
    if plan.whole and not work.stopped:
        whole = blocks(view, leaves(view, plan.wanted), (), whole=True)
        yield from work.train(dict(zip(["end to end"], whole, strict=False)), whole=True)


def trained(graph: Graph, bench: Bench, steps: int) -> Iterator[str]:
    """Train a graph end to end, with the defaults of ``tune``, and say for the report what that gained."""
    plan = Plan(steps, RATE, TEMPERATURE, BATCH, bench.seed, whole=True, blocks=False)
    for each in tune(graph, bench.teacher or bench.original, bench, plan):
        yield each.words()


class _Work:
    """One run of ``tune``."""

    def __init__(
        self, graph: Graph, teacher: Graph, judge: Bench, seen: Feeds, more: Feeds, unseen: Feeds, plan: Plan
    ) -> None:
        self.graph, self.judge, self.plan = graph, judge, plan
        self.feeds: Feeds = [*seen, *more, *unseen]
        ends = (0, len(seen), len(seen) + len(more), len(self.feeds))
        self.parts = [range(start, stop) for start, stop in itertools.pairwise(ends)]
        self.inside: Inside = {}
        self.answers: Inside = {}
        self.classes: Sequence[Array] = ()
        self.teacher, self.folder = encode(teacher), teacher.folder
        self.error = judge.unseen_error(graph)
        self.stopped = False

    def alike(self, names: Sequence[str]) -> set[str]:
        """Return those of the tensors that the teacher has in the same shape."""
        made = {name for node in self.teacher.graph.node for name in node.output}
        both = [name for name in names if name in made]
        models = ((encode(self.graph), self.graph.folder), (self.teacher, self.folder))
        one, other = (captured(model, folder, self.feeds[:1], both)[0] for model, folder in models)
        return {name for name in both if one[name].shape == other[name].shape}

    def train(self, parts: Mapping[str, Block], whole: bool = False) -> Iterator[Tuned]:
        """Train blocks one after the other; all are taken back if the answers get no better by them.

        Each runs from where the last one began, on both sides. Half of the time is shared alike, half by the numbers of
        weights; what a block leaves is shared by the others, and the whole has as much as all of them.
        """
        before = [(leaf.constant, leaf.constant._values) for block in parts.values() for leaf in block.leaves]
        moved, self.inside = False, {}
        sizes = [sum(leaf.start.size for leaf in block.leaves) for block in parts.values()]
        shares = [0.5 / len(sizes) + 0.5 * size / sum(sizes) for size in sizes]
        for number, (name, block) in enumerate(parts.items()):
            left = sum(shares[number:]) + (self.plan.whole and not whole)
            try:
                fitted = self._fitted(block, name, number, whole, self._until(shares[number] / left))
            except (Unsupported, ModelError, FeedError) as reason:
                yield Tuned(name, left=f"left as it is, {reason}")
                continue
            self.stopped = fitted.interrupted or time.monotonic() > self.plan.until
            better = fitted.after < fitted.before
            keys = tuple(key_of(node) for node in block.nodes)
            yield Tuned(name, fitted, "" if better else "it is no less", keys)
            for leaf, value in zip(block.leaves, fitted.values, strict=True) if better else ():
                leaf.put(value)
                moved = True
            if self.stopped:
                break
        if not moved:
            return
        old, self.error = self.error, self.judge.unseen_error(self.graph)
        words = f"{decibels(old):.1f} to {decibels(self.error):.1f} dB on unseen calibration feeds"
        labelled = whole and bool(self.classes)  # then answers are to move away from the original's
        if self.error < (inf if labelled else old):
            yield Tuned("answers", left=words)
            return
        self.error = old
        for constant, values in before:
            constant._values = values
        yield Tuned("answers", left=f"all of this was taken back, for they went from {words}")

    def _until(self, share: float) -> float:
        """Return when a part ends that has this share of the time that is left."""
        now = time.monotonic()
        return now + (self.plan.until - now) * share

    def _fitted(self, block: Block, name: str, number: int, whole: bool, until: float) -> Fitted:
        model = encode(raise_opset(self.graph, OPSET))
        given = captured(self.teacher, self.folder, self.feeds[:1], block.outputs)[0]
        fed = captured(model, self.graph.folder, self.feeds[:1], block.inputs)[0]
        size = sum(value.nbytes for value in (*given.values(), *fed.values())) * len(self.feeds)
        real, more, unseen = (fewer(part, min(KEPT / max(size, 1), 1.0)) for part in self.parts)
        chosen = [*real, *more, *unseen]
        self.answers = self._onward(self.teacher, self.folder, self.answers, chosen, block.outputs)
        self.inside = self._onward(model, self.graph.folder, self.inside, chosen, block.inputs)
        targets = [self.answers[i] for i in chosen]
        self._refuse(block, targets)
        losses = [self._loss(output, targets[: len(real) + len(more)], whole) for output in block.outputs]
        if whole and self.classes:
            losses = with_labels(losses, self.plan.mix)
        steps = Steps(model, self.graph.folder, block.inputs, losses, block.leaves)
        starts = [leaf.start for leaf in block.leaves]
        batches = [[self._batch(i, losses) for i in part] for part in ([*real, *more], unseen)]
        for loss, found in zip(losses, steps.outputs(starts, batches[0][0]), strict=True):
            if found.shape != targets[0][loss.output].shape:
                raise Unsupported(f"'{loss.output}' has another shape than in the original")

        def progress(loss: float, done: int, total: int) -> None:
            self.judge.progress(f"tune: {name}", done, total)

        plan = self.plan
        schedule = Schedule(plan.steps, plan.rate, plan.batch, (plan.seed, number), until)
        return fit(steps, *pooled(steps, batches[0], batches[1], len(real)), schedule, progress)

    def _batch(self, number: int, losses: Sequence[Loss]) -> Batch:
        """Return what a block is fed of a feed, and the targets of its losses."""
        targets = {
            target_of(loss): loss.target(
                self.classes[number] if loss.kind == "labels" else self.answers[number][loss.output]
            )
            for loss in losses
        }
        return {**self.inside[number], **targets}

    def _onward(
        self, model: onnx.ModelProto, folder: Path | None, known: Inside, feeds: Sequence[int], names: Sequence[str]
    ) -> Inside:
        """Return tensors of a model by feed, run from those that are known of it."""
        found: Inside = {}
        for part in ([i for i in feeds if i in known], [i for i in feeds if i not in known]):
            given = [{**self.feeds[i], **known.get(i, {})} for i in part]
            found.update(zip(part, captured(model, folder, given, names), strict=True))
        return found

    def _refuse(self, block: Block, targets: Sequence[Mapping[str, Array]]) -> None:
        for output in block.outputs:
            if not all(np.isfinite(each[output]).all() for each in targets):
                raise Unsupported(f"'{output}' is not finite in the original")

    def _loss(self, output: str, targets: Sequence[Mapping[str, Array]], whole: bool) -> Loss:
        values = [each[output] for each in targets]
        kind = self.judge.ruler.kinds.get(output)
        if whole and kind is not None and kind.name == "scores" and values[0].ndim > 1:
            probabilities = all(bool((each >= 0).all() and (each <= 1).all()) for each in values)
            return Loss(output, "scores", temperature=self.plan.temperature, probabilities=probabilities)
        return Loss(output, "squares", scale_of(values, None if kind is None else kind.layout))


def _classes(bench: Bench, name: str, seen: Sequence[int], more: Feeds, unseen: Sequence[int]) -> list[Array]:
    """Return the labels of all feeds; those that are mixed of others have no class."""
    assert bench.label is not None
    own, judged = ([bench.label(i, name) for i in numbers] for numbers in (seen, unseen))
    inside = own[0].shape[1:]
    none = [np.full((len(next(iter(each.values()))), *inside), NO_CLASS) for each in more]
    return [*own, *none, *judged]
