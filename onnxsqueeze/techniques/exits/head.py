"""An early answer: a linear map of features, fitted to the answers of the whole model; and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "Answers", "Head", "fit"]

Rows = NDArray[np.float64]
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridges that are tried, in mean variances of a feature."""
TOLERANCE = 0.05
"""The error of an answer that is no scores, in variances of the answers, over which it disagrees: 13 dB."""
TEMPERATURES = np.geomspace(0.05, 20, 61)


@dataclass(frozen=True)
class Answers:
    """The answers of the whole model, a row each (n, K).

    ``scores``: the largest of K decides; they are ``logits`` or, as a Softmax makes them, probabilities.
    """

    rows: Rows
    scores: bool
    logits: bool

    @property
    def wanted(self) -> Rows:
        """What a linear map is fitted to: of probabilities their logarithms."""
        return np.log(np.maximum(self.rows, 1e-7)) if self.scores and not self.logits else self.rows

    def disagree(self, early: Rows) -> NDArray[np.bool_]:
        """Return which rows of ``early`` are another answer."""
        if self.scores:
            return np.asarray(early.argmax(1) != self.rows.argmax(1))
        spread = np.square(self.rows - self.rows.mean(0)).sum(1).mean()
        return np.asarray(np.square(early - self.rows).sum(1) > TOLERANCE * spread)


@dataclass(frozen=True)
class Head:
    """z = x·W + b. For scores the answer is z, already divided by the temperature, and the confidence the difference of
    the two largest of softmax(z); else it is minus the logarithm of the squared error, predicted as x·u + c.
    """

    weight: Rows
    bias: Rows
    error: tuple[Rows, float] | None
    temperature: float = 1.0

    def answer(self, features: Rows) -> Rows:
        return np.asarray(features @ self.weight + self.bias)

    def confidence(self, features: Rows) -> Rows:
        if self.error is not None:
            return np.asarray(-(features @ self.error[0] + self.error[1]))
        largest = np.sort(_softmax(self.answer(features)), axis=1)
        return np.asarray(largest[:, -1] - largest[:, -2])


def fit(features: Rows, answers: Answers) -> tuple[Head, Rows, NDArray[np.bool_]]:
    """Return the head, and for each row its confidence and whether it disagrees, by a head that has not seen the row.

    Ridge regression to the answers (Hoerl and Kennard 1970); the ridge is the one of five with the least error of two
    folds. Of scores the temperature T minimises the mean KL(p ‖ softmax(z/T)) over rows that the map has not seen
    (Guo et al. 2017), with p the scores of the whole model.
    """
    wanted = answers.wanted
    fold = np.arange(len(features)) % 2 == 0
    best: tuple[float, float, Rows] | None = None
    for ridge in RIDGES:
        unseen = np.empty_like(wanted)
        for part in (fold, ~fold):
            weight, bias = _ridge(features[~part], wanted[~part], ridge)
            unseen[part] = features[part] @ weight + bias
        error = float(np.square(unseen - wanted).sum())
        if best is None or error < best[0]:
            best = error, ridge, unseen
    assert best is not None
    _, ridge, unseen = best
    weight, bias = _ridge(features, wanted, ridge)
    if not answers.scores:
        errors = np.log(np.square(unseen - wanted).sum(1) + 1e-30)[:, None]
        column, offset = _ridge(features, errors, max(ridge, 1e-3))
        head = Head(weight, bias, (column[:, 0], float(offset[0])))
        return head, head.confidence(features), answers.disagree(unseen)
    probable = _softmax(answers.rows) if answers.logits else answers.rows
    temperature = min(TEMPERATURES, key=lambda t: -float((probable * _log_softmax(unseen / t)).sum()))
    head = Head(weight / temperature, bias / temperature, None, float(temperature))
    largest = np.sort(_softmax(unseen / temperature), axis=1)
    return head, largest[:, -1] - largest[:, -2], answers.disagree(unseen)


def _ridge(x: Rows, y: Rows, ridge: float) -> tuple[Rows, Rows]:
    """Return W and b of the least ‖x·W + b − y‖² + λ‖W‖², λ = n·ridge·mean variance."""
    mean, level = x.mean(0), y.mean(0)
    centred = x - mean
    gram = centred.T @ centred
    gram.flat[:: len(gram) + 1] += ridge * max(float(np.trace(gram)) / len(gram), 1e-30)
    weight = np.linalg.solve(gram, centred.T @ (y - level))
    return weight, level - mean @ weight


def _softmax(z: Rows) -> Rows:
    return np.exp(_log_softmax(z))


def _log_softmax(z: Rows) -> Rows:
    z = z - z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))
