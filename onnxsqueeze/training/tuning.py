"""Training a rewritten graph towards the model that it came from: block after block, and at last as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.opset import raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import decibels
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.moments import apart
from onnxsqueeze.training.blocks import Block, blocks, crossings
from onnxsqueeze.training.data import pooled
from onnxsqueeze.training.fit import Fitted, Schedule, fit
from onnxsqueeze.training.leaves import leaves
from onnxsqueeze.training.losses import Loss, target_of
from onnxsqueeze.training.mixing import mixed
from onnxsqueeze.training.slices import cut
from onnxsqueeze.training.steps import Steps
from onnxsqueeze.training.tape import Unsupported

__all__ = ["Plan", "Tuned", "tune"]

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
OPSET = 18
"""The opset of step graphs: that of the operators which rules emit."""
MIXED = 8
"""Mixed feeds for each that there is."""
KEPT = 1 << 28
"""Bytes of inputs and targets of a block that are kept in memory; of more, evenly spread feeds are left out."""


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` of Adam for each block, and as many end to end if that is asked for."""

    steps: int
    rate: float
    temperature: float
    batch: int
    seed: int
    whole: bool = False
    until: float = inf
    wanted: Callable[[gs.Node], bool] = field(default=lambda node: True)


@dataclass(frozen=True)
class Tuned:
    """What became of one block, or of all: how its training went, or why it was left or taken back."""

    name: str
    fitted: Fitted | None = None
    left: str = ""

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
    answers on these feeds falls, and so is what is trained end to end.
    """
    judge = Bench(teacher, bench.calib, bench.seed, bench.progress, ruler=bench.ruler)
    judge.keeps = bench.keeps
    seen = [feed for i, feed in enumerate(bench.calib) if not apart(i)] or list(bench.calib)
    more = mixed(seen, MIXED, np.random.default_rng([plan.seed, len(seen)]))
    work = _Work(graph, teacher, judge, seen, more, list(judge.unseen), plan)
    view = View(graph)
    found = leaves(view, plan.wanted)
    known = work.alike(crossings(view, found))
    parts = blocks(view, found, known)
    yield from work.train({f"block {i + 1} of {len(parts)}, to '{b.outputs[-1]}'": b for i, b in enumerate(parts)})
    if plan.whole and not work.stopped:
        whole = blocks(view, leaves(view, plan.wanted), (), whole=True)
        yield from work.train(dict(zip(["end to end"], whole, strict=False)), whole=True)


class _Work:
    """One run of ``tune``."""

    def __init__(
        self, graph: Graph, teacher: Graph, judge: Bench, seen: Feeds, more: Feeds, unseen: Feeds, plan: Plan
    ) -> None:
        self.graph, self.judge, self.plan = graph, judge, plan
        self.seen, self.more, self.unseen = seen, more, unseen
        self.teacher, self.folder = encode(teacher), teacher.folder
        self.error = judge.unseen_error(graph)
        self.stopped = False

    def alike(self, names: Sequence[str]) -> set[str]:
        """Return those of the tensors that the teacher has in the same shape."""
        made = {name for node in self.teacher.graph.node for name in node.output}
        both = [name for name in names if name in made]
        models = ((encode(self.graph), self.graph.folder), (self.teacher, self.folder))
        one, other = (_outputs(model, folder, self.seen[:1], both)[0] for model, folder in models)
        return {name for name in both if one[name].shape == other[name].shape}

    def train(self, parts: Mapping[str, Block], whole: bool = False) -> Iterator[Tuned]:
        """Train blocks one after the other; all are taken back if the answers get no better by them."""
        before = [(leaf.constant, leaf.constant._values) for block in parts.values() for leaf in block.leaves]
        moved = False
        for number, (name, block) in enumerate(parts.items()):
            try:
                fitted = self._fitted(block, name, number, whole)
            except (Unsupported, ModelError, FeedError) as reason:
                yield Tuned(name, left=f"left as it is, {reason}")
                continue
            self.stopped = bool(fitted.stopped)
            better = fitted.after < fitted.before
            yield Tuned(name, fitted, "" if better else "it is no less")
            for leaf, value in zip(block.leaves, fitted.values, strict=True) if better else ():
                leaf.put(value)
                moved = True
            if self.stopped:
                break
        if not moved:
            return
        old, self.error = self.error, self.judge.unseen_error(self.graph)
        words = f"{decibels(old):.1f} to {decibels(self.error):.1f} dB on unseen calibration feeds"
        if self.error < old:
            yield Tuned("answers", left=words)
            return
        self.error = old
        for constant, values in before:
            constant._values = values
        yield Tuned("answers", left=f"all of this was taken back, for they went from {words}")

    def _fitted(self, block: Block, name: str, number: int, whole: bool) -> Fitted:
        model = encode(raise_opset(self.graph, OPSET))
        feeds = [*self.seen, *self.more, *self.unseen]
        given = _outputs(self.teacher, self.folder, feeds[:1], block.outputs)[0]
        fed = _outputs(model, self.graph.folder, feeds[:1], block.inputs)[0]
        size = sum(value.nbytes for value in (*given.values(), *fed.values())) * len(feeds)
        share = min(KEPT / max(size, 1), 1.0)
        real, more, unseen = (_fewer(each, share) for each in (self.seen, self.more, self.unseen))
        seen = [*real, *more]
        targets = [_outputs(self.teacher, self.folder, each, block.outputs) for each in (seen, unseen)]
        inputs = [_outputs(model, self.graph.folder, each, block.inputs) for each in (seen, unseen)]
        self._refuse(block, targets[0] + targets[1])
        losses = [self._loss(output, targets[0], whole) for output in block.outputs]
        steps = Steps(model, self.graph.folder, block.inputs, losses, block.leaves)
        starts = [leaf.start for leaf in block.leaves]
        names = {loss.output: (target_of(loss), loss.target) for loss in losses}
        batches = [
            [{**x, **{n: make(t[output]) for output, (n, make) in names.items()}} for x, t in zip(a, b, strict=True)]
            for a, b in zip(inputs, targets, strict=True)
        ]
        for output, found in zip(block.outputs, steps.outputs(starts, batches[0][0]), strict=True):
            if found.shape != targets[0][0][output].shape:
                raise Unsupported(f"'{output}' has another shape than in the original")

        def progress(loss: float, done: int, total: int) -> None:
            self.judge.progress(f"tune: {name}", done, total)

        plan = self.plan
        schedule = Schedule(plan.steps, plan.rate, plan.batch, (plan.seed, number), plan.until)
        return fit(steps, *pooled(steps, batches[0], batches[1], len(real)), schedule, progress)

    def _refuse(self, block: Block, targets: Sequence[Mapping[str, Array]]) -> None:
        for output in block.outputs:
            if not all(np.isfinite(each[output]).all() for each in targets):
                raise Unsupported(f"'{output}' is not finite in the original")

    def _loss(self, output: str, targets: Sequence[Mapping[str, Array]], whole: bool) -> Loss:
        values = np.concatenate([np.asarray(each[output], np.float64).ravel() for each in targets])
        scale = max(float(values.var()), 1e-12)
        kind = self.judge.ruler.kinds.get(output)
        if whole and kind is not None and kind.name == "scores" and targets[0][output].ndim > 1:
            probabilities = bool((values >= 0).all() and (values <= 1).all())
            return Loss(output, "scores", temperature=self.plan.temperature, probabilities=probabilities)
        return Loss(output, "squares", scale)


def _fewer(feeds: Feeds, share: float) -> Feeds:
    count = max(int(len(feeds) * share), 1)
    return [feeds[i * len(feeds) // count] for i in range(count)] if feeds else feeds


def _outputs(model: onnx.ModelProto, folder: Any, feeds: Feeds, names: Sequence[str]) -> list[dict[str, Array]]:
    """Return tensors of a model on feeds, from a part of it that computes no more than these."""
    session: Session | None = None
    found: list[dict[str, Array]] = []
    plain = {value.name for value in model.graph.input}
    for feed in feeds:
        direct = {name: np.asarray(feed[name]) for name in names if name in feed and name in plain}
        wanted = [name for name in names if name not in direct]
        if session is None and wanted:
            session = Session(_anywhere(model, feed, wanted), folder)
        answers = {} if session is None else session.run({name: feed[name] for name in session.inputs})
        found.append({name: direct[name] if name in direct else np.asarray(answers[name]) for name in names})
    return found


def _anywhere(model: onnx.ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> onnx.ModelProto:
    """Return a part of the model whose inputs take feeds of all shapes."""
    part = cut(model, {name: np.asarray(value) for name, value in feed.items()}, names)
    own = {value.name: value for value in model.graph.input}
    for value in part.graph.input:
        value.CopyFrom(own[value.name])
    return part
