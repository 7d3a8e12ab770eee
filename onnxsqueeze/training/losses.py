"""What is made small: squared error over the variance of the targets, or the divergence of softened probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxsqueeze.errors import UsageError
from onnxsqueeze.measure.variation import Layout, Reference

__all__ = ["LOSS", "NO_CLASS", "Loss", "emit", "scale_of", "target_of", "with_labels"]

LOSS = "loss/total"
Array = NDArray[Any]
NO_CLASS = -1
"""The label, like all under 0, of a sample whose class is not known."""


@dataclass(frozen=True)
class Loss:
    """The loss of one output, its mean over samples.

    * ``squares``: ``mean (y − t)² / scale``, the scale being that of ``scale_of`` the targets t.
    * ``scores``: ``T²·KL(softmax(t/T) ‖ softmax(y/T))`` over the last axis, for logits or log probabilities (Hinton et
      al. 2015); ``T²`` keeps gradients as large as they are at T = 1. ``probabilities`` says that the output holds
      probabilities, whose logarithms are taken first.
    * ``labels``: cross-entropy, ``−log softmax(y)`` at the class t, in integers, its mean over the samples whose t is
      known, which is 0 or more.
    """

    output: str
    kind: Literal["squares", "scores", "labels"] = "squares"
    scale: float | Array = 1.0
    temperature: float = 1.0
    probabilities: bool = False
    weight: float = 1.0

    def target(self, given: Array) -> Array:
        """Return what the step graph is fed for an output of the teacher: for scores, the softened probabilities."""
        if self.kind == "labels":
            classes = np.asarray(given, np.int64)
            return np.where(classes < 0, np.iinfo(np.int32).min, classes)  # to OneHot, −1 would be the last class
        if self.kind == "squares":
            return np.asarray(given, np.float32)
        z = np.log(np.maximum(given, 1e-30)) if self.probabilities else given
        z = np.asarray(z, np.float64) / self.temperature
        e = np.exp(z - z.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def scale_of(targets: Sequence[Array], layout: Layout | None = None) -> float | Array:
    """Return what squared errors are divided by, as it broadcasts to a target: then their mean is a relative error.

    It is the variance of all targets. Where channels hold things of several kinds, such as boxes and scores, as the
    layout says or the data, it is that of each kind times its share of the channels and the number of kinds, so that
    the mean is the mean of the kinds' relative errors.
    """
    reference = Reference(targets, layout)
    scale = np.zeros(reference.channels)
    kinds = int(reference.parts.max(initial=0)) + 1
    for kind in range(kinds):
        own = reference.parts == kind
        counts, means = reference.counts[own], reference.means[own]
        total = max(float(counts.sum()), 1.0)
        apart = counts @ (means - counts @ means / total) ** 2
        scale[own] = max(float(reference.within[own].sum() + apart) / total, 1e-12) * kinds * own.mean()
    if kinds == 1 or reference.axis is None:
        return float(scale[0])
    shape = [1] * targets[0].ndim
    shape[reference.axis] = -1
    return scale.reshape(shape)


def target_of(loss: Loss) -> str:
    """Return the name of the input that takes the target of a loss."""
    return f"target/{loss.kind}/{loss.output}"


def with_labels(losses: Sequence[Loss], mix: float) -> list[Loss]:
    """Return the losses with labels: the first output of scores loses ``1 − mix`` of what it did, and ``mix`` of these.

    Raises UsageError if there are no scores.
    """
    scores = next((loss for loss in losses if loss.kind == "scores"), None)
    if scores is None:
        raise UsageError("labels= needs an output of scores: say which one it is with outputs=, like logits:scores")
    rest = [replace(loss, weight=1 - mix) if loss is scores else loss for loss in losses]
    whole = replace(scores, kind="labels", weight=mix)
    return [loss for loss in (whole, *rest) if loss.weight > 0]


def emit(losses: Sequence[Loss]) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return nodes and constants that make the scalar ``LOSS`` of outputs and targets, a weighted sum."""
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def number(name: str, value: float | Array) -> str:
        constants.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    parts = []
    for i, loss in enumerate(losses):
        part = f"loss/{i}"
        for node in _nodes(loss, part, number):
            nodes.append(node)
        parts.append(part)
    nodes.append(helper.make_node("Sum", parts, [LOSS]))
    return nodes, constants


def _nodes(loss: Loss, part: str, number: Any) -> Iterator[NodeProto]:
    y, t = loss.output, target_of(loss)
    if loss.kind == "squares":
        yield helper.make_node("Sub", [y, t], [f"{part}/off"])
        yield helper.make_node("Mul", [f"{part}/off", f"{part}/off"], [f"{part}/square"])
        factor = number(f"{part}/factor", loss.weight / loss.scale)
        yield helper.make_node("Mul", [f"{part}/square", factor], [f"{part}/each"])
        yield helper.make_node("ReduceMean", [f"{part}/each"], [part], keepdims=0)
        return
    soft = 1.0 if loss.kind == "labels" else loss.temperature
    z = y
    if loss.probabilities:
        yield helper.make_node("Max", [y, number(f"{part}/least", 1e-30)], [f"{part}/positive"])
        yield helper.make_node("Log", [f"{part}/positive"], [f"{part}/log"])
        z = f"{part}/log"
    yield helper.make_node("Mul", [z, number(f"{part}/cold", 1 / soft)], [f"{part}/soft"])
    yield helper.make_node("LogSoftmax", [f"{part}/soft"], [f"{part}/logs"], axis=-1)
    if loss.kind == "labels":
        yield helper.make_node("Shape", [z], [f"{part}/classes"], start=-1)
        constants = numpy_helper.from_array(np.array([0.0, 1.0], np.float32))
        yield helper.make_node("Constant", [], [f"{part}/off_on"], value=constants)
        yield helper.make_node("OneHot", [t, f"{part}/classes", f"{part}/off_on"], [f"{part}/p"], axis=-1)
        p = f"{part}/p"
        logs = f"{part}/logs"
    else:
        p, logs = t, f"{part}/apart"
        yield helper.make_node("Max", [t, number(f"{part}/some", 1e-30)], [f"{part}/given"])
        yield helper.make_node("Log", [f"{part}/given"], [f"{part}/given_logs"])
        yield helper.make_node("Sub", [f"{part}/logs", f"{part}/given_logs"], [logs])
    yield helper.make_node("Mul", [p, logs], [f"{part}/each"])
    if loss.kind == "labels":
        yield helper.make_node("ReduceSum", [f"{part}/each"], [f"{part}/cross"], keepdims=0)
        yield helper.make_node("ReduceSum", [p], [f"{part}/known"], keepdims=0)
        yield helper.make_node("Max", [f"{part}/known", number(f"{part}/one", 1.0)], [f"{part}/count"])
        yield helper.make_node("Div", [f"{part}/cross", f"{part}/count"], [f"{part}/mean"])
        yield helper.make_node("Mul", [f"{part}/mean", number(f"{part}/factor", -loss.weight)], [part])
        return
    yield helper.make_node("Constant", [], [f"{part}/last"], value_ints=[-1])
    yield helper.make_node("ReduceSum", [f"{part}/each", f"{part}/last"], [f"{part}/cross"], keepdims=0)
    yield helper.make_node("ReduceMean", [f"{part}/cross"], [f"{part}/mean"], keepdims=0)
    yield helper.make_node("Mul", [f"{part}/mean", number(f"{part}/factor", -loss.weight * soft**2)], [part])
