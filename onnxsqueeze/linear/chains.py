"""Chains of linear operators in the place of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor, bias_value

__all__ = ["Chain", "Stage", "add_to_output", "rewrite"]


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
    Layers on one weight that are rewritten alike share what is put in its place.
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
        bias = bias_tensor(node)
        if shift is not None and node.op != "MatMul":
            hint = f"{bias.name if bias else name + '_bias'}_{label}"
            bias = _once(graph, hint, (bias_value(view, node) + shift).astype(dtype))
        ends: list[gs.Tensor] = []
        for b, chain in enumerate(mine):
            end, attrs = x, gemm
            last = chain[-1]
            for i, stage in enumerate(chain[:-1]):
                hint = f"{name}_{label}{len(shared) + i}" + (f"_{b}" if len(mine) > 1 else "")
                end = _insert(graph, scope, node, end, stage, hint, f"{key}_{label}", dtype, attrs)
                attrs = {}
            hint = f"{name}_{label}{len(shared) + len(chain) - 1}" + (f"_{b}" if len(mine) > 1 else "")
            weight = _once(graph, hint, _layout(node.op, last, dtype))
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


def add_to_output(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    shift: NDArray[np.generic],
    stored: Callable[[NDArray[np.generic]], NDArray[np.generic]] = np.asarray,
) -> None:
    """Add a constant to the output of a MatMul: into the Add that follows, or a new one, ``stored`` in its way."""
    output = node.outputs[0]
    reader = output.outputs[0] if len(output.outputs) == 1 and not any(output is t for t in scope.outputs) else None
    if reader is not None and reader.op == "Add":
        slot = 0 if reader.inputs[1] is output else 1
        old = View(graph).value(reader.inputs[slot])
        if old is not None and old.shape in (shift.shape, (1,)) and old.dtype == shift.dtype:
            reader.inputs[slot] = _once(graph, f"{reader.inputs[slot].name}_shifted", stored(np.add(old, shift)))
            return
    raw = edit.variable(graph, f"{output.name}_raw")
    node.outputs[0] = raw
    edit.insert(graph, scope, "Add", [raw, _once(graph, f"{output.name}_shift", stored(shift))], [output], after=node)


def _once(graph: Graph, hint: str, values: NDArray[np.generic]) -> gs.Constant:
    """Return a new initializer, or the one that was made for the same hint of the same values before."""
    digest = blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
    made, key = graph.index.made, (f"{hint} {values.dtype} {values.shape}", int.from_bytes(digest, "big"))
    if key not in made:
        made[key] = edit.constant(graph, hint, values)
    constant: gs.Constant = made[key]
    return constant


def _insert(
    graph: Graph, scope: Graph, before: gs.Node, x: gs.Tensor, stage: Stage, weight: str, output: str,
    dtype: np.dtype[np.generic], attrs: dict[str, object],
) -> gs.Tensor:  # fmt: skip
    constant = _once(graph, weight, _layout(before.op, stage, dtype))
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
