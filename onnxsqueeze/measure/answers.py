"""Numbers against the original: how far each output has moved, over the same feeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.arrays import MASK
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session

__all__ = ["Answers", "Deviation", "answer", "compare", "worst"]


@dataclass(frozen=True)
class Deviation:
    """How far one output is from the original's, on feeds that no pass has seen.

    ``sqnr_db`` is ``10 log10(‖y‖² / ‖Δy‖²)``, infinite where nothing differs; ``top1`` is the share of equal argmaxes
    in [0, 1], None where the output does not look like scores.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float | None
    note: str = ""


Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Answers = list[dict[str, object]]
Progress = Callable[[str, int, int], None]

KEPT = 1 << 28
"""Bytes of answers that are kept at most: the feeds after that are not compared."""


def answer(
    model: Graph | onnx.ModelProto | bytes | Path,
    folder: Path | None,
    feeds: Sequence[dict[str, Array]],
    progress: Progress | None = None,
) -> Answers:
    """Return the model's outputs on the feeds, one dict per feed; it stops early when they exceed 256 MB."""
    session = Session(model, folder)
    answers: Answers = []
    size = 0
    for index, feed in enumerate(feeds):
        if progress is not None:
            progress("comparing", index, len(feeds))
        answers.append(session.run(feed))
        size += sum(leaf.nbytes for value in answers[-1].values() for leaf in _leaves(value))
        if size > KEPT:
            break
    return answers


def compare(expected: Answers, found: Answers) -> tuple[Deviation, ...]:
    """Return how far each output is from what was expected, over all feeds.

    SQNR is ``10·log10(Σy² / Σ(y − ŷ)²)`` in dB, over the elements that are finite and no masks in the original; it is
    −∞ where the other has NaN, infinity or another shape. Text counts 1 where it is equal and 0 where it is not.
    """
    sums: dict[str, _Sums] = {}
    for one, other in zip(expected, found, strict=False):
        for name, value in one.items():
            sums.setdefault(name, _Sums()).add(_leaves(value), _leaves(other.get(name)))
    return tuple(each.deviation(name) for name, each in sums.items())


def worst(deviations: Sequence[Deviation]) -> float:
    """Return the lowest SQNR of all outputs in dB, infinity if there are none; NaN counts as −∞."""
    return min((-math.inf if math.isnan(d.sqnr_db) else d.sqnr_db for d in deviations), default=math.inf)


class _Sums:
    """What one output adds up to over the feeds."""

    def __init__(self) -> None:
        self.signal = self.error = self.dot = self.other = self.max_abs = 0.0
        self.same = self.rows = 0
        self.scores = True
        self.note = ""

    def add(self, expected: list[Array], found: list[Array]) -> None:
        if len(expected) != len(found):
            self.refuse(f"{len(found)} tensors instead of {len(expected)}")
            return
        for one, other in zip(expected, found, strict=True):
            self.tensor(one, other)

    def tensor(self, expected: Array, found: Array) -> None:
        if found.shape != expected.shape:
            self.refuse(f"shape {list(found.shape)} instead of {list(expected.shape)}")
            return
        if expected.size == 0:
            return
        if expected.dtype.kind in "OUS":
            a, b = np.ones(expected.shape), (expected == found).astype(np.float64)
        else:
            a, b = _as_float(expected), _as_float(found)
        usual = np.abs(a) < MASK
        if not usual.all():
            self.note = self.note or "compared where finite"
        x, y = a[usual], b[usual]
        if not np.isfinite(y).all():
            self.refuse("NaN or infinity")
            return
        difference = x - y
        self.signal += float(x @ x)
        self.error += float(difference @ difference)
        self.dot += float(x @ y)
        self.other += float(y @ y)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self.scores = self.scores and _looks_like_scores(a)
        if self.scores:
            self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
            self.rows += a[..., 0].size

    def refuse(self, note: str) -> None:
        self.note, self.error, self.max_abs, self.scores = note, math.inf, math.inf, False

    def deviation(self, name: str) -> Deviation:
        norm = math.sqrt(self.signal) * math.sqrt(self.other)
        if self.error == 0:
            sqnr, cosine = math.inf, 1.0
        elif self.signal == 0 or not math.isfinite(self.error):
            sqnr, cosine = -math.inf, 0.0
        else:
            sqnr = 10 * math.log10(self.signal / self.error)
            cosine = min(self.dot / norm, 1.0) if norm else 0.0
        top1 = self.same / self.rows if self.scores and self.rows else None
        return Deviation(name, sqnr, cosine, self.max_abs, top1, self.note)


def _leaves(value: object) -> list[Array]:
    """Return the arrays in an output: a tensor is one, a sequence several, an empty optional none."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [np.asarray(list(value)), np.asarray(list(value.values()))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [np.asarray(value)]


def _as_float(values: Array) -> Floats:
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], -1)
    return values.astype(np.float64)


def _looks_like_scores(values: Floats) -> bool:
    """Rows of class scores: a matrix with some columns, or any stack of probability rows."""
    if values.ndim < 2 or not 2 <= values.shape[-1] <= 100_000:
        return False
    if values.ndim == 2:
        return True
    return bool(np.all(values >= 0)) and bool(np.allclose(values.sum(-1), 1, atol=1e-2))
