"""Integers of 2 to 8 bits in a file, and the nodes that restore them when ONNX Runtime loads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.constants import followed
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.techniques.quantization.emit.weights import FloatArray
from onnxsqueeze.techniques.quantization.fewbits import HALF, Fit, Grid

__all__ = ["Packed", "blocks", "decoded", "pack", "packed", "repacked", "restored", "scale_of", "unpack"]

Codes = NDArray[np.uint8]
TYPED = 21
"""The opset that has int4; models of older ones hold two integers in a byte."""


def pack(q: NDArray[np.integer], bits: int) -> Codes:
    """Return integers (…, n) of two's complement as bytes, along the last axis, which is filled with zeros.

    2 and 4 bits: (…, ⌈n·b/8⌉), byte j holding the integers j, j + m, j + 2m …, the first in its lowest bits; m is that
    number of bytes. 3 and 6 bits: (…, 3, m), where the bytes ``[0:3, j]`` make a number of 24 bits, lowest first.
    Integers are stored plus ``2^(b−1)``. Planes of that kind are restored by whole rows of bytes, which is quick.
    """
    count = (8 if bits in (2, 4) else 24) // bits
    size = -(-q.shape[-1] // count)
    codes = np.zeros((*q.shape[:-1], count * size), np.uint32)
    codes[..., : q.shape[-1]] = q.astype(np.int32) + (1 << (bits - 1))
    planes = codes.reshape(*q.shape[:-1], count, size)
    joined = np.bitwise_or.reduce(planes << (np.arange(count, dtype=np.uint32) * bits)[:, None], axis=-2)
    if count * bits == 8:
        return np.asarray(joined, np.uint8)
    return np.stack([(joined >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=-2)


def unpack(codes: Codes, bits: int, n: int) -> NDArray[np.int8]:
    """Return the n integers along the last axis that ``pack`` has packed."""
    if bits in (2, 4):
        joined = codes.astype(np.uint32)
    else:
        joined = (
            codes[..., 0, :] + (codes[..., 1, :].astype(np.uint32) << 8) + (codes[..., 2, :].astype(np.uint32) << 16)
        )
    count = (8 if bits in (2, 4) else 24) // bits
    shifts = (np.arange(count, dtype=np.uint32) * bits)[:, None]
    planes = joined[..., None, :] >> shifts & ((1 << bits) - 1)
    flat = planes.reshape(*planes.shape[:-2], -1)[..., :n].astype(np.int16)
    return np.asarray(flat - (1 << (bits - 1)), np.int8)


@dataclass(frozen=True)
class Packed:
    """An initializer of packed integers, and how many bits each has."""

    constant: gs.Constant
    bits: int

    def codes(self) -> NDArray[np.float32]:
        """Return all integers plus ``2^(b−1)``, in the shape in which the nodes behind the initializer unpack them."""
        stored = np.asarray(peek(self.constant))
        width = stored.shape[-1] * (8 // self.bits if self.bits in (2, 4) else 24 // self.bits)
        found = unpack(stored, self.bits, width).astype(np.float32) + (1 << (self.bits - 1))
        return found.reshape(-1, stored.shape[-1])


def packed(tensor: gs.Tensor) -> Packed | None:
    """Return the initializer behind the floats that ``decoded`` makes of packed integers, None if they are others."""
    readers = [node for node in tensor.outputs if node.op == "Sub" and isinstance(node.inputs[1], gs.Constant)]
    found = followed(tensor, ("Cast", "BitShift", "Mul", "ReduceSum"))
    if len(readers) != 1 or found is None or found.constant is None or np.dtype(found.constant.dtype) != np.uint8:
        return None
    middle = np.asarray(peek(readers[0].inputs[1]))
    bits = int(middle).bit_length() if middle.shape == () else 0
    return Packed(found.constant, bits) if bits in (2, 3, 4, 6) and middle == 1 << (bits - 1) else None


def repacked(codes: NDArray[np.floating], bits: int) -> Codes:
    """Return the bytes of integers in the shape of ``Packed.codes``."""
    return pack(codes.reshape(-1).astype(np.int16) - (1 << (bits - 1)), bits)


def decoded(
    graph: Graph, home: Graph, hint: str, q: NDArray[np.int8], grid: Grid, to: int, before: gs.Node
) -> gs.Tensor:
    """Return integers as a tensor of the element type ``to``, float or int8, from an initializer of few bits.

    All nodes fold when the model is loaded. 4 bits are of the type int4 where the opset has it; other integers are
    packed (see ``pack``).
    """
    float_, int8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8
    name = f"{hint}_int{grid.bits}"
    if grid.bits == 8 or (grid.bits == 4 and graph.opset >= TYPED):
        typed = q if grid.bits == 8 else q.astype(ml_dtypes.int4)
        constant = edit.constant(graph, name, np.ascontiguousarray(typed))
        if grid.bits == 8 and to == int8:
            return constant
        return edit.insert(graph, home, "Cast", [constant], f"{hint}_cast", {"to": to}, before=before)
    packed = edit.constant(graph, name, pack(q.reshape(-1), grid.bits))
    x: gs.Tensor = _unpacked(graph, home, hint, packed, grid.bits, before)
    x = edit.insert(graph, home, "Cast", [x], f"{hint}_cast", {"to": float_}, before=before)
    middle = _common(graph, f"middle_{grid.bits}", np.float32(1 << (grid.bits - 1)))
    x = edit.insert(graph, home, "Sub", [x, middle], f"{hint}_signed", before=before)
    count = (8 if grid.bits in (2, 4) else 24) // grid.bits
    if q.size % count:
        x = _sliced(graph, home, hint, x, q.size, before)
    shape = edit.constant(graph, f"{hint}_blocks_shape", np.array(q.shape, np.int64))
    x = edit.insert(graph, home, "Reshape", [x, shape], f"{hint}_integers", before=before)
    return x if to == float_ else edit.insert(graph, home, "Cast", [x], f"{hint}_int8", {"to": to}, before=before)


def _common(graph: Graph, name: str, values: NDArray[np.generic] | np.generic) -> gs.Constant:
    """Return a constant that all weights of so many bits are unpacked with: there is one of it in the graph."""
    known: dict[str, gs.Constant] = graph.index.made.setdefault(("unpacked with", 0), {})
    if name not in known:
        known[name] = edit.constant(graph, f"unpack_{name}", np.asarray(values))
    return known[name]


def _sliced(graph: Graph, home: Graph, hint: str, x: gs.Tensor, size: int, before: gs.Node) -> gs.Tensor:
    """Return the first ``size`` elements of x in one axis."""
    flat = _common(graph, "flat", np.array([-1], np.int64))
    x = edit.insert(graph, home, "Reshape", [x, flat], f"{hint}_filled", before=before)
    start, end = (
        edit.constant(graph, f"{hint}_{n}", np.array([v], np.int64)) for n, v in (("start", 0), ("end", size))
    )
    return edit.insert(graph, home, "Slice", [x, start, end], f"{hint}_whole", before=before)


def _unpacked(graph: Graph, home: Graph, hint: str, packed: gs.Tensor, bits: int, before: gs.Node) -> gs.Tensor:
    """Return the planes (count, m) of unsigned integers in bytes (m) or (3, m)."""
    width, count = (8, 8 // bits) if bits in (2, 4) else (32, 24 // bits)
    dtype = np.uint8 if width == 8 else np.uint32
    if width == 32:
        wide = edit.insert(graph, home, "Cast", [packed], f"{hint}_wide", {"to": onnx.TensorProto.INT32}, before=before)
        places = _common(graph, "places", np.array([[1], [256], [65536]], np.int32))
        wide = edit.insert(graph, home, "Mul", [wide, places], f"{hint}_placed", before=before)
        axis = _common(graph, "axis", np.array([0], np.int64))
        wide = edit.insert(graph, home, "ReduceSum", [wide, axis], f"{hint}_joined", {"keepdims": 1}, before=before)
        packed = edit.insert(
            graph, home, "Cast", [wide], f"{hint}_codes", {"to": onnx.TensorProto.UINT32}, before=before
        )
    shifts = width - bits - np.arange(count)[:, None] * bits
    left = _common(graph, f"left_{bits}", shifts.astype(dtype))
    right = _common(graph, f"right_{bits}", np.full((1, 1), width - bits, dtype))
    x = edit.insert(graph, home, "BitShift", [packed, left], f"{hint}_high", {"direction": "LEFT"}, before=before)
    return edit.insert(graph, home, "BitShift", [x, right], f"{hint}_low", {"direction": "RIGHT"}, before=before)


def scale_of(graph: Graph, home: Graph, hint: str, found: Fit, shape: Sequence[int], before: gs.Node) -> gs.Tensor:
    """Return the scales of a fit as a float tensor of a shape that broadcasts; (K/b, …, N) where N comes last.

    They are written as steps of 8 bits times one number per row, else in float16 if they are values of it.
    """
    last = shape[-1] == len(found.q) and shape[0] == found.scales.shape[1]
    if found.steps is not None and found.tops is not None:
        steps = (found.steps.T if last else found.steps).reshape(shape)
        rest = [1] * (len(shape) - 1)
        tops = edit.constant(graph, f"{hint}_top", found.tops.reshape([*rest, -1] if last else [-1, *rest]))
        held = edit.constant(graph, f"{hint}_steps", np.ascontiguousarray(steps))
        to = {"to": onnx.TensorProto.FLOAT}
        cast = edit.insert(graph, home, "Cast", [held], f"{hint}_steps_float", to, before=before)
        return edit.insert(graph, home, "Mul", [cast, tops], f"{hint}_scale", before=before)
    scales = np.ascontiguousarray((found.scales.T if last else found.scales).reshape(shape))
    half = _as_half(scales)
    if half is None:
        return edit.constant(graph, f"{hint}_scale", scales)
    constant, attrs = edit.constant(graph, f"{hint}_scale", half), {"to": onnx.TensorProto.FLOAT}
    return edit.insert(graph, home, "Cast", [constant], f"{hint}_scale_float", attrs, before=before)


def _as_half(scales: FloatArray) -> NDArray[np.float16] | None:
    """Return scales in float16 if they are normal values of it."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), scales) and np.abs(scales).min(initial=1) >= HALF
    return half if exact else None


def blocks(found: Fit, columns_first: bool) -> tuple[NDArray[np.int8], tuple[int, ...]]:
    """Return integers, and the shape in which scales broadcast to them.

    (N, K/b, b) and (N, K/b, 1), or (K/b, b, N) and (K/b, 1, N).
    """
    rows, count = found.scales.shape
    if columns_first:
        return np.ascontiguousarray(found.q.T).reshape(count, -1, rows), (count, 1, rows)
    return found.q.reshape(rows, count, -1), (rows, count, 1)


def restored(graph: Graph, scope: Graph, tensor: gs.Constant, found: Fit, columns_first: bool) -> None:
    """Put ``scale·q``, restored when the model is loaded, in the place of a weight for all that read it.

    ``columns_first``: the weight lies as (K, N), else as (N, …), K being all further axes.
    """
    home = edit.home(graph, scope, tensor)
    first, hint = home.nodes[0], str(tensor.name)
    q, shape_ = blocks(found, columns_first)
    x = decoded(graph, home, hint, q, found.grid, onnx.TensorProto.FLOAT, first)
    scale = scale_of(graph, home, hint, found, shape_, first)
    x = edit.insert(graph, home, "Mul", [x, scale], f"{hint}_blocks", before=first)
    shape = edit.constant(graph, f"{hint}_shape", np.array(tensor.shape, np.int64))
    x = edit.insert(graph, home, "Reshape", [x, shape], f"{hint}_restored", before=first)
    edit.redirect(tensor, x)
