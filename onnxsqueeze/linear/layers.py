"""Linear layers seen alike: Conv, Gemm and MatMul as ``y = W·x + b`` on input rows x, and chains put in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.graph.words import type_name
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor
from onnxsqueeze.linear.chains import Stage
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.needs import Gram
from onnxsqueeze.statistics.shrinkage import shrunk

__all__ = ["Linear", "as_gram", "covariance", "describe", "laid_out", "matrix", "regular", "set_matrix"]

ROUNDING = 1e-6
"""Of the sum of the squares of inputs, what their covariance is not known to, since products are float32."""
STILL = 1e-3
"""Inputs whose variance is under this share of their square hardly vary."""


@dataclass(frozen=True)
class Linear:
    """A layer ``y = W·x + b``: W has ``outputs`` rows and ``columns`` = channels·Πkernel columns.

    ``kernel`` is empty for Gemm and MatMul; ``gram`` asks for the moments of its input rows. ``also`` are the keys of
    other layers on the same weight: it is edited for all of them, and ``gram`` stands for the rows of all.
    """

    key: str
    op: str
    gram: Gram
    outputs: int
    channels: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = ""
    also: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all layers on the weight."""
        return (self.key, *self.also)

    @property
    def columns(self) -> int:
        """The length of an input row."""
        return self.channels * prod(self.kernel)

    @property
    def parameters(self) -> int:
        """The elements of the weight."""
        return self.outputs * self.columns

    @property
    def by_taps(self) -> list[int]:
        """The columns with the channels of one tap side by side."""
        return [int(i) for i in np.arange(self.columns).reshape(self.channels, -1).T.reshape(-1)]

    def stage(self, weight: Matrix, axes: Sequence[int] = (), *, group: int = 1) -> Stage:
        """Return a stage that takes over the kernel, stride, dilation and padding of the spatial ``axes``.

        ``weight`` is (O, C/group, *kernel of those axes in order); along the other axes the kernel is 1.
        """
        if self.op != "Conv":
            return Stage(weight)
        dims = range(len(self.kernel))
        shape = tuple(self.kernel[a] if a in axes else 1 for a in dims)
        size = (*weight.shape[:2], *shape)
        if not axes:
            return Stage(weight.reshape(size))
        pads = tuple(self.pads[a + end * len(dims)] if a in axes else 0 for end in (0, 1) for a in dims)
        return Stage(
            weight.reshape(size),
            tuple(self.strides[a] if a in axes else 1 for a in dims),
            tuple(self.dilations[a] if a in axes else 1 for a in dims),
            () if self.auto_pad else pads,
            self.auto_pad,
            group,
        )


def describe(view: View, node: gs.Node, *, shared: bool = False) -> Linear | str | None:
    """Return the layer, why it must be left alone in words, or None if it is no layer with a constant weight.

    A weight that others read too is one to leave alone unless ``shared`` is set.
    """
    if node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if isinstance(weight, gs.Constant) and getattr(weight, "overridable", False):
        return "its weight is also an input, so the caller may override it"
    value = view.value(weight)
    if value is None:
        return None
    if value.dtype.kind != "f":
        return f"its weight is {type_name(value.dtype)}"
    if not shared and not view.alone(weight):
        return "its weight is shared"
    if node.op == "MatMul" and value.ndim != 2:
        return f"its weight has {value.ndim} axes"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) != 1:
        return "it is a grouped convolution"
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0):
        return "its alpha or beta is not 1"
    offset = bias_tensor(node)
    if offset is not None and view.value(offset) is None:
        return "its bias is computed at run time"
    if view.value(node.inputs[0]) is not None:
        return "its input is constant"
    if not np.isfinite(value).all():
        return "its weight holds NaN or infinity"
    key = key_of(node)
    if node.op != "Conv":
        axis = 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else -1
        rows, columns = value.shape if node.op == "Gemm" and node.attrs.get("transB", 0) else value.shape[::-1]
        return Linear(key, node.op, Gram(node.inputs[0].name, axis), int(rows), int(columns))
    dims = value.ndim - 2
    gram = as_gram(node, value.shape)
    if gram.kernel == (1,) * dims and set(gram.strides) <= {1} and not any(gram.pads) and not gram.auto_pad:
        gram = Gram(node.inputs[0].name, axis=1)
    return Linear(
        key,
        "Conv",
        gram,
        int(value.shape[0]),
        int(value.shape[1]),
        tuple(int(k) for k in value.shape[2:]),
        tuple(node.attrs.get("strides") or (1,) * dims),
        tuple(node.attrs.get("dilations") or (1,) * dims),
        tuple(node.attrs.get("pads") or (0,) * 2 * dims),
        as_gram(node, value.shape).auto_pad,
    )


def matrix(view: View, node: gs.Node) -> Matrix:
    """Return the weight as (outputs, columns) in float64."""
    value = np.asarray(view.value(node.inputs[1]), np.float64)
    if node.op == "Conv":
        return value.reshape(value.shape[0], -1)
    return value if node.op == "Gemm" and node.attrs.get("transB", 0) else np.ascontiguousarray(value.T)


def set_matrix(graph: Graph, node: gs.Node, weight: Matrix, label: str) -> None:
    """Give the layer the weight (outputs, columns), laid out and typed as the one that it has."""
    old = node.inputs[1]
    node.inputs[1] = edit.constant(graph, f"{old.name}_{label}", laid_out(node, weight))


def laid_out(node: gs.Node, weight: Matrix) -> NDArray[np.generic]:
    """Return the weight (outputs, columns) as the node wants it."""
    old = node.inputs[1]
    if node.op == "Conv":
        value = weight.reshape(weight.shape[0], -1, *old.shape[2:])
    else:
        value = weight if node.op == "Gemm" and node.attrs.get("transB", 0) else np.ascontiguousarray(weight.T)
    return value.astype(np.dtype(old.dtype))


def covariance(stats: Statistics, layer: Linear) -> tuple[Matrix | None, Matrix | None]:
    """Return the regularised covariance and the mean of the input rows, None without feeds."""
    found = stats.of(layer.gram)
    if found is None or found.gram is None or len(found.total) != layer.columns:
        return None, None
    return regular(found)


def regular(found: Moments) -> tuple[Matrix, Matrix]:
    """Return the covariance, ``shrunk`` by what few rows leave uncertain, plus ``λ·tr(S)/K·I``, and the mean.

    λ is 1e-4 from 64 rows per column on, 1e-3 from 4 and 1e-2 below. Where inputs hardly vary, it is what the sums of
    their squares were rounded by.
    """
    mean = found.mean
    spread = shrunk(found.second - np.outer(mean, mean), found.n)
    per_column = found.n / max(len(mean), 1)
    ridge = 1e-4 if per_column >= 64 else 1e-3 if per_column >= 4 else 1e-2
    level, power = float(np.trace(spread)) / max(len(mean), 1), float(np.trace(found.second))
    still = ROUNDING * power if level < STILL * power / max(len(mean), 1) else 0.0
    spread[np.diag_indices_from(spread)] += max(ridge * level, still, 1e-12)
    return spread, mean


def as_gram(node: gs.Node, weight_shape: Sequence[int]) -> Gram:
    """Return the Gram need of a Conv node of one group."""
    attrs = node.attrs
    auto_pad = str(attrs.get("auto_pad") or "NOTSET")
    return Gram(
        node.inputs[0].name,
        kernel=tuple(int(k) for k in weight_shape[2:]),
        strides=tuple(attrs.get("strides") or ()),
        dilations=tuple(attrs.get("dilations") or ()),
        pads=tuple(attrs.get("pads") or ()) if auto_pad == "NOTSET" else (),
        auto_pad=auto_pad if auto_pad.startswith("SAME") else "",
    )
