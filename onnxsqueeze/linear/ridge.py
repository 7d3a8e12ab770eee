"""Least squares with a ridge towards a present weight, and which ridge serves rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.statistics.paired import Cross
from onnxsqueeze.statistics.shrinkage import shrunk

__all__ = ["Fit", "lowest"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ over the mean of the diagonal; the one that serves unseen feeds best is taken."""


def lowest(error_of: Callable[[float], float]) -> tuple[float, float]:
    """Return the ridge with the least error, and that: from the middle on downhill, for there is one valley."""
    start = len(RIDGES) // 2
    at, least = start, error_of(RIDGES[start])
    for step in (-1, 1):
        while at == start or step * (at - start) > 0:
            if not 0 <= at + step < len(RIDGES) or (error := error_of(RIDGES[at + step])) >= least:
                break
            at, least = at + step, error
    return RIDGES[at], least


class Fit:
    """Weight and bias of least ``‖y − W·x − b‖²`` for any ridge towards the present weight; few rows are ``shrunk``."""

    def __init__(self, cross: Cross, weight: Matrix) -> None:
        self.weight = weight
        self.mean_x, self.mean_y = cross.x / cross.n, cross.y / cross.n
        spread = cross.xx / cross.n - np.outer(self.mean_x, self.mean_x)
        mixed = cross.yx / cross.n - np.outer(self.mean_y, self.mean_x)
        self.level = max(float(np.trace(spread)) / len(spread), 1e-30)
        self.wanted = (mixed - weight @ spread).T
        self.stiff = shrunk(spread, cross.n)

    def at(self, ridge: float) -> tuple[Matrix, Matrix]:
        """Return weight and bias with a ridge relative to the mean variance of the inputs."""
        stiff = self.stiff.copy()
        stiff.flat[:: len(stiff) + 1] += ridge * self.level
        new = self.weight + np.linalg.solve(stiff, self.wanted).T
        return new, self.mean_y - new @ self.mean_x
