"""Names of kinds of arrays, which of their values are ordinary ones, and values of fewer bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASK", "Array", "Matrix", "ordinary", "significant"]

MASK = 1e30
"""Values at least this large are masks or infinities, not signal: they enter no statistic."""
Array = NDArray[np.generic]
Matrix = NDArray[np.float64]


def significant(values: NDArray[np.floating] | float, bits: int) -> NDArray[np.floating]:
    """Return values rounded to so many significant bits, by at most ``2⁻ᵇⁱᵗˢ`` of each."""
    mantissas, exponents = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(mantissas * 2.0**bits) / 2.0**bits, exponents))


def ordinary(values: Array) -> NDArray[np.bool_] | None:
    """Return where the values are no NaN, infinity or mask; None if all of them are, which is quickly seen."""
    with np.errstate(invalid="ignore", over="ignore"):
        if values.size == 0 or (float(values.min()) > -MASK and float(values.max()) < MASK):
            return None
        return np.asarray(np.abs(values.astype(np.float32)) < MASK)
