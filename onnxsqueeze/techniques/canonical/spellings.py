"""Ways to write quantized models that are valid, and slow or rounded more than they say; and better ones for some.

Each is a rule with a name; the profile of a target lists those that hold there (``[spellings]``). A rule says what is
wrong with a node, "" if nothing is. What is dequantized in every run can be said better with the same answers. What
only loses a fusion is told and left: MatMulNBits, which it would become, rounds its input to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.targets.target import Target

__all__ = [
    "Spelling", "gather_first", "is_restored_table", "is_restored_weight", "restore_at_load", "restores", "spellings",
]  # fmt: skip

Rule = Callable[[View, gs.Node], str]
FAST_BLOCKS = (32, 64, 128)
"""Blocks that ONNX Runtime has a quick kernel for in 2 bits."""
RECURRENT = ("LSTM", "GRU", "RNN")
WHOLE = ("int8", "uint8", "int4", "uint4")
"""Types of integers that are restored by Cast, Sub and Mul as by DequantizeLinear."""


@dataclass(frozen=True)
class Spelling:
    """A node that is spelled in a slow way: the rule's name, the node's key, and what is wrong in words."""

    name: str
    key: str
    problem: str


def spellings(view: View, target: Target | None = None) -> Iterator[Spelling]:
    """Yield what is spelled in a way that is slow on the target, by default the one that the graph is for."""
    rules = [(name, _RULES[name]) for name in (target or view.target).spellings.slow if name in _RULES]
    for node in view.nodes if rules else ():
        for name, rule in rules:
            problem = rule(view, node)
            if problem:
                yield Spelling(name, key_of(node), problem)


def restores(view: View, node: gs.Node | None) -> bool:
    """Return whether a node is a DequantizeLinear of a constant, in a scale that is constant."""
    if node is None or node.op != "DequantizeLinear":
        return False
    return view.constant(node.inputs[0]) is not None and view.value(node.inputs[1]) is not None


# ---------------------------------------------------------------------------------------------------- MatMulNBits


def _nbits(node: gs.Node) -> int:
    """Return the bits of a MatMulNBits, 0 of anything else."""
    return int(node.attrs.get("bits", 4)) if node.op == "MatMulNBits" else 0


def _level(view: View, node: gs.Node) -> str:
    bits = _nbits(node)
    if not bits or int(node.attrs.get("accuracy_level", 0)) == 4:
        return ""
    pace = "slower than float" if bits == 4 else "some 20 times as slow as float"
    return f"MatMulNBits of {bits} bits without accuracy_level 4 is {pace}"


def _block(view: View, node: gs.Node) -> str:
    size = int(node.attrs.get("block_size", 0))
    if _nbits(node) != 2 or size in FAST_BLOCKS:
        return ""
    return f"MatMulNBits of 2 bits in blocks of {size} has no quick kernel: blocks of 32, 64 and 128 have"


def _float_zeros(view: View, node: gs.Node) -> str:
    zeros = node.inputs[3] if _nbits(node) and len(node.inputs) > 3 and node.inputs[3].name else None
    if zeros is None or view.dtype(zeros) in (None, np.dtype(np.uint8)):
        return ""
    return "MatMulNBits with zero points in float has no quick kernel: packed integers have"


# ---------------------------------------------------------------------------------------------------- tables


def _typed(view: View, node: gs.Node) -> str:
    kind = view.dtype(node.inputs[0]) if node.op == "GatherBlockQuantized" else None
    if kind is None or kind.name not in ("int4", "uint4"):
        return ""
    return (
        f"a table of {kind.name} is gathered six times as slowly as one of packed uint8, and its zero point is 0 then"
    )


def _table(view: View, node: gs.Node) -> str:
    if node.op != "Gather" or not restores(view, view.producer(node.inputs[0])):
        return ""
    return "the whole table is dequantized in every run, and then rows of it are gathered"


# ---------------------------------------------------------------------------------------------------- what is not fused


def _kernel(view: View, node: gs.Node) -> str:
    if node.op not in ("Conv", "ConvTranspose") or not restores(view, view.producer(node.inputs[1])):
        return ""
    maker = view.producer(node.inputs[0])
    if maker is not None and maker.op == "DequantizeLinear":
        return ""
    return f"the weight of this {node.op}, which computes in float, is dequantized in every run"


def _recurrent(view: View, node: gs.Node) -> str:
    if node.op not in RECURRENT or not any(restores(view, view.producer(t)) for t in node.inputs[1:3]):
        return ""
    return f"the weights of this {node.op} are dequantized in every run"


def _weight(view: View, node: gs.Node) -> gs.Node | None:
    """Return the DequantizeLinear of the weight of a MatMul or Gemm whose input is float, also behind a Transpose."""
    if node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    source, maker = view.producer(node.inputs[0]), view.producer(node.inputs[1])
    if source is not None and source.op == "DequantizeLinear" and not restores(view, source):
        return None
    if maker is not None and maker.op == "Transpose":
        maker = view.producer(maker.inputs[0])
    return maker if restores(view, maker) else None


def _axis(view: View, node: gs.Node) -> str:
    weight = _weight(view, node)
    if weight is None or int(weight.attrs.get("axis", 1)) >= 0 or view.value(weight.inputs[1]).size == 1:  # type: ignore[union-attr]
        return ""
    return "the axis of its weight's scales is counted from the end, which ONNX Runtime does not fuse"


def _vector(view: View, node: gs.Node) -> str:
    weight = _weight(view, node)
    scale = None if weight is None else view.value(weight.inputs[1])
    if scale is None or scale.shape != (1,):
        return ""
    return "its weight's scale is a vector of one number, which ONNX Runtime does not fuse as it does a scalar"


def _scale_shared(view: View, node: gs.Node) -> str:
    return _shared(view, node, 1, "the scales of its weight are also those of another weight")


def _weight_shared(view: View, node: gs.Node) -> str:
    return _shared(view, node, 0, "the integers of its weight have another reader")


def _shared(view: View, node: gs.Node, slot: int, words: str) -> str:
    weight = _weight(view, node)
    constant = None if weight is None else view.constant(weight.inputs[slot])
    if constant is None or len(view.consumers(constant)) < 2:
        return ""
    return f"{words}: ONNX Runtime fuses neither"


def _transposed(view: View, node: gs.Node) -> str:
    weight = _weight(view, node)
    if weight is None:
        return ""
    kind = view.constant(weight.inputs[0]).dtype  # type: ignore[union-attr]
    turned = node.inputs[1] is not weight.outputs[0] and np.dtype(kind).name not in ("int8", "uint8")
    if not turned and not (node.op == "Gemm" and node.attrs.get("transB", 0)):
        return ""
    return "its weight is stored transposed, which ONNX Runtime does not fuse"


def _relu(view: View, node: gs.Node) -> str:
    reader = view.only_consumer(node.outputs[0]) if _weight(view, node) is not None else None
    if reader is not None and reader.op == "Add" and any(view.value(t) is not None for t in reader.inputs):
        reader = view.only_consumer(reader.outputs[0])
    if reader is None or reader.op not in ("Relu", "Clip") or view.is_output(reader.outputs[0]):
        return ""
    return f"the {reader.op} behind it keeps ONNX Runtime from fusing it with its weight"


def _sum(view: View, node: gs.Node) -> str:
    reader = view.only_consumer(node.outputs[0]) if node.op == "MatMul" and _weight(view, node) is not None else None
    if reader is None or reader.op != "Add" or any(view.value(t) is not None for t in reader.inputs):
        return ""
    shape = view.shape(node.inputs[0])
    if shape is None or len(shape) != 2:
        return ""
    return "ONNX Runtime makes a Gemm of it and the Add behind it, which it does not fuse with the weight"


def _wide(view: View, node: gs.Node) -> str:
    maker = view.producer(node.inputs[0]) if node.op == "MatMul" else None
    if maker is None or maker.op != "DequantizeLinear" or not restores(view, view.producer(node.inputs[1])):
        return ""
    kind = view.dtype(maker.inputs[0])
    if kind is None or kind.name not in ("int16", "uint16") or view.value(maker.inputs[0]) is not None:
        return ""
    return f"its input of {kind.name} is rounded to 8 bits in blocks"


_RULES: dict[str, Rule] = {
    "nbits-level": _level, "nbits-block": _block, "nbits-float-zeros": _float_zeros,
    "table-typed": _typed, "table-restored": _table, "kernel-restored": _kernel, "recurrent-restored": _recurrent,
    "axis-negative": _axis, "scale-vector": _vector, "scale-shared": _scale_shared, "weight-shared": _weight_shared,
    "weight-transposed": _transposed, "product-relu": _relu, "product-sum": _sum, "activations-wide": _wide,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- better ones


def is_restored_weight(view: View, node: gs.Node) -> bool:
    """Return whether the node is a DequantizeLinear in every run of what only float Convs and recurrent layers read."""
    readers = view.consumers(node.outputs[0])
    if not _is_plain(view, node) or not readers or view.is_output(node.outputs[0]):
        return False
    return all(_kernel(view, reader) or _recurrent(view, reader) for reader in readers)


def restore_at_load(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Write DequantizeLinear as ``(q − z)·s`` by Cast, Sub and Mul, which fold when the model is loaded."""
    axes, size = len(node.inputs[0].shape), len(node.inputs[1].shape)
    shape = [1] * axes if size else []
    if size:
        shape[int(node.attrs.get("axis", 1))] = -1
    x, scale = _scaled(
        graph, scope, node, node.inputs[0], node, lambda value: value.reshape(shape if value.size > 1 else ())
    )
    edit.replace(graph, scope, node, "Mul", [x, scale])


def is_restored_table(view: View, node: gs.Node) -> bool:
    """Return whether the node gathers rows of a table that is dequantized whole, of 8 bits and with plain scales."""
    maker = view.producer(node.inputs[0]) if node.op == "Gather" and is_standard(node) else None
    if maker is None or node.attrs.get("axis", 0) or not _is_plain(view, maker) or len(maker.inputs[0].shape) != 2:
        return False
    return np.dtype(maker.inputs[0].dtype).name in ("int8", "uint8") and view.opset >= 13


def gather_first(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Gather integers, and scales where rows have their own, and restore only those rows."""
    maker, indices, out = node.inputs[0].inputs[0], node.inputs[1], str(node.outputs[0].name)
    by_row = len(maker.inputs[1].shape) == 1 and int(maker.attrs.get("axis", 1)) % 2 == 0
    rows = edit.insert(graph, scope, "Gather", [maker.inputs[0], indices], f"{out}_rows", {"axis": 0}, before=node)
    shape = (-1, 1) if by_row else ()
    x, scale = _scaled(
        graph, scope, maker, rows, node, lambda value: value.reshape(shape or value.shape),
        indices if by_row else None,
    )  # fmt: skip
    edit.replace(graph, scope, node, "Mul", [x, scale])


def _is_plain(view: View, node: gs.Node) -> bool:
    """Return whether a DequantizeLinear is of a constant, in one scale or one for each index of an axis."""
    if not restores(view, node) or node.attrs.get("block_size", 0) or view.is_output(node.outputs[0]):
        return False
    constants = [t for t in node.inputs if t.name]
    if not all(isinstance(t, gs.Constant) and not getattr(t, "overridable", False) for t in constants):
        return False
    return np.dtype(constants[1].dtype) == np.float32 and np.dtype(constants[0].dtype).name in WHOLE


def _scaled(
    graph: Graph, scope: Graph, node: gs.Node, x: gs.Tensor, before: gs.Node, shaped: Callable[[Array], Array],
    indices: gs.Tensor | None = None,
) -> tuple[gs.Tensor, gs.Tensor]:  # fmt: skip
    """Return ``q − z`` in float and the scale, of the rows of these indices if there are any."""
    to, hint = {"to": onnx.TensorProto.FLOAT}, str(before.outputs[0].name)

    def laid(tensor: gs.Constant, what: str) -> gs.Tensor:
        held: gs.Tensor = edit.constant(graph, f"{tensor.name}_{what}", shaped(peek(tensor)))
        if indices is None:
            return held
        return edit.insert(graph, scope, "Gather", [held, indices], f"{hint}_{what}", {"axis": 0}, before=before)

    x = edit.insert(graph, scope, "Cast", [x], f"{hint}_float", to, before=before)
    zero = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if zero is not None and peek(zero).astype(np.float32).any():
        middle = edit.insert(graph, scope, "Cast", [laid(zero, "zeros")], f"{hint}_zeros_float", to, before=before)
        x = edit.insert(graph, scope, "Sub", [x, middle], f"{hint}_signed", before=before)
    return x, laid(node.inputs[1], "scales")
