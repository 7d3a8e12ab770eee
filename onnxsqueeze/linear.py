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
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.statistics.measured import Statistics, as_gram
from onnxsqueeze.statistics.needs import Gram

__all__ = [
    "Chain",
    "Linear",
    "Stage",
    "add_to_output",
    "covariance",
    "describe",
    "laid_out",
    "matrix",
    "rewrite",
    "set_matrix",
]


@dataclass(frozen=True)
class Stage:
    """One linear operator of a chain: its ``weight`` is (O, C/group, *kernel), or (O, C) outside of Conv.

    ``pads`` are all beginnings, then all ends, unless ``auto_pad`` is set.
    """

    weight: Matrix
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = ""
    group: int = 1


Chain = tuple[Stage, ...]


@dataclass(frozen=True)
class Linear:
    """A layer ``y = W·x + b``: W has ``outputs`` rows and ``columns`` = channels·Πkernel columns.

    ``kernel`` is empty for Gemm and MatMul; ``gram`` asks for the moments of its input rows.
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

    @property
    def columns(self) -> int:
        """The length of an input row."""
        return self.channels * prod(self.kernel)

    @property
    def parameters(self) -> int:
        """The elements of the weight."""
        return self.outputs * self.columns

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


def describe(view: View, node: gs.Node) -> Linear | str | None:
    """Return the layer, why it must be left alone in words, or None if it is no layer with a constant weight."""
    if node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if isinstance(weight, gs.Constant) and getattr(weight, "overridable", False):
        return "its weight is also an input, so the caller may override it"
    value = view.value(weight)
    if value is None:
        return None
    if value.dtype.kind != "f":
        return f"its weight is {value.dtype}"
    if len(weight.outputs) > 1:
        return "its weight is shared"
    if node.op == "MatMul" and value.ndim != 2:
        return f"its weight has {value.ndim} axes"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) != 1:
        return "it is a grouped convolution"
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0):
        return "its alpha or beta is not 1"
    if node.op != "MatMul" and len(node.inputs) > 2 and node.inputs[2].name and view.value(node.inputs[2]) is None:
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
    """Return the regularised covariance ``S + λ·tr(S)/K·I`` and the mean of the input rows, None without feeds.

    λ is 1e-4 from 64 rows per column on, 1e-3 from 4 and 1e-2 below.
    """
    found = stats.of(layer.gram)
    if found is None or found.gram is None or len(found.total) != layer.columns:
        return None, None
    mean = found.mean
    spread = found.second - np.outer(mean, mean)
    per_column = found.n / layer.columns
    ridge = 1e-4 if per_column >= 64 else 1e-3 if per_column >= 4 else 1e-2
    level = float(np.trace(spread)) / layer.columns
    spread[np.diag_indices_from(spread)] += max(ridge * level, 1e-12)
    return spread, mean


def rewrite(
    graph: Graph,
    keys: Sequence[str],
    shared: Chain,
    branches: Sequence[Sequence[Chain]],
    shifts: Sequence[Matrix | None],
    label: str,
) -> None:
    """Put chains of linear operators in the place of the layers ``keys``, which read the same input.

    Layer i becomes the sum over its ``branches[i]``, each a chain on the output of ``shared`` (on the input itself
    when that is empty). ``shifts[i]`` is added to the bias of layer i; the bias stands in the last operator.
    """
    source: gs.Tensor | None = None
    for key, mine, shift in zip(keys, branches, shifts, strict=True):
        node, scope = edit.find(graph, key)
        view = View(graph)
        dtype = np.asarray(view.value(node.inputs[1])).dtype
        name = node.inputs[1].name or key
        gemm = {"transA": node.attrs["transA"]} if node.op == "Gemm" and node.attrs.get("transA", 0) else {}
        x = node.inputs[0] if source is None else source
        if source is None:
            for i, stage in enumerate(shared):
                x = _insert(graph, scope, node, x, stage, f"{name}_{label}{i}", f"{key}_{label}", dtype, gemm)
                gemm = {}
            source = x if shared else None
        elif shared:
            gemm = {}
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        if shift is not None and node.op != "MatMul":
            old = 0.0 if bias is None else np.asarray(view.value(bias), np.float64).reshape(-1)
            bias = edit.constant(graph, f"{bias.name if bias else name + '_bias'}_{label}", (old + shift).astype(dtype))
        ends: list[gs.Tensor] = []
        for b, chain in enumerate(mine):
            end, attrs = x, gemm
            last = chain[-1]
            for i, stage in enumerate(chain[:-1]):
                hint = f"{name}_{label}{len(shared) + i}" + (f"_{b}" if len(mine) > 1 else "")
                end = _insert(graph, scope, node, end, stage, hint, f"{key}_{label}", dtype, attrs)
                attrs = {}
            hint = f"{name}_{label}{len(shared) + len(chain) - 1}" + (f"_{b}" if len(mine) > 1 else "")
            weight = edit.constant(graph, hint, _layout(node.op, last, dtype))
            inputs = [end, weight, *([bias] if bias is not None and b == 0 else [])]
            if len(mine) == 1:
                node = edit.replace(graph, scope, node, node.op, inputs, {**_attributes(node.op, last), **attrs})
            else:
                made = {**_attributes(node.op, last), **attrs}
                ends.append(edit.insert(graph, scope, node.op, inputs, f"{key}_{label}", made, before=node))
        if ends:
            while len(ends) > 2:
                ends[:2] = [edit.insert(graph, scope, "Add", ends[:2], f"{key}_{label}", before=node)]
            node = edit.replace(graph, scope, node, "Add", ends)
        if shift is not None and node.op == "MatMul":
            add_to_output(graph, scope, node, shift.astype(dtype))


def add_to_output(graph: Graph, scope: Graph, node: gs.Node, shift: NDArray[np.generic]) -> None:
    """Add a constant to the output of a MatMul: into the bias Add that follows, or as a new Add."""
    output = node.outputs[0]
    reader = output.outputs[0] if len(output.outputs) == 1 and not any(output is t for t in scope.outputs) else None
    if reader is not None and reader.op == "Add":
        slot = 0 if reader.inputs[1] is output else 1
        old = View(graph).value(reader.inputs[slot])
        if old is not None and old.shape in (shift.shape, (1,)) and old.dtype == shift.dtype:
            reader.inputs[slot] = edit.constant(graph, f"{reader.inputs[slot].name}_shifted", np.add(old, shift))
            return
    raw = edit.variable(graph, f"{output.name}_raw")
    node.outputs[0] = raw
    edit.insert(graph, scope, "Add", [raw, edit.constant(graph, f"{output.name}_shift", shift)], [output], after=node)


def _insert(
    graph: Graph, scope: Graph, before: gs.Node, x: gs.Tensor, stage: Stage, weight: str, output: str,
    dtype: np.dtype[np.generic], attrs: dict[str, object],
) -> gs.Tensor:  # fmt: skip
    constant = edit.constant(graph, weight, _layout(before.op, stage, dtype))
    made = {**_attributes(before.op, stage), **attrs}
    return edit.insert(graph, scope, before.op, [x, constant], output, made, before=before)


def _layout(op: str, stage: Stage, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(stage.weight if op == "Conv" else stage.weight.T).astype(dtype)


def _attributes(op: str, stage: Stage) -> dict[str, object]:
    if op != "Conv":
        return {}
    attrs: dict[str, object] = {"kernel_shape": list(stage.weight.shape[2:])}
    if stage.strides:
        attrs |= {"strides": list(stage.strides), "dilations": list(stage.dilations)}
        attrs |= {"auto_pad": stage.auto_pad} if stage.auto_pad else {"pads": list(stage.pads)}
    if stage.group != 1:
        attrs["group"] = stage.group
    return attrs
