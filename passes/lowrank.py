"""``lowrank``: one linear layer becomes two thinner ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import edit
from onnxsqueeze.calibration import Statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Gram, Need, Pass, Site, Skip
from onnxsqueeze.view import View, key_of

__all__ = ["LowRank"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace ``y = W·x + b`` by ``y = A·(B·x) + b̂`` where ``A·B`` is close to ``W`` on the inputs that occur.

    With the covariance S of the calibration inputs, ``W S Wᵀ = U Λ Uᵀ``; ``A = U_r``, ``B = U_rᵀ W`` and
    ``b̂ = b + (I − U_r U_rᵀ) W μ`` give the least output error of all rank-r factors: exactly ``Σ_{i>r} λ_i``
    (principal components of the output). Without feeds S = I, which is the truncated SVD.

    Gemm and MatMul with a constant weight, and 1×1 Conv. The rank is ``rank``, or what leaves ``ratio`` of the
    layer's parameters, or the smallest that keeps ``energy`` of the output's variance.
    """

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "factor the weights of linear layers, fitted to the calibration inputs"

    energy: float = 0.999
    ratio: float | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError("energy is over 0 and at most 1")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError("ratio is between 0 and 1")
        if self.rank is not None and self.rank < 1:
            raise ValueError("rank is at least 1")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer that could be factored."""
        for node in view.of("Gemm", "MatMul", "Conv"):
            if refusal(view, node) is None and not view.in_body(node):
                yield _gram(node)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Yield a site for every layer whose factors are smaller than its weight."""
        for node in view.of("Gemm", "MatMul", "Conv"):
            key, reason = key_of(node), refusal(view, node)
            if reason == "":
                continue
            if reason is not None:
                yield Skip(key, reason)
                continue
            weight = as_matrix(node, np.asarray(view.value(node.inputs[1])))
            if not np.isfinite(weight).all():
                yield Skip(key, "its weight holds NaN or infinity")
                continue
            rows, columns = weight.shape
            covariance, mean = _moments(stats, node, columns)
            basis, values = components(weight, covariance)
            rank = self._rank(values, rows, columns)
            if rank * (rows + columns) >= 0.9 * rows * columns:
                yield Skip(key, f"rank {rank} of {min(rows, columns)} would not be smaller")
                continue
            total = float(values.sum())
            error = float(values[rank:].sum()) / total if total > 0 else 0.0
            left = basis[:, :rank]
            right = left.T @ weight
            shift = None if mean is None else weight @ mean - left @ (right @ mean)
            detail: dict[str, object] = {"rows": rows, "columns": columns, "rank": rank}
            yield Site(key, f"{rows}x{columns} at rank {rank}", detail, error, work=(left, right, shift))

    def _rank(self, values: Matrix, rows: int, columns: int) -> int:
        if self.rank is not None:
            return min(self.rank, len(values))
        if self.ratio is not None:
            return max(1, int(self.ratio * rows * columns / (rows + columns)))
        kept = np.cumsum(values)
        if kept[-1] <= 0:
            return 1
        return int(np.searchsorted(kept, self.energy * kept[-1]) + 1)

    def apply(self, site: Site, graph: Graph) -> None:
        """Put two nodes where there was one."""
        node, scope = edit.find(graph, site.key)
        left, right, shift = site.work  # type: ignore[misc]
        dtype = np.dtype(View(graph).value(node.inputs[1]).dtype)  # type: ignore[union-attr]
        name = node.inputs[1].name or site.key
        x, bias = node.inputs[0], (node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None)
        if shift is not None and node.op != "MatMul":
            old = 0.0 if bias is None else np.asarray(View(graph).value(bias), np.float64).reshape(-1)
            bias = edit.constant(graph, f"{bias.name if bias else name + '_bias'}_lowrank", (old + shift).astype(dtype))
        if node.op == "Conv":
            ones = (1,) * (len(node.inputs[1].shape) - 2)
            first = edit.constant(graph, f"{name}_b", right.reshape(*right.shape, *ones).astype(dtype))
            second = edit.constant(graph, f"{name}_a", left.reshape(*left.shape, *ones).astype(dtype))
            attrs = dict(node.attrs)
            middle = edit.insert(graph, scope, "Conv", [x, first], f"{site.key}_lowrank", attrs, before=node)
            edit.replace(graph, scope, node, "Conv", [middle, second, *([bias] if bias else [])])
            return
        first = edit.constant(graph, f"{name}_b", np.ascontiguousarray(right.T).astype(dtype))
        second = edit.constant(graph, f"{name}_a", np.ascontiguousarray(left.T).astype(dtype))
        if node.op == "Gemm":
            attrs = {k: v for k, v in node.attrs.items() if k == "transA"}
            middle = edit.insert(graph, scope, "Gemm", [x, first], f"{site.key}_lowrank", attrs, before=node)
            edit.replace(graph, scope, node, "Gemm", [middle, second, *([bias] if bias else [])])
            return
        middle = edit.insert(graph, scope, "MatMul", [x, first], f"{site.key}_lowrank", before=node)
        made = edit.replace(graph, scope, node, "MatMul", [middle, second])
        if shift is not None:
            _shift(graph, scope, made, shift.astype(dtype))


def refusal(view: View, node: gs.Node) -> str | None:
    """Return why the layer cannot be factored: None if it can, "" if it is no layer with a weight at all."""
    if len(node.inputs) < 2:
        return ""
    weight = node.inputs[1]
    if isinstance(weight, gs.Constant) and getattr(weight, "overridable", False):
        return "its weight is also an input, so the caller may override it"
    value = view.value(weight)
    if value is None or value.dtype.kind != "f":
        return "" if value is None else f"its weight is {value.dtype}"
    if len(weight.outputs) > 1:
        return "its weight is shared"
    if node.op == "MatMul" and value.ndim != 2:
        return f"its weight has {value.ndim} axes"
    if node.op == "Conv":
        if int(node.attrs.get("group", 1)) != 1:
            return "it is a grouped convolution"
        if any(k != 1 for k in value.shape[2:]):
            return f"its kernel is {'x'.join(map(str, value.shape[2:]))}, not 1x1"
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0):
        return "its alpha or beta is not 1"
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name and view.value(node.inputs[2]) is None:
        return "its bias is computed at run time"
    return None


def as_matrix(node: gs.Node, weight: NDArray[np.generic]) -> Matrix:
    """Return the weight as (outputs, inputs) in float64."""
    value = weight.astype(np.float64)
    if node.op == "Conv":
        return value.reshape(value.shape[0], -1)
    return value if node.op == "Gemm" and node.attrs.get("transB", 0) else value.T


def components(weight: Matrix, covariance: Matrix | None) -> tuple[Matrix, Matrix]:
    """Return the output's principal directions U (O, q) and their variances λ, largest first, q = min(O, K)."""
    rows, columns = weight.shape
    if rows <= columns:
        gram = weight @ weight.T if covariance is None else weight @ covariance @ weight.T
        values, basis = np.linalg.eigh((gram + gram.T) / 2)
        return basis[:, ::-1], np.maximum(values[::-1], 0)
    if covariance is None:
        root = np.eye(columns)
    else:
        spread, axes = np.linalg.eigh(covariance)
        root = axes * np.sqrt(np.maximum(spread, 0))
    basis, sigma, _ = np.linalg.svd(weight @ root, full_matrices=False)
    return basis, sigma**2


def _gram(node: gs.Node) -> Gram:
    if node.op == "Conv":
        return Gram(node.inputs[0].name, axis=1)
    return Gram(node.inputs[0].name, axis=0 if node.op == "Gemm" and node.attrs.get("transA", 0) else -1)


def _moments(stats: Statistics, node: gs.Node, columns: int) -> tuple[Matrix | None, Matrix | None]:
    """Return the regularised covariance S + λ·tr(S)/K·I and the mean of the layer's input, None without feeds."""
    found = stats.of(_gram(node))
    if found is None or len(found.total) != columns:
        return None, None
    mean = found.mean
    covariance = found.second - np.outer(mean, mean)
    ridge = 1e-4 if found.n >= 8 * columns else 1e-2
    return covariance + ridge * float(np.trace(covariance)) / columns * np.eye(columns), mean


def _shift(graph: Graph, scope: Graph, node: gs.Node, shift: NDArray[np.generic]) -> None:
    """Add a constant to the output of a MatMul: into the bias Add that follows, or as a new Add."""
    output = node.outputs[0]
    reader = output.outputs[0] if len(output.outputs) == 1 and not any(output is t for t in scope.outputs) else None
    if reader is not None and reader.op == "Add":
        slot = 0 if reader.inputs[1] is output else 1
        old = View(graph).value(reader.inputs[slot])
        if old is not None and old.shape in (shift.shape, (1,)) and old.dtype == shift.dtype:
            reader.inputs[slot] = edit.constant(graph, f"{reader.inputs[slot].name}_lowrank", old + shift)
            return
    raw = edit.variable(graph, f"{output.name}_raw")
    node.outputs[0] = raw
    edit.insert(graph, scope, "Add", [raw, edit.constant(graph, f"{output.name}_shift", shift)], [output], after=node)
