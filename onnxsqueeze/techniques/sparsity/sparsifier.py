"""Sparse weights fitted to their inputs: which elements stay, and what they take over from those that become zero.

With the covariance S of the input rows the error of a weight Ŵ is ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]``. Which elements of Ŵ stay
is found by the alternating direction method of multipliers (Meng et al., ALPS, 2024): X minimizes the error with a pull
``ρ`` towards a sparse D, D keeps the largest elements of X, and ρ grows until both agree. Then conjugate gradients
bring the elements that stay, and these alone, to the least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix

__all__ = ["Pattern", "Sparsifier", "masked", "pattern_of"]

Pattern = tuple[int, int]
"""(N, M): of each M neighbouring elements of a row N stay."""
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

ROUNDS = 20
START, GROWTH = 0.03, 1.4
"""The pull ρ towards the sparse weight in the first round, for inputs of unit variance, and its growth per round."""
STEPS = 10
"""Steps of conjugate gradients that finish a weight; a guess takes half as many."""


def pattern_of(text: str) -> Pattern:
    """Return the pattern written N:M; ValueError if it is none."""
    keep, _, of = text.partition(":")
    if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of)):
        raise ValueError("pattern is N:M with N under M, like 2:4")
    return int(keep), int(of)


@dataclass(frozen=True)
class Sparsifier:
    """A weight W (O, K) with the covariance S (K, K) of its input rows, which is positive definite; None without feeds.

    ``neighbours`` orders the columns so that those which a pattern groups stand side by side.
    """

    weight: Matrix
    covariance: Matrix | None = None
    neighbours: Sequence[int] | None = None

    def fit(self, share: float, pattern: Pattern | None = None) -> Matrix:
        """Return the weight with ``share`` of its elements, or those of the pattern; without S the largest ones."""
        if self.covariance is None:
            return np.where(self._largest(np.abs(self.weight), share, pattern), self.weight, 0)
        values, basis = self._modes
        scaled = (self.weight * self._deviations).astype(np.float32)
        image = (scaled @ basis * values) @ basis.T
        sparse, dual, pull = scaled, np.zeros_like(scaled), np.float32(START)
        mask = np.ones(scaled.shape, np.bool_)
        for _ in range(ROUNDS):
            dense = ((image + pull * sparse - dual) @ basis / (values + pull)) @ basis.T
            moved = dense + dual / pull
            mask = self._largest(np.abs(moved), share, pattern)
            sparse = np.where(mask, moved, 0)
            dual += pull * (dense - sparse)
            pull *= np.float32(GROWTH)
        start = sparse.astype(np.float64) / self._deviations
        return masked(self.weight @ self.covariance, self.covariance, mask, start)

    def guess(self, share: float, pattern: Pattern | None = None) -> Matrix:
        """Return a weight of nearly the same error in a fraction of the time: the mask ignores what others take over.

        The elements with the largest ``|w_k|·√S_kk`` stay (Sun et al., Wanda, 2023).
        """
        if self.covariance is None:
            return self.fit(share, pattern)
        mask = self._largest(np.abs(self.weight) * self._deviations, share, pattern)
        return masked(self.weight @ self.covariance, self.covariance, mask, self.weight, STEPS // 2)

    @cached_property
    def _deviations(self) -> Matrix:
        assert self.covariance is not None
        return np.sqrt(np.diag(self.covariance))

    @cached_property
    def _modes(self) -> tuple[Floats, Floats]:
        """The correlations of the inputs as eigenvalues and eigenvectors."""
        assert self.covariance is not None
        correlations = self.covariance / np.outer(self._deviations, self._deviations)
        values, basis = np.linalg.eigh(correlations.astype(np.float32))
        return np.maximum(values, 1e-6), basis

    def _largest(self, scores: NDArray[np.floating], share: float, pattern: Pattern | None) -> Mask:
        if pattern is None:
            drop = scores.size - max(round(share * scores.size), 1)
            mask = np.ones(scores.size, np.bool_)
            if drop > 0:
                mask[np.argpartition(scores, drop - 1, axis=None)[:drop]] = False
            return mask.reshape(scores.shape)
        keep, of = pattern
        order = np.arange(scores.shape[1]) if self.neighbours is None else np.asarray(self.neighbours)
        groups = scores[:, order].reshape(len(scores), -1, of)
        chosen = np.argsort(-groups, axis=-1, kind="stable")[..., :keep]
        grouped = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(grouped, chosen, True, axis=-1)
        mask = np.zeros(scores.shape, np.bool_)
        mask[:, order] = grouped.reshape(scores.shape)
        return mask


def masked(target: Matrix, covariance: Matrix, mask: Mask, start: Matrix, steps: int = STEPS) -> Matrix:
    """Return X with zeros outside of ``mask`` that nearly solves ``X·S = target`` on it, row by row, from ``start``.

    ``target`` is W·S, or the covariance of what a layer should answer with what it reads.
    """
    diagonal = np.maximum(np.diag(covariance), 1e-300)
    x = np.where(mask, start, 0)
    residual = np.where(mask, target - x @ covariance, 0)
    z = residual / diagonal
    direction, energy = z, (residual * z).sum(1)
    for _ in range(steps):
        image = np.where(mask, direction @ covariance, 0)
        curvature = (direction * image).sum(1)
        step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)[:, None]
        x = x + step * direction
        residual = residual - step * image
        z = residual / diagonal
        before, energy = energy, (residual * z).sum(1)
        growth = np.divide(energy, before, out=np.zeros_like(energy), where=before > 0)
        direction = z + growth[:, None] * direction
    return x
