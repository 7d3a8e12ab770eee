"""Models made to compute in 16-bit floats, but for what those do not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.dtypes import element_type
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.ir.weights import Derived, peek
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Range

__all__ = ["Narrow", "narrow", "ranges", "refusal"]

KEPT = ("Cast", "QuantizeLinear", "DequantizeLinear")
"""Operators whose float type says what is converted."""
MARGIN = 0.5
"""The largest value that was seen is at most this share of what the type holds."""


@dataclass(frozen=True)
class Narrow:
    """Which inputs and outputs of a node become 16-bit floats, and which."""

    dtype: np.dtype[Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, view: View, node: gs.Node, dtype: np.dtype[Any]) -> Narrow | None:
        """Return what of a node can be in 16 bits, by the operator's schema; None if it makes no such tensor."""
        if not is_standard(node) or node.op in KEPT or not onnx.defs.has(node.op):
            return None
        try:
            schema = onnx.defs.get_schema(node.op, view.opset)
        except onnx.defs.SchemaError:
            return None
        wanted = {"tensor(float)", f"tensor({dtype.name})"}
        free = {each.type_param_str for each in schema.type_constraints if wanted <= set(each.allowed_type_strs)}

        def able(tensors: list[gs.Tensor], formal: Any) -> tuple[int, ...]:
            kinds = [formal[min(i, len(formal) - 1)].type_str for i in range(len(tensors))] if formal else []
            return tuple(
                i for i, kind in enumerate(kinds)
                if kind in free and tensors[i].name and view.dtype(tensors[i]) == np.float32
            )  # fmt: skip

        inputs, outputs = able(list(node.inputs), schema.inputs), able(list(node.outputs), schema.outputs)
        computed = any(view.value(node.inputs[i]) is None for i in inputs)
        return cls(dtype, inputs, outputs) if outputs and computed else None

    def tensors(self, node: gs.Node) -> list[gs.Tensor]:
        """Return the tensors that become 16-bit floats."""
        return [*(node.inputs[i] for i in self.inputs), *(node.outputs[i] for i in self.outputs)]


def ranges(view: View, dtype: np.dtype[Any]) -> Iterator[Range]:
    """Yield the ranges of all tensors that could be in 16 bits."""
    found: dict[str, None] = {}
    for node in view.nodes:
        narrowed = None if view.in_body(node) else Narrow.of(view, node, dtype)
        if narrowed is not None:
            found.update((str(t.name), None) for t in narrowed.tensors(node) if view.value(t) is None)
    return map(Range, found)


def refusal(view: View, stats: Statistics, node: gs.Node, work: Narrow) -> str:
    """Return why a node stays in float32, "" if it need not.

    A tensor overflows of which values over half the largest number were seen. One whose largest value is no normal
    number of the type underflows, and so does a constant of one number, such as what keeps a division from 0.
    """
    if view.in_body(node) or next(subgraphs(node), None) is not None:
        return "what bodies compute stays in float32"
    info = ml_dtypes.finfo(work.dtype)  # type: ignore[no-untyped-call]
    largest, least, name = float(info.max), float(info.smallest_normal), work.dtype.name
    for tensor in work.tensors(node):
        value = view.value(tensor)
        if value is not None:
            finite = np.abs(value[np.isfinite(value)])
            peak = float(finite.max()) if finite.size else 0.0
            if peak > largest or (value.size == 1 and 0 < peak < least):
                return f"'{tensor.name}' holds {peak:.3g}, which {name} does not"
            continue
        seen = stats.range(str(tensor.name))
        if seen is None:
            return f"what '{tensor.name}' holds was not measured: give calibration data"
        peak = max(abs(seen.low), abs(seen.high))
        if peak > MARGIN * largest:
            return f"'{tensor.name}' reaches {peak:.3g}, and {name} ends at {largest:.6g}"
        if 0 < peak < least:
            return f"'{tensor.name}' reaches {peak:.3g}, which is too small for {name}"
    return ""


def narrow(graph: Graph, node: gs.Node, work: Narrow) -> None:
    """Let a node compute in 16 bits: what it reads is cast, once for all readers, and what it makes is cast back.

    Where such a node reads what another one makes it reads it as it is; casts back that nobody reads fall away.
    """
    for i in work.inputs:
        node.inputs[i] = _narrowed(graph, node.inputs[i], node, work.dtype)
    for i in work.outputs:
        tensor, half = node.outputs[i], gs.Variable(edit.mint(graph, f"{node.outputs[i].name}_{work.dtype.name}"))
        half.dtype, half.shape = work.dtype, tensor.shape
        node.outputs[i] = half
        edit.insert(graph, graph, "Cast", [half], [tensor], {"to": int(onnx.TensorProto.FLOAT)}, after=node)


def _narrowed(graph: Graph, tensor: gs.Tensor, node: gs.Node, dtype: np.dtype[Any]) -> gs.Tensor:
    """Return a tensor in 16 bits: what a Cast back was made of, a constant of that type, or what a Cast makes."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is not None and maker.op == "Cast" and maker.inputs[0].dtype == dtype:
        return maker.inputs[0]
    known: dict[int, gs.Tensor] = graph.index.made.setdefault(("narrowed", id(tensor)), {})
    if id(tensor) in known:
        return known[id(tensor)]
    hint = f"{tensor.name}_{dtype.name}"
    if isinstance(tensor, gs.Constant):

        def read() -> Any:
            with np.errstate(over="ignore"):
                return peek(tensor).astype(dtype)

        found: gs.Tensor = edit.constant(graph, hint, Derived(tensor.shape, dtype, read))
    else:
        first = maker is None  # an input of the model: all nodes come behind its Cast
        place = {"before": graph.nodes[0]} if first else {"after": maker}
        found = edit.insert(graph, graph, "Cast", [tensor], hint, {"to": element_type(dtype)}, **place)
    known[id(tensor)] = found
    return found
