"""Optimal brain surgeon for blocks of input columns: which to remove from linear layers, and what the rest takes over.

For a layer ``y = W·x + b`` with the covariance S of x, ``H = S + λI``: removing the columns c and letting all others
take over what they can adds the output error ``tr(W_c [H⁻¹]_cc⁻¹ W_cᵀ)`` and leaves ``W − W_c [H⁻¹]_cc⁻¹ [H⁻¹]_c``
(Frantar and Alistarh, Optimal Brain Compression, 2022, in the block form of ZipLM).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.linear.definite import inverse, root

__all__ = ["Inverses", "Part", "Sweep", "compensate", "sweep"]

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


class Inverses:
    """The inverses of covariances, each kept until the last of those who need it has had it."""

    def __init__(self, spreads: Iterable[Matrix | None] = ()) -> None:
        self._left = Counter(id(spread) for spread in spreads)
        self._kept: dict[int, Matrix] = {}

    def take(self, spread: Matrix) -> Matrix:
        """Return the inverse; it is not to be changed."""
        found = self._kept.pop(id(spread), None)
        found = inverse(spread) if found is None else found
        self._left[id(spread)] -= 1
        if self._left[id(spread)] > 0:
            self._kept[id(spread)] = found
        return found


def sweep(parts: Sequence[Part], units: int, least: int = 1, inverses: Inverses | None = None) -> Sweep:
    """Remove the unit that costs least, given all that is gone and repaired, until ``least`` units are left.

    The loss is the sum over the parts of ``scale`` times the squared output error after least squares.
    """
    inverses = Inverses() if inverses is None else inverses
    states = [_State(part, inverses) for part in parts]
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
    """A part while units leave it: the repaired weight, and the inverse G of H over the columns that are left.

    Removing the columns c takes ``G_{:,c} [G_cc]⁻¹ G_{c,:}`` from G: a step of a Cholesky factorization whose pivots
    are chosen on the way. With ``L Lᵀ = G_cc`` and ``V = L⁻¹ G_{c,:}`` that is VᵀV. So the rows of V are collected, and
    those of G are brought up to date only as their unit leaves, but for the blocks of the units on its diagonal. Once
    half of the columns are gone, what is left is written out anew.
    """

    def __init__(self, part: Part, inverses: Inverses) -> None:
        self.scale = part.scale
        self.weight = part.weight.copy()
        self.columns = part.columns
        self.inverse = None if part.spread is None else inverses.take(part.spread)
        if self.inverse is not None:
            self.blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
            self.rows = np.zeros((0, len(self.inverse)))
            self.gone = np.zeros(len(self.inverse), np.bool_)

    def scores(self, units: Indices) -> Matrix:
        """Return the error that removing each of the units alone would add."""
        columns = self.columns[units]
        weights = self.weight[:, columns]  # (O, n, k)
        if self.inverse is None or columns.shape[1] == 1:
            norms: Matrix = self.scale * np.einsum("onk,onk->n", weights, weights)
            return norms if self.inverse is None else norms / self.blocks[units, 0, 0]
        energy = np.einsum("onk,onl->nkl", weights, weights, optimize=True)
        errors: Matrix = self.scale * np.trace(np.linalg.solve(self.blocks[units], energy), axis1=1, axis2=2)
        return errors

    def remove(self, units: Indices) -> float:
        """Remove the units, let the other columns take over, and return the error that this adds."""
        columns = self.columns[units].reshape(-1)
        weights = self.weight[:, columns]
        if self.inverse is None:
            self.weight[:, columns] = 0.0
            return self.scale * float((weights**2).sum())
        count = int(self.gone.sum())
        if not count:
            self.rows = np.empty((len(self.gone) // 2 + len(columns), len(self.gone)))
        known = self.rows[:count]
        rows = self.inverse[columns] - known[:, columns].T @ known
        half = np.linalg.inv(root(rows[:, columns]))
        new, taken = half @ rows, half @ weights.T
        self.weight -= taken.T @ new
        self.weight[:, columns] = 0.0
        mine = new[:, self.columns]  # (b, n, k)
        self.blocks -= mine.transpose(1, 2, 0) @ mine.transpose(1, 0, 2)
        self.rows[count : count + len(columns)] = new
        self.gone[columns] = True
        if 2 * (count + len(columns)) > len(self.gone):
            self._write_out()
        return self.scale * float(np.sum(taken**2))

    def _write_out(self) -> None:
        """Leave out the columns that are gone; units that are gone have any columns from then on."""
        assert self.inverse is not None
        left = np.flatnonzero(~self.gone)
        known = self.rows[: len(self.gone) - len(left), left]
        self.inverse = self.inverse[np.ix_(left, left)] - known.T @ known
        self.weight = self.weight[:, left]
        self.columns = np.maximum(np.cumsum(~self.gone) - 1, 0)[self.columns]
        self.rows = np.zeros((0, len(left)))
        self.gone = np.zeros(len(left), np.bool_)


def compensate(weight: Matrix, spread: Matrix, kept: Indices) -> Matrix:
    """Return the weight on the ``kept`` columns alone that answers like ``weight``: ``W S_{:,K} S_KK⁻¹``."""
    new: Matrix = np.linalg.solve(spread[np.ix_(kept, kept)], spread[kept] @ weight.T).T
    return new
