"""Sums of depthwise-separable convolutions fitted to the inputs of a convolution.

``depthwise`` filters each input channel with R kernels, then mixes: ``Ŵ[o,c,t] = Σ_r P[o,rc]·D[rc,t]``. ``pointwise``
mixes first, then filters each output channel: ``Ŵ[o,c,t] = Σ_r D[ro,t]·P[ro,c]``. With R = Πkernel both are exact
(network decoupling); fewer are fitted to the covariance S of the inputs by alternating least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.chains import Chain
from onnxsqueeze.linear.fitting import Fitting, relative_error
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.targets.times import Shape
from onnxsqueeze.techniques.lowrank.forms import Candidate

__all__ = ["branches", "candidates", "depthwise", "outline", "pointwise", "recomposed"]

SWEEPS = 3
FORMS = ("depthwise", "pointwise")


def candidates(fitting: Fitting, most: int = 5, rank: int | None = None) -> Iterator[Candidate]:
    """Yield both orders at R = 1 … ``most`` with their errors; with ``rank`` only that R, or the largest there is."""
    layer = fitting.layer
    if layer.op != "Conv" or prod(layer.kernel) < 4 or fitting.energy <= 0:
        return
    for form in FORMS:
        side = layer.outputs if form == "depthwise" else layer.channels
        limit = min(prod(layer.kernel), side)
        for r in range(1, min(most, limit) + 1) if rank is None else [min(rank, limit)]:
            first, second = _factors(fitting, form, r)
            yield Candidate(form, (r,), relative_error(fitting, recomposed(layer, form, first, second)))


def outline(layer: Linear, form: str, ranks: Sequence[int]) -> tuple[Shape, ...]:
    """Return the shapes of the operators of R branches."""
    taps, stride = prod(layer.kernel), prod(layer.strides)
    if form == "depthwise":
        return (Shape(layer.channels, 1, taps, depthwise=True), Shape(layer.outputs, layer.channels)) * ranks[0]
    one = (Shape(layer.outputs, layer.channels, 1, stride), Shape(layer.outputs, 1, taps, depthwise=True))
    return one * ranks[0]


def branches(fitting: Fitting, candidate: Candidate) -> tuple[list[Chain], Matrix]:
    """Return the R branches of a candidate, and the weight (O, K) that they amount to."""
    layer, form, r = fitting.layer, candidate.form, candidate.ranks[0]
    first, second = _factors(fitting, form, r)
    dims = range(len(layer.kernel))
    found: list[Chain] = []
    for i in range(r):
        if form == "depthwise":
            kernels = first[i].reshape(layer.channels, 1, *layer.kernel)
            found.append((layer.stage(kernels, dims, group=layer.channels), layer.stage(second[i])))
        else:
            kernels = second[i].reshape(layer.outputs, 1, *layer.kernel)
            found.append((layer.stage(first[i]), layer.stage(kernels, dims, group=layer.outputs)))
    return found, recomposed(layer, form, first, second)


def recomposed(layer: Linear, form: str, first: Matrix, second: Matrix) -> Matrix:
    """Return Ŵ (O, K) of the two factors, each stacked over R."""
    equation = "rct,roc->oct" if form == "depthwise" else "roc,rot->oct"
    return np.asarray(np.einsum(equation, first, second, optimize=True)).reshape(layer.outputs, layer.columns)


def _factors(fitting: Fitting, form: str, rank: int) -> tuple[Matrix, Matrix]:
    key = f"{form}{rank}"
    if key not in fitting._cache:
        fitting._cache[key] = depthwise(fitting, rank) if form == "depthwise" else pointwise(fitting, rank)
    first, second = fitting._cache[key]
    return first, second


def depthwise(fitting: Fitting, rank: int, sweeps: int = SWEEPS) -> tuple[Matrix, Matrix]:
    """Return D (R, C, t) and P (R, O, C): per-channel SVDs, then alternating least squares in the norm of S.

    Given D, ``P = W S Tᵀ (T S Tᵀ)⁻¹`` with T the rows of D spread out; given P and the other channels,
    ``ΔD_c = (P_cᵀP_c)⁻¹ P_cᵀ E_c S_cc⁻¹`` with E = (W − Ŵ) S.
    """
    layer = fitting.layer
    outputs, c, taps = layer.outputs, layer.channels, prod(layer.kernel)
    spread = np.eye(layer.columns) if fitting.covariance is None else fitting.covariance
    weight = fitting.weight.reshape(outputs, c, taps)
    kernels = np.linalg.svd(weight.transpose(1, 0, 2), full_matrices=False)[2][:, :rank].transpose(1, 0, 2)  # (R, C, t)
    target = fitting.weight @ spread
    mixing = _mixing(kernels, target, spread)
    if fitting.covariance is None or rank == min(outputs, taps):
        return kernels, mixing
    best = (kernels, mixing)
    least = relative_error(fitting, recomposed(layer, "depthwise", kernels, mixing))
    cubes = spread.reshape(c, taps, c, taps)
    local = np.linalg.inv(cubes[np.arange(c), :, np.arange(c), :])
    for _ in range(sweeps):
        kernels = kernels.copy()
        error = target - recomposed(layer, "depthwise", kernels, mixing) @ spread
        for i in range(c):
            mine = mixing[:, :, i].T  # (O, R)
            gram = mine.T @ mine
            gram[np.diag_indices_from(gram)] += 1e-9 * max(float(np.trace(gram)), 1e-300)
            step = np.linalg.solve(gram, mine.T @ error[:, i * taps : (i + 1) * taps]) @ local[i]
            kernels[:, i] += step
            error -= mine @ (step @ spread[i * taps : (i + 1) * taps])
        mixing = _mixing(kernels, target, spread)
        found = relative_error(fitting, recomposed(layer, "depthwise", kernels, mixing))
        if found >= least:
            break
        best, least = (kernels, mixing), found
    return best


def _mixing(kernels: Matrix, target: Matrix, spread: Matrix) -> Matrix:
    """Return the least-squares P (R, O, C) for given kernels (R, C, t)."""
    r, c, taps = kernels.shape
    image = np.einsum("rct,ctk->rck", kernels, spread.reshape(c, taps, -1), optimize=True).reshape(r * c, -1)
    gram = np.einsum("kct,rct->krc", image.reshape(r * c, c, taps), kernels, optimize=True).reshape(r * c, r * c)
    cross = np.einsum("oct,rct->orc", target.reshape(-1, c, taps), kernels, optimize=True).reshape(-1, r * c)
    gram = (gram + gram.T) / 2
    gram[np.diag_indices_from(gram)] += 1e-10 * float(np.trace(gram)) / len(gram)
    solved: Matrix = np.asarray(np.linalg.solve(gram, cross.T), np.float64)
    return np.asarray(solved.reshape(r, c, -1).transpose(0, 2, 1))


def pointwise(fitting: Fitting, rank: int) -> tuple[Matrix, Matrix]:
    """Return P (R, O, C) and D (R, O, t): whitened SVDs per output channel, then D by least squares."""
    layer = fitting.layer
    outputs, c, taps = layer.outputs, layer.channels, prod(layer.kernel)
    weight = fitting.weight.reshape(outputs, c, taps)
    spread = np.eye(layer.columns) if fitting.covariance is None else fitting.covariance
    cubes = spread.reshape(c, taps, c, taps)
    values, axes = np.linalg.eigh(np.einsum("itjt->ij", cubes) / taps)
    values = np.sqrt(np.maximum(values, 1e-12 * max(float(values[-1]), 1e-300)))
    left = np.linalg.svd((axes * values).T @ weight, full_matrices=False)[0][:, :, :rank]  # (O, C, R)
    mixing = ((axes / values) @ left).transpose(2, 0, 1)  # (R, O, C)
    target = (fitting.weight @ spread).reshape(outputs, c, taps)
    cross = np.einsum("roc,oct->ort", mixing, target, optimize=True).reshape(outputs, -1)
    gram = np.empty((outputs, rank * taps, rank * taps))
    flat = cubes.reshape(c, -1)
    for o in range(outputs):
        image = (mixing[:, o] @ flat).reshape(rank, taps, c, taps)
        gram[o] = np.einsum("rtcs,qc->rtqs", image, mixing[:, o], optimize=True).reshape(rank * taps, -1)
    level = 1e-10 * np.maximum(np.trace(gram, axis1=1, axis2=2), 1e-300) / (rank * taps)
    gram += level[:, None, None] * np.eye(rank * taps)
    kernels = np.linalg.solve(gram, cross[:, :, None])[:, :, 0].reshape(outputs, rank, taps)
    return mixing, kernels.transpose(1, 0, 2)
