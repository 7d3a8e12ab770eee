"""``distill``: a student is trained on the answers of teachers, and on labels where there are some."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.engine.places import refuse_places
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.errors import UsageError
from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import Feeds, inputs_of
from onnxsqueeze.graph.opset import raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, Deviation, Ruler, answer
from onnxsqueeze.measure.output_kinds import Kind, parse
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.statistics.moments import apart
from onnxsqueeze.training.capture import KEPT, captured, fewer
from onnxsqueeze.training.data import pooled
from onnxsqueeze.training.fit import Fitted, Schedule, fit
from onnxsqueeze.training.leaves import leaves
from onnxsqueeze.training.losses import Loss, scale_of, target_of, with_labels
from onnxsqueeze.training.mixing import mixed
from onnxsqueeze.training.steps import Batch, Steps
from onnxsqueeze.training.tape import Unsupported
from onnxsqueeze.training.tuning import MIXED, OPSET

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Distilled", "distill"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Distilled:
    """A trained student: how far its answers are from the teachers' on held-out feeds, before and after."""

    graph: Graph
    before: tuple[Deviation, ...]
    after: tuple[Deviation, ...]
    fitted: Fitted
    losses: tuple[Loss, ...]
    held_out: int
    seconds: float

    @property
    def model(self) -> onnx.ModelProto:
        """The student as a ModelProto in memory."""
        return encode(self.graph)


@one_blas_thread
def distill(
    teachers: AnyModel | Sequence[AnyModel],
    student: AnyModel,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    steps: int = 1000,
    lr: float = 0.05,
    temperature: float = 4.0,
    labels: str | None = None,
    mix: float = 0.5,
    batch: int = 32,
    minutes: float = 0.0,
    seed: int = 0,
    outputs: str | Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train all weights of ``student`` on the answers of one or several ``teachers``, and return it.

    Models are what ``squeeze`` takes, with the same inputs; the student's outputs are the teachers' by name, or else in
    their order. Scores (``Softmax`` makes them, or ``outputs`` says so, like "logits:scores") lose
    ``T²·KL(p ‖ softmax(ẑ/T))``, p being the mean of the teachers' ``softmax(z/T)`` (Hinton et al. 2015); other outputs
    the squared error over the variance of the teachers' mean. With ``labels``, the name of an array of classes that
    stands in the calibration data beside the inputs, the first output of scores loses ``1 − mix`` times that and
    ``mix`` times the cross-entropy. Without labels half of each batch is mixed of two inputs each.

    ``calibration`` is what ``squeeze`` takes; one feed in eight is held out to report on, one in four of the others to
    judge by. ``minutes`` ends training with the best so far, as Ctrl-C does. ``output`` is written whole or not at all.

    Raises UsageError for models that do not fit each other or that have an operator without a rule, and for bad data.
    """
    start, progress = time.perf_counter(), progress or _silent
    several = list(teachers) if isinstance(teachers, (list, tuple)) else [teachers]
    if not several:
        raise UsageError("there is no teacher: give one, or several whose answers are averaged")
    _refuse(steps, lr, temperature, mix, batch, minutes)
    named = {f"teacher {i + 1}": each for i, each in enumerate(several)} | {"the student": student}
    refuse_places({"output=": output}, named, calibration=calibration)
    masters, graph = [load(each) for each in several], load(student).copy()
    pairs = _pairs(masters, graph)
    path = Path(several[0]) if isinstance(several[0], (str, os.PathLike)) else None
    inputs = inputs_of(encode(masters[0], skeleton=True))
    data = read(calibration, inputs, model_path=path, seed=seed, labels=labels is not None)
    calib, held = data.split()
    told = parse(outputs) if outputs is not None else {}
    lesson = _Lesson([(encode(each), each.folder) for each in masters], pairs, Ruler.of(masters[0], told).kinds)

    seen, unseen = _parts(calib, labels)
    more = [] if labels is not None else mixed(seen, MIXED, np.random.default_rng([seed, len(seen)]))
    share = min(KEPT / (_bytes(seen[0]) * (len(seen) + len(more) + len(unseen))), 1.0)
    seen, more, unseen = ([dict(feed) for feed in fewer(each, share)] for each in (seen, more, unseen))
    progress("asking the teachers", 0, 0)
    answers = lesson.answers([*seen, *more])
    losses = lesson.losses(answers, temperature, labels, mix)
    held_feeds = [dict(feed) for feed in held]
    expected = lesson.expected(held_feeds)
    student_ruler = Ruler.of(graph, told if set(told) <= {mine for mine, _ in pairs} else None)
    before = student_ruler.compare(expected, answer(graph, None, held_feeds))

    model = encode(raise_opset(graph, OPSET))
    part = Steps(model, graph.folder, list(seen[0].keys() - {labels}), losses, leaves(View(graph), lambda node: True))
    batches = [lesson.batches(feeds, found, losses, labels) for feeds, found in (
        ([*seen, *more], answers), (unseen, lesson.answers(unseen))
    )]  # fmt: skip
    until = time.monotonic() + 60 * minutes if minutes else inf

    def told_of(loss: float, done: int, total: int) -> None:
        progress(f"distilling, loss {loss:.3g}", done, total)

    try:
        fitted = fit(
            part, *pooled(part, batches[0], batches[1], len(seen)), Schedule(steps, lr, batch, (seed,), until), told_of
        )
    except Unsupported as error:
        raise UsageError(f"the student cannot be trained: {error}") from error
    for leaf, value in zip(part.leaves, fitted.values, strict=True):
        leaf.put(value)
    after = student_ruler.compare(expected, answer(graph, None, held_feeds))
    if output is not None:
        save(graph, output)
    return Distilled(graph, before, after, fitted, tuple(losses), len(held_feeds), time.perf_counter() - start)


@dataclass(frozen=True)
class _Lesson:
    """The teachers, and which output of theirs each output of the student learns from."""

    teachers: Sequence[tuple[onnx.ModelProto, Path | None]]
    pairs: Sequence[tuple[str, str]]
    kinds: Mapping[str, Kind]

    def answers(self, feeds: Sequence[Mapping[str, Array]]) -> list[list[dict[str, Array]]]:
        """Return the answers of each teacher on each feed, by the names of the student's outputs."""
        its = [name for _, name in self.pairs]
        found = [captured(model, folder, feeds, its) for model, folder in self.teachers]
        return [[{mine: each[name] for mine, name in self.pairs} for each in answers] for answers in found]

    def expected(self, feeds: Sequence[Mapping[str, Array]]) -> Answers:
        """Return the mean of the teachers' answers on each feed."""
        return [
            {mine: np.mean([each[mine] for each in several], axis=0, dtype=np.float32) for mine, _ in self.pairs}
            for several in zip(*self.answers(feeds), strict=True)
        ]

    def losses(
        self, answers: Sequence[Sequence[Mapping[str, Array]]], temperature: float, labels: str | None, mix: float
    ) -> list[Loss]:
        """Return the losses of the student's outputs; UsageError if there are labels and no scores."""
        found: list[Loss] = []
        for mine, its in self.pairs:
            several = zip(*([each[mine] for each in teacher] for teacher in answers), strict=True)
            values = [np.mean(each, axis=0) for each in several]
            kind = self.kinds.get(its)
            if kind is None or kind.name != "scores":
                found.append(Loss(mine, scale=scale_of(values, None if kind is None else kind.layout)))
                continue
            probabilities = all(bool((each >= 0).all() and (each <= 1).all()) for each in values)
            found.append(Loss(mine, "scores", temperature=temperature, probabilities=probabilities))
        return found if labels is None else with_labels(found, mix)

    def batches(
        self,
        feeds: Sequence[Mapping[str, Array]],
        answers: Sequence[Sequence[Mapping[str, Array]]],
        losses: Sequence[Loss],
        labels: str | None,
    ) -> list[Batch]:
        """Return what the step graph is fed: inputs, and the targets of all losses."""
        found: list[Batch] = []
        for i, feed in enumerate(feeds):
            batch = {name: value for name, value in feed.items() if name != labels}
            for loss in losses:
                if loss.kind == "labels":
                    batch[target_of(loss)] = loss.target(feed[str(labels)])
                else:
                    each = [loss.target(teacher[i][loss.output]) for teacher in answers]
                    batch[target_of(loss)] = np.asarray(np.mean(each, axis=0), np.float32)
            found.append(batch)
        return found


def _parts(calib: Feeds, labels: str | None) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Return the feeds to train on and those to judge by, with the labels if there are some."""

    def feed(index: int) -> dict[str, Array]:
        if labels is None:
            return dict(calib[index])
        return {**calib[index], labels: calib.label(index, labels)}

    kept = [i for i in range(len(calib)) if apart(i)]
    seen = [feed(i) for i in range(len(calib)) if not apart(i)]
    return seen, [feed(i) for i in kept] or seen


def _pairs(masters: Sequence[Graph], student: Graph) -> list[tuple[str, str]]:
    """Return the outputs of the student and those of the teachers that they learn from."""
    own, its = ([str(t.name) for t in graph.outputs] for graph in (student, masters[0]))
    for graph in (*masters, student):
        if sorted(str(t.name) for t in graph.inputs) != sorted(str(t.name) for t in masters[0].inputs):
            names = [", ".join(str(t.name) for t in each.inputs) for each in (masters[0], graph)]
            raise UsageError(f"the models have other inputs: {names[0]} and {names[1]}; rename those of one")
    if any(not set(its) <= {str(t.name) for t in graph.outputs} for graph in masters[1:]):
        raise UsageError("the teachers have other outputs: their answers cannot be averaged")
    if set(own) <= set(its):
        return [(name, name) for name in own]
    if len(own) != len(its):
        raise UsageError(f"the student's outputs {', '.join(own)} are not the teacher's {', '.join(its)}: rename them")
    return list(zip(own, its, strict=True))


def _refuse(steps: int, lr: float, temperature: float, mix: float, batch: int, minutes: float) -> None:
    checks = {"steps": steps >= 1, "lr": lr > 0, "temperature": temperature > 0, "batch": batch >= 1}
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise UsageError(f"{wrong[0]} is over 0")
    if not 0 <= mix <= 1:
        raise UsageError("mix is from 0 (the teachers alone) to 1 (the labels alone)")
    if minutes < 0:
        raise UsageError("minutes is at least 0, which means no limit")


def _bytes(feed: Mapping[str, Array]) -> int:
    return max(sum(value.nbytes for value in feed.values()), 1)


def _silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""
