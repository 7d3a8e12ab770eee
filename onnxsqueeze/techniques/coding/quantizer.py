"""Integers for a weight that cost few bits once they are coded, and do little to the answers: rate and distortion.

One step δ for the tensor. A value q is chosen so that ``d_k·(w − q·δ)² + μ·bits(q)`` is least,
where d_k is how much an error of column k costs and bits(q) = −log₂ of the share of q among all. With
``μ = (ln 2 / 6)·δ²·d̄`` one more bit saves as much as a smaller step would: D = δ²·d̄/12 and R = h − log₂ δ, so that
−dD/dR is just that (H. Gish and J. N. Pierce, Asymptotically efficient quantizing, 1968; G. J. Sullivan, Efficient
scalar quantization, 1996). The bin of zero is wide by that alone, because zeros are frequent.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.container.tables import cost
from onnxsqueeze.linear.compensation import Feedback, feedback, rounded

__all__ = ["MOST", "Integers", "feedback_of", "fitted", "nearest"]

DAMPING = 0.1
"""Added to the diagonal of S, as a share of its mean: what is coarse moves others far."""
MU = log(2) / 6
ROUNDS = 3
MOST = 32767
"""The largest value; the weights of a layer are int8 unless one is over 127."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Integers:
    """A weight ``step·values`` of int8 values (O, K), or int16 ones where a step is too fine for int8."""

    values: NDArray[np.signedinteger]
    step: float

    @property
    def matrix(self) -> Matrix:
        """The weight."""
        return self.values.astype(np.float64) * self.step

    @property
    def bytes(self) -> float:
        """About what the values take in a container: the entropy of each of their bytes, and its table."""
        planes = np.ascontiguousarray(self.values).view(np.uint8).reshape(-1, self.values.itemsize).T
        return sum(float(cost(np.bincount(plane, minlength=256))) for plane in planes) / 8


def nearest(weight: NDArray[np.floating], step: float, importance: NDArray[np.floating] | None = None) -> Integers:
    """Return integers for a weight (O, K), each chosen by itself; ``importance`` are the d_k, all alike if None."""
    target = np.asarray(weight / step, np.float32)
    share = np.ones(1, np.float32) if importance is None else np.asarray(importance / importance.mean(), np.float32)
    values = np.clip(np.rint(target), -MOST, MOST).astype(np.int16)
    for _ in range(ROUNDS):
        values = _cheapest(target, share, _prices(values))
    return Integers(_narrow(values), step)


def feedback_of(second: Matrix) -> Feedback:
    """Return how columns make up for each other's errors on inputs with ``second`` = E[xxᵀ]."""
    return feedback(second, DAMPING)


def fitted(weight: Matrix, step: float, second: Matrix | None, back: Feedback | None = None) -> Integers:
    """Return integers whose errors cancel on inputs with ``second`` = E[xxᵀ], or ``nearest`` ones if that is None.

    Columns are rounded in turn, as ``linear.compensation`` says; the d_k of one is D_k, what an error costs that later
    columns make up for.
    """
    if second is None:
        return nearest(weight, step)
    back = feedback_of(second) if back is None else back
    found = nearest(weight, step, np.diag(second))
    columns = np.asarray(weight.T / step, np.float32)
    values = np.empty(columns.shape, np.int16)
    prices = _prices(found.values)

    def choose(k: int, target: NDArray[np.floating]) -> Floats:
        q = _cheapest(np.asarray(target, np.float32), back.share[k], prices)
        values[back.order[k]] = q
        return q.astype(np.float32)

    for _ in range(2):
        rounded(columns, back, choose)
        prices = _prices(values)
    return Integers(_narrow(np.ascontiguousarray(values.T)), step)


def _cheapest(target: Floats, share: Floats | np.float32, prices: Floats) -> NDArray[np.int16]:
    """Return for each target, in steps, the best of the integer next to it, the one nearer to zero, and zero."""
    middle = len(prices) // 2
    best = np.clip(np.rint(target), -middle, middle)
    least = share * (target - best) ** 2 + prices.take(best.astype(np.int64) + middle)
    for q in (best - np.sign(best), np.zeros_like(best)):
        price = share * (target - q) ** 2 + prices.take(q.astype(np.int64) + middle)
        best, least = np.where(price < least, q, best), np.minimum(price, least)
    return np.asarray(best.astype(np.int16))


def _prices(values: NDArray[np.signedinteger]) -> Floats:
    """Return μ·bits(q) in units of δ²·d̄ for q = −m … m, those that do not occur as if they did half a time.

    m is twice the largest value, for what makes up for others' errors may be larger.
    """
    most = min(2 * int(np.abs(values.astype(np.int32)).max()) + 2, MOST)
    counts = np.maximum(np.bincount(values.reshape(-1).astype(np.int64) + most, minlength=2 * most + 1), 0.5)
    return np.asarray(MU * np.log2(counts.sum() / counts), np.float32)


def _narrow(values: NDArray[np.int16]) -> NDArray[np.signedinteger]:
    return values.astype(np.int8) if np.abs(values.astype(np.int32)).max() <= 127 else values
