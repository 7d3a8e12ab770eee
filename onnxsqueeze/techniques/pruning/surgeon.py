"""Optimal brain surgeon for blocks of input columns: which to remove from linear layers, and what the rest takes over.

For a layer ``y = W·x + b`` with the covariance S of x, ``H = S + λI``: removing the columns c and letting all others
take over what they can adds the output error ``tr(W_c [H⁻¹]_cc⁻¹ W_cᵀ)`` and leaves ``W − W_c [H⁻¹]_cc⁻¹ [H⁻¹]_c``
(Frantar and Alistarh, Optimal Brain Compression, 2022, in the block form of ZipLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Sweep", "compensate", "sweep"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
STEPS = 96
"""A sweep removes units one by one, or, from twice as many units on, in about so many steps."""


@dataclass(frozen=True)
class Part:
    """A linear layer that reads the units of a group.

    ``weight`` is (O, K) and ``spread`` the regularised covariance (K, K) of its input rows, None if it is unknown and
    taken for the identity. ``columns`` (units, k) are the columns that each unit owns; columns of no unit stay.
    ``scale`` turns squared output errors into relative errors of the answers.
    """

    weight: Matrix
    spread: Matrix | None
    columns: Indices
    scale: float = 1.0


@dataclass(frozen=True)
class Sweep:
    """The order in which units go, and ``loss[n]``, the error once the first n are gone."""

    order: Indices
    loss: Matrix


def sweep(parts: Sequence[Part], units: int, least: int = 1) -> Sweep:
    """Remove the unit that costs least, given all that is gone and repaired, until ``least`` units are left.

    The loss is the sum over the parts of ``scale`` times the squared output error after least squares.
    """
    states = [_State(part) for part in parts]
    alive = np.arange(units)
    order: list[int] = []
    loss = [0.0]
    batch = max(1, units // STEPS)
    while len(alive) > least:
        scores = sum((state.scores(alive) for state in states), np.zeros(len(alive)))
        worst = np.argsort(scores, kind="stable")[: min(batch, len(alive) - least)]
        gone = alive[worst]
        cost = sum(state.remove(gone) for state in states)
        share = scores[worst] / max(float(scores[worst].sum()), 1e-300)
        order += gone.tolist()
        loss += (loss[-1] + cost * np.cumsum(share)).tolist()
        alive = np.delete(alive, worst)
    return Sweep(np.asarray(order, np.int64), np.asarray(loss))


class _State:
    """A part while units leave it: the repaired weight and the inverse of H over the columns that are left."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.weight = part.weight.copy()
        self.inverse = None if part.spread is None else np.linalg.inv(part.spread)

    def scores(self, units: Indices) -> Matrix:
        """Return the error that removing each of the units alone would add."""
        columns = self.part.columns[units]
        weights = self.weight[:, columns]  # (O, n, k)
        norms: Matrix = self.part.scale * np.einsum("onk,onk->n", weights, weights)
        if self.inverse is None:
            return norms
        if columns.shape[1] == 1:
            return norms / np.diag(self.inverse)[columns[:, 0]]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        energy = np.einsum("onk,onl->nkl", weights, weights, optimize=True)
        errors: Matrix = self.part.scale * np.trace(np.linalg.solve(blocks, energy), axis1=1, axis2=2)
        return errors

    def remove(self, units: Indices) -> float:
        """Remove the units, let the other columns take over, and return the error that this adds."""
        columns = self.part.columns[units].reshape(-1)
        weights = self.weight[:, columns]
        if self.inverse is None:
            self.weight[:, columns] = 0.0
            return self.part.scale * float((weights**2).sum())
        rows = self.inverse[columns]
        block = rows[:, columns]
        share = np.linalg.solve(block, rows)
        self.weight -= weights @ share
        self.inverse -= rows.T @ share
        self.weight[:, columns] = 0.0
        return self.part.scale * float(np.sum(np.linalg.solve(block, weights.T) * weights.T))


def compensate(weight: Matrix, spread: Matrix, kept: Indices) -> Matrix:
    """Return the weight on the ``kept`` columns alone that answers like ``weight``: ``W S_{:,K} S_KK⁻¹``."""
    new: Matrix = np.linalg.solve(spread[np.ix_(kept, kept)], spread[kept] @ weight.T).T
    return new
