"""Inverses of positive definite matrices, by products of large blocks: half of the work of a general inverse."""

from __future__ import annotations

import numpy as np

from onnxsqueeze.arrays import Matrix

__all__ = ["inverse", "lower_inverse", "root"]

SMALL = 64
"""Up to so many rows a triangular matrix is inverted like any other."""


def inverse(matrix: Matrix) -> Matrix:
    """Return ``A⁻¹ = L⁻ᵀ L⁻¹`` of a positive definite ``A = L Lᵀ`` (n, n); of another one what ``numpy`` says."""
    try:
        lower = np.asarray(np.linalg.cholesky(matrix), np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.inv(matrix), np.float64)
    half = lower_inverse(lower)
    return np.asarray(half.T @ half, np.float64)


def lower_inverse(lower: Matrix) -> Matrix:
    """Return ``L⁻¹`` of a lower triangular L (n, n).

    It goes by halves: ``[[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [−C⁻¹BA⁻¹, C⁻¹]]``.
    """
    n = len(lower)
    if n <= SMALL:
        return np.asarray(np.linalg.inv(lower), np.float64)
    m = n // 2
    found = np.zeros_like(lower)
    first, last = lower_inverse(lower[:m, :m]), lower_inverse(lower[m:, m:])
    found[:m, :m], found[m:, m:] = first, last
    found[m:, :m] = -(last @ (lower[m:, :m] @ first))
    return found


def root(block: Matrix) -> Matrix:
    """Return R with ``R Rᵀ = A``, which may be singular but for rounding: what is not positive counts as next to 0."""
    try:
        return np.asarray(np.linalg.cholesky(block), np.float64)
    except np.linalg.LinAlgError:
        values, basis = np.linalg.eigh((block + block.T) / 2)
        least = max(float(values[-1]), 1e-300) * 1e-14
        found: Matrix = basis * np.sqrt(np.maximum(values, least))
        return found
