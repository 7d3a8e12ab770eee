"""Adam over the leaves of a part of a model, judged on samples that it does not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import cos, inf, pi

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.training.data import Samples
from onnxsqueeze.training.leaves import Leaf
from onnxsqueeze.training.steps import Batch, Steps

__all__ = ["Fitted", "Schedule", "fit"]

Floats = NDArray[np.float32]
Progress = Callable[[float, int, int], None]
"""Told the loss, the steps that are done and how many there will be."""
BETAS = (0.9, 0.999)
EPSILON = 1e-8
LOOKS = 20
"""How often the loss on unseen samples is taken."""
NOTHING = 1e-9
"""A loss that is rounding."""
TIMED = 5
"""Steps after which the clock first says how many there is time for."""
WARM = 10
"""Steps in which the learning rate rises to its full height."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` of the learning rate ``rate``, which falls by a cosine to 0; ``until`` is the end by the clock.

    Where there is no time for all of them they become fewer, so that the rate falls to 0 all the same.
    """

    steps: int
    rate: float
    batch: int
    seed: Sequence[int]
    until: float = inf

    def at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * min((step + 1) / WARM, 1.0) * (1 + cos(pi * step / self.steps)) / 2


@dataclass
class Fitted:
    """The best values that were found, and how the loss went: on the batches, and on unseen samples."""

    values: list[Floats]
    before: float
    after: float
    steps: int = 0
    stopped: str = ""
    interrupted: bool = False
    losses: list[float] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)


def fit(steps: Steps, seen: Samples, unseen: Samples, schedule: Schedule, progress: Progress) -> Fitted:
    """Train the leaves of ``steps`` from where they are, and return the values with the least loss on ``unseen``.

    Adam (Kingma and Ba 2015) with a step in units of each leaf: ``v ← v − η·u·m̂/(√ŝ + ε)``. Ctrl-C and the end of the
    time end it with the best that there is.
    """
    values = [leaf.start.copy() for leaf in steps.leaves]
    first = [np.zeros_like(value) for value in values]
    second = [np.zeros_like(value) for value in values]
    before = _mean(steps, values, unseen)
    found = Fitted([value.copy() for value in values], before, before, looks=[(0, before)])
    if before < NOTHING:
        return found
    batches = seen.batches(schedule.batch, np.random.default_rng(list(schedule.seed)))
    step, since, count = 0, (0, time.monotonic()), schedule.steps
    try:
        while step < schedule.steps:
            if time.monotonic() > schedule.until:
                break
            loss, grads = _gradients(steps, values, next(batches))
            found.losses.append(loss)
            rate = schedule.at(step)
            for i, (leaf, grad) in enumerate(zip(steps.leaves, grads, strict=True)):
                _move(leaf, values[i], grad, first[i], second[i], rate, step + 1)
            found.steps = step = step + 1
            if step == TIMED:
                schedule = _timed(schedule, count, step, since)
            if step % max(schedule.steps // LOOKS, 1) == 0 or step == schedule.steps:
                _look(found, steps, values, unseen)
                schedule, since = _timed(schedule, count, step, since), (step, time.monotonic())
            progress(loss, step, schedule.steps)
        if found.looks[-1][0] < step:
            _look(found, steps, values, unseen)
        if step < count:
            found.stopped = "the time was up"
    except KeyboardInterrupt:
        found.stopped, found.interrupted = "it was interrupted", True
    return found


def _look(found: Fitted, steps: Steps, values: Sequence[Floats], unseen: Samples) -> None:
    """Take the loss on unseen samples, and the values if it is the least."""
    now = _mean(steps, values, unseen)
    found.looks.append((found.steps, now))
    if now < found.after:
        found.after, found.values = now, [value.copy() for value in values]


def _timed(schedule: Schedule, count: int, done: int, since: tuple[int, float]) -> Schedule:
    """Return the schedule with ``count`` steps, or as many as there is time for at the pace since some step."""
    now = time.monotonic()
    pace, left = (now - since[1]) / (done - since[0]), schedule.until - now
    return replace(schedule, steps=count if left >= pace * (count - done) else done + max(int(left / pace), 0))


def _mean(steps: Steps, values: Sequence[Floats], samples: Samples) -> float:
    losses = [steps.loss(values, batch) for batch in samples.all()]
    return float(np.mean(losses)) if losses else inf


def _gradients(steps: Steps, values: Sequence[Floats], batches: Sequence[Batch]) -> tuple[float, list[Floats]]:
    """Return the mean loss and gradients over the parts of a batch that cannot run as one."""
    total, loss = [np.zeros_like(value) for value in values], 0.0
    for part in batches:
        each, grads = steps.gradients(values, part)
        loss += each / len(batches)
        for sum_, grad in zip(total, grads, strict=True):
            sum_ += grad / len(batches)
    return loss, total


def _move(leaf: Leaf, value: Floats, grad: Floats, m: Floats, s: Floats, rate: float, step: int) -> None:
    """Move a leaf by one step of Adam, in place; what is not finite moves nothing."""
    if not np.isfinite(grad).all():
        return
    m *= BETAS[0]
    m += (1 - BETAS[0]) * grad
    s *= BETAS[1]
    s += (1 - BETAS[1]) * np.square(grad)
    scale = rate * leaf.unit / (1 - BETAS[0] ** step)
    move = scale * m / (np.sqrt(s / (1 - BETAS[1] ** step)) + EPSILON)
    if leaf.free is not None:
        move *= leaf.free
    value -= move.astype(np.float32)
    if leaf.low is not None:
        np.clip(value, leaf.low - 0.5, (leaf.high or 0.0) + 0.5, out=value)
