"""Numbers against the original: per-output deviations on held-out feeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.calibration import MASK
from onnxsqueeze.report import Deviation
from onnxsqueeze.runtime import Session

__all__ = ["Answers", "answer", "compare", "worst"]

Array = NDArray[np.generic]
_KEEP = 1 << 28


Answers = list[dict[str, object]]


def answer(
    model: onnx.ModelProto | bytes | Path, folder: Path | None, feeds: Sequence[dict[str, Array]]
) -> Answers:
    """Return the model's outputs on the feeds, one dict per feed; it stops early when they exceed 256 MB."""
    session = Session(model, folder)
    answers: Answers = []
    size = 0
    for feed in feeds:
        answers.append(session.run(feed))
        size += sum(v.nbytes for v in answers[-1].values() if isinstance(v, np.ndarray))
        if size > _KEEP:
            break
    return answers


def compare(expected: Answers, found: Answers) -> tuple[Deviation, ...]:
    """Return how far each output is from what was expected, over all feeds.

    SQNR is ``10·log10(Σy² / Σ(y − ŷ)²)`` in dB, over the elements that are finite and no masks in the original.
    """
    sums: dict[str, _Sums] = {}
    for one, two in zip(expected, found, strict=False):
        for name, value in one.items():
            sums.setdefault(name, _Sums()).add(value, two.get(name))
    return tuple(entry.deviation(name) for name, entry in sums.items())


def worst(deviations: Sequence[Deviation]) -> float:
    """Return the lowest SQNR of all outputs, infinity if there are none."""
    return min((d.sqnr_db for d in deviations), default=float("inf"))


class _Sums:
    def __init__(self) -> None:
        self.signal = self.error = self.dot = self.other = self.max_abs = 0.0
        self.same = self.rows = 0
        self.scores = True
        self.note = ""

    def add(self, expected: object, found: object) -> None:
        if not isinstance(expected, np.ndarray) or expected.dtype.kind not in "fiub":
            self.note, self.scores = "not a tensor of numbers: not compared", False
            return
        if not isinstance(found, np.ndarray) or found.shape != expected.shape:
            shape = list(found.shape) if isinstance(found, np.ndarray) else type(found).__name__
            self.note, self.error, self.scores = f"shape {shape} instead of {list(expected.shape)}", float("inf"), False
            return
        if expected.size == 0:
            return
        a, b = expected.astype(np.float64), found.astype(np.float64)
        usual = np.abs(a) < MASK
        if not usual.all():
            self.note = "compared where finite"
        if not np.isfinite(b[usual]).all():
            self.note, self.error, self.scores = "NaN or infinity", float("inf"), False
            return
        x, y = a[usual], b[usual]
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

    def deviation(self, name: str) -> Deviation:
        if self.error == 0:
            sqnr = float("inf")
        elif not np.isfinite(self.error) or self.signal == 0:
            sqnr = float("-inf")
        else:
            sqnr = 10 * float(np.log10(self.signal / self.error))
        norm = (self.signal * self.other) ** 0.5
        cosine = self.dot / norm if norm else 1.0
        top1 = self.same / self.rows if self.scores and self.rows else None
        return Deviation(name, sqnr, min(cosine, 1.0), self.max_abs, top1, self.note)


def _looks_like_scores(values: NDArray[np.float64]) -> bool:
    """Rows of class scores: a matrix with some columns, or any stack of probability rows."""
    if values.ndim < 2 or values.shape[-1] < 2:
        return False
    if values.ndim == 2:
        return values.shape[-1] <= 100_000
    return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-2))
