"""Factors of a weight fitted to its inputs, in closed form: what each rank costs in error, and the factors themselves.

With the covariance S of the input rows, the relative output error of a weight Ŵ is
``tr[(W − Ŵ) S (W − Ŵ)ᵀ] / tr[W S Wᵀ]``. A first factor V fixes rows T that span what Ŵ may be; the best second factor
is ``W S Tᵀ (T S Tᵀ)⁻¹``. The rows of V are ordered by importance, so one Cholesky factorization of ``T S Tᵀ`` gives the
error at every rank: with ``L Lᵀ = T S Tᵀ`` and ``Z = L⁻¹ T S Wᵀ`` the rank-r error is ``1 − ‖Z[:r]‖² / tr[W S Wᵀ]``,
and the second factor is ``Z[:r]ᵀ L_r⁻¹``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.chains import Chain
from onnxsqueeze.linear.definite import lower_inverse
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.targets.times import Shape

__all__ = [
    "Candidate",
    "balanced",
    "candidates",
    "chain",
    "channel",
    "compose",
    "effective",
    "forget",
    "forms",
    "outline",
    "ranks",
]

STEP = 8
"""Ranks are multiples of this where a layer has 32 or more: SIMD lanes are filled, and curves are short."""
CONV_STEP = 16
"""Ranks of a Conv are multiples of this: ONNX Runtime lays its channels out in blocks, 8-bit ones too."""


@dataclass(frozen=True)
class Candidate:
    """One way to write a layer: its ``form``, its ranks, and the relative output error that its algebra predicts."""

    form: str
    ranks: tuple[int, ...]
    error: float


# ---------------------------------------------------------------------------------------------- one basis: channel


def channel(fitting: Fitting) -> tuple[Matrix, Matrix]:
    """Return the output's principal directions U (O, q) and their variances λ (q), largest first, q = min(O, K).

    ``A = U_r``, ``B = U_rᵀ W`` is the best of all rank-r weights, with the error ``Σ_{i>r} λ_i``.
    """
    if "channel" not in fitting._cache:
        rows, columns = fitting.weight.shape
        if rows <= columns:
            values, basis = np.linalg.eigh(fitting.output_covariance())
            found = (basis[:, ::-1], np.maximum(values[::-1], 0))
        else:
            root = np.eye(columns)
            if fitting.covariance is not None:
                spread, axes = np.linalg.eigh(fitting.covariance)
                root = axes * np.sqrt(np.maximum(spread, 0))
            basis, sigma, _ = np.linalg.svd(fitting.weight @ root, full_matrices=False)
            found = (basis, sigma**2)
        fitting._cache["channel"] = found
    basis, values = fitting._cache["channel"]
    return basis, values


# ----------------------------------------------------------------------------- two factors: the first spans some axes


def _axes(layer: Linear, form: str) -> tuple[int, ...]:
    """The axes of the weight (O, C, *kernel) that the first factor contracts, without O."""
    return {"input": (1,), "vertical": (1, 2), "horizontal": (1, 3)}[form]


def _first(fitting: Fitting, form: str, rank: int | None = None) -> tuple[Matrix, Matrix, Matrix]:
    """Return V (q, |a|), L⁻¹ and ``Z = L⁻¹ T S Wᵀ`` with blocks of |b| rows, where ``L Lᵀ = T S Tᵀ``.

    a are the axes that the first factor contracts, b the ones left to the second; T = V ⊗ I_b. V whitens: its q
    outputs have unit variance over the mean of the positions b; they go up to ``rank``, or where the chain would be
    as large as the layer.
    """
    form = "input" if form == "tucker" else form
    if form in fitting._cache and len(fitting._cache[form][0]) >= (rank or 0):
        v, half, z = fitting._cache[form]
        return v, half, z
    layer = fitting.layer
    shape = (layer.channels, *layer.kernel)
    mine = [axis - 1 for axis in _axes(layer, form)]
    rest = [axis for axis in range(len(shape)) if axis not in mine]
    a, b = prod(shape[i] for i in mine), prod(shape[i] for i in rest)
    order = np.transpose(np.arange(layer.columns).reshape(shape), (*mine, *rest)).reshape(-1)
    weight = fitting.weight[:, order]  # columns (a, b)
    full = np.eye(layer.columns) if fitting.covariance is None else fitting.covariance[np.ix_(order, order)]
    mean_gram = np.einsum("ibjb->ij", full.reshape(a, b, a, b)) / b
    spread, directions = np.linalg.eigh((mean_gram + mean_gram.T) / 2)
    spread = np.maximum(spread, 1e-12 * max(float(spread[-1]), 1e-300))
    stacked = weight.reshape(layer.outputs, a, b).transpose(1, 0, 2).reshape(a, -1)  # (a, O·b)
    image = (directions * np.sqrt(spread)).T @ stacked
    _, basis = np.linalg.eigh(image @ image.T)
    worthwhile = layer.outputs * layer.columns // (a + layer.outputs * b)
    limit = min(a, layer.outputs * b, max(rank or 0, worthwhile, 1))
    v = (basis[:, ::-1][:, :limit].T / np.sqrt(spread)) @ directions.T
    ts = (v @ full.reshape(a, b * layer.columns)).reshape(len(v) * b, layer.columns)
    q = (ts.reshape(-1, a, b).transpose(0, 2, 1).reshape(-1, a) @ v.T).reshape(len(v) * b, b, len(v))
    q = q.transpose(0, 2, 1).reshape(len(v) * b, len(v) * b)
    c = ts @ weight.T
    q = (q + q.T) / 2
    q[np.diag_indices_from(q)] += 1e-10 * float(np.trace(q)) / len(q)
    half = lower_inverse(np.linalg.cholesky(q))
    fitting._cache[form] = v, half, half @ c
    return fitting._cache[form]  # type: ignore[return-value]


def forms(layer: Linear) -> tuple[str, ...]:
    """Return the forms that a layer can take."""
    if layer.op != "Conv" or prod(layer.kernel) == 1:
        return ("channel",)
    if len(layer.kernel) == 2 and min(layer.kernel) > 1:
        return ("channel", "input", "tucker", "vertical", "horizontal")
    return ("channel", "input", "tucker")


def ranks(limit: int, step: int = STEP) -> list[int]:
    """Return the ranks worth trying up to ``limit``, smallest first; a small limit takes smaller steps."""
    step = step if limit >= 4 * STEP else STEP // 2 if limit >= 2 * STEP else 1
    return list(range(step, limit + 1, step))


def forget(fitting: Fitting) -> None:
    """Let go of the factorizations of a layer, but for what all ranks of ``channel`` come from.

    They take several times as much memory as its covariance, and one of them is computed again if it is chosen.
    """
    fitting.forget()
    for form in ("input", "vertical", "horizontal"):
        fitting._cache.pop(form, None)


def candidates(fitting: Fitting, allowed: Sequence[str] | None = None, rank: int | None = None) -> Iterator[Candidate]:
    """Yield every form and rank with its predicted error; with ``rank`` only that one (or the layer's full rank)."""
    total = fitting.energy
    if total <= 0:
        return
    for form in forms(fitting.layer):
        if allowed is not None and form not in allowed:
            continue
        if form == "channel":
            explained = np.cumsum(channel(fitting)[1])
        else:
            v, _, z = _first(fitting, form, rank)
            blocks = len(z) // len(v)
            explained = np.cumsum((z**2).sum(1).reshape(-1, blocks).sum(1))
        limit = len(explained)
        step = CONV_STEP if fitting.layer.op == "Conv" else STEP
        chosen = ranks(limit, step) if rank is None else [min(rank, limit)]
        chosen = chosen[:: max(len(chosen) // 12, 1)] if form == "tucker" else chosen
        if form != "tucker":
            for r in chosen:
                yield Candidate(form, (r,), max(1 - float(explained[r - 1]) / total, 0.0))
            continue
        for first in chosen:
            part = z[: first * blocks]
            inner = np.cumsum(np.maximum(np.linalg.eigvalsh(part.T @ part)[::-1], 0))
            for second in ranks(len(inner), step) if rank is None else [min(rank, len(inner))]:
                yield Candidate(form, (first, second), max(1 - float(inner[second - 1]) / total, 0.0))


def outline(layer: Linear, form: str, ranks_: Sequence[int]) -> tuple[Shape, ...]:
    """Return the shapes of the operators that a form and its ranks lead to."""
    c, o, taps, stride = layer.channels, layer.outputs, prod(layer.kernel), prod(layer.strides)
    r = ranks_[0]
    if form == "channel":
        return Shape(r, c, taps), Shape(o, r)
    if form == "input":
        return Shape(r, c, 1, stride), Shape(o, r, taps)
    if form == "tucker":
        return Shape(r, c, 1, stride), Shape(ranks_[1], r, taps), Shape(o, ranks_[1])
    mine = 0 if form == "vertical" else 1
    return Shape(r, c, layer.kernel[mine], layer.strides[1 - mine]), Shape(o, r, layer.kernel[1 - mine])


def chain(fitting: Fitting, candidate: Candidate) -> Chain:
    """Return the stages of a candidate. Intermediate channels have about unit variance, which suits 8-bit ranges."""
    layer, form, ranks_ = fitting.layer, candidate.form, candidate.ranks
    dims = tuple(range(len(layer.kernel)))
    if form == "channel":
        left, right = balanced(*channel(fitting), fitting.weight, ranks_[0])
        return (layer.stage(right.reshape(-1, layer.channels, *layer.kernel), dims), layer.stage(left))
    r = ranks_[0]
    v, half, z = _first(fitting, form, r)
    size = r * len(half) // len(v)
    second = z[:size].T @ half[:size, :size]  # (O, r·b), L of the first rows being that of all
    if form in ("vertical", "horizontal"):
        mine, rest = ((0,), (1,)) if form == "vertical" else ((1,), (0,))
        one = layer.stage(v[:r].reshape(r, layer.channels, -1), mine)
        return (one, layer.stage(second.reshape(layer.outputs, r, -1), rest))
    first = layer.stage(v[:r])
    if form == "input":
        return (first, layer.stage(second.reshape(layer.outputs, r, *layer.kernel), dims))
    values, basis = np.linalg.eigh(z[:size].T @ z[:size])  # the covariance of what the second factor answers
    left, core = balanced(basis[:, ::-1], np.maximum(values[::-1], 0), second, ranks_[1])
    return (first, layer.stage(core.reshape(-1, r, *layer.kernel), dims), layer.stage(left))


def compose(fitting: Fitting, candidate: Candidate) -> tuple[list[Chain], Matrix]:
    """Return the stages of a candidate as one branch, and the weight (O, K) that they amount to."""
    stages = chain(fitting, candidate)
    return [stages], effective(fitting.layer, stages)


def balanced(basis: Matrix, values: Matrix, weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return ``A = U_r·D`` and ``B = D⁻¹·U_rᵀ·W`` with D the standard deviations, at least 1e-3 of the first."""
    left = basis[:, :rank]
    spread = np.sqrt(values[:rank])
    spread = np.maximum(spread, 1e-3 * max(float(spread.max(initial=0.0)), 1e-30))
    return left * spread, (left.T @ weight) / spread[:, None]


def effective(layer: Linear, stages: Chain) -> Matrix:
    """Return the weight (O, K) that a chain of ungrouped stages amounts to."""
    if layer.op != "Conv":
        return prod_of([stage.weight for stage in stages])
    product = stages[0].weight
    for stage in stages[1:]:
        product = _compose(product, stage.weight)
    return product.reshape(layer.outputs, -1)


def prod_of(weights: Sequence[NDArray[np.float64]]) -> Matrix:
    """Return the product of the matrices, the last one leftmost."""
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return product


def _compose(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compose two kernels of which at most one extends along each spatial axis."""
    one, two = first.shape[2:], second.shape[2:]
    left = second.reshape(*second.shape[:2], -1)
    right = first.reshape(*first.shape[:2], -1)
    mixed = np.tensordot(left, right, (1, 0)).reshape(second.shape[0], *two, first.shape[1], *one)
    dims = len(one)
    order = [0, 1 + dims, *(axis for i in range(dims) for axis in (2 + dims + i, 1 + i))]
    shape = (second.shape[0], first.shape[1], *(a * b for a, b in zip(one, two, strict=True)))
    return np.asarray(mixed.transpose(order).reshape(shape))
