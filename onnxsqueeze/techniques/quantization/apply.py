"""Rewriting one node into the quantized form that was decided for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.linear.bias import bias_tensor, set_bias
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic as quantize_input
from onnxsqueeze.techniques.quantization.emit.nbits import decoded
from onnxsqueeze.techniques.quantization.emit.stored import stored as store
from onnxsqueeze.techniques.quantization.emit.weights import HELD, Kept, multiplied, product_scales, reader, values_of
from onnxsqueeze.techniques.quantization.fewbits import Grid, fit, rows_of, shrunk
from onnxsqueeze.techniques.quantization.grids import Affine
from onnxsqueeze.techniques.quantization.layers import weight_slots
from onnxsqueeze.techniques.quantization.outliers import Smoothing

__all__ = ["Quantized", "as_stored", "quantize", "quantize_alone", "quantize_site"]

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Quantized:
    """How one node is quantized; ``quantize`` reads nothing else.

    ``form`` is ``static``, ``integer``, ``gate``, ``dynamic`` or ``stored``. ``input`` and ``output`` are the
    parameters around a static layer, ``mean`` the channel means of its input; ``tail`` and ``add`` are the nodes that
    belong to it. ``inputs`` are those of an operator between layers. ``smoothing`` and ``moments`` are those of a
    layer that quantizes its input, called ``source``, at run time. ``wide`` weights are stored in 16 bits, those of
    integer arithmetic in ``bits``; with under 8 a static layer has the ``moments`` of its input rows. ``kept`` is
    shared by all plans of a graph.
    """

    form: Literal["static", "integer", "gate", "dynamic", "stored"]
    input: Affine | None = None
    output: Affine | None = None
    mean: NDArray[np.float64] | None = None
    inputs: tuple[Affine | None, ...] = ()
    smoothing: Smoothing | None = None
    source: str = ""
    moments: Moments | None = None
    kept: Kept = field(default_factory=Kept)
    wide: bool = False
    tail: str = ""
    add: str = ""
    per_tensor: bool = False
    bits: int = 8

    @property
    def between(self) -> bool:
        """Whether it is an operator between layers, which has no weight of its own."""
        return self.form in ("integer", "gate")

    @property
    def second(self) -> FloatArray | None:
        """``E[xxᵀ]`` of the input, rows relative to their size, None if it was not measured.

        With fewer rows than twice the channels it is drawn towards its diagonal, which it is with as many: what a few
        rows do not have in them must not be used to hide errors.
        """
        if self.moments is None or self.moments.gram is None:
            return None
        return shrunk(self.moments.second, self.moments.n)


def quantize(graph: Graph, key: str, work: Quantized) -> None:
    """Rewrite the node that makes the tensor ``key``."""
    node, scope = edit.find(graph, key)
    if work.form == "static":
        _static(graph, node, work)
    elif work.form == "integer":
        qdq.carry(graph, node, work.inputs, work.output)
    elif work.form == "gate":
        qdq.gate(graph, node, work.inputs[0])
    elif work.form == "dynamic":
        quantize_input(graph, scope, node, work.smoothing, work.second, work.source, work.kept, work.bits)
    else:
        _stored(graph, scope, node, work)


def quantize_site(site: Site[Quantized], graph: Graph) -> None:
    """Rewrite the node of a site of ``int8``."""
    quantize(graph, site.key, site.work)


def quantize_alone(graph: Graph, key: str, site: Site[Quantized]) -> None:
    """Quantize the layer that makes ``key``, a copy of the site's, and no tensor around it."""
    node, _ = edit.find(graph, key)
    for slot in weight_slots(node) if site.work.form == "stored" else ():
        node.inputs[slot] = edit.constant(graph, f"{key}_weight", values_of(node.inputs[slot]))
    quantize(graph, key, replace(site.work, output=None, tail="", add=""))


def as_stored(entry: Site[Quantized] | Skip, reason: str) -> Site[Quantized] | Skip:
    """Fall back to float arithmetic on a stored weight; operators without a weight are left alone for that reason."""
    if isinstance(entry, Skip):
        return entry
    old = entry.work
    if old.form == "stored":
        return entry
    if old.between:
        return Skip(entry.key, reason)
    work = Quantized("stored", mean=old.mean, moments=old.moments, source=old.source, kept=old.kept)
    return replace(entry, action="stored", detail={**entry.detail, "float": reason}, work=work)


def _static(graph: Graph, node: gs.Node, work: Quantized) -> None:
    assert work.input is not None
    values = values_of(node.inputs[1])
    transposed = bool(node.attrs.get("transB", 0))
    axis = 0 if node.op == "Conv" or transposed else 1
    channels, hint = values.shape[axis], node.inputs[1].name
    add = edit.find(graph, work.add)[0] if work.add else None
    holder, slot = (node, 2) if add is None else (add, 1 if add.inputs[0] is node.outputs[0] else 0)
    has = len(holder.inputs) > slot and bool(holder.inputs[slot].name)
    old = values_of(holder.inputs[slot]).reshape(-1) if has else np.zeros(1)
    start = np.broadcast_to(old, (channels,)).astype(np.float64)
    # an int32 bias must not overflow in the product scale
    kind = f"{'one scale' if work.per_tensor else 'scales'} of {node.op}, {transposed}"
    scales = work.kept.get(lambda: product_scales(values, node.op, transposed, work.per_tensor), values, kind)
    floor = np.float32(1 / (work.input.scale * 2**30)) * np.abs(start).astype(np.float32)
    scales = np.maximum(scales, floor.max() if work.per_tensor else floor.reshape(scales.shape))
    q: gs.Tensor
    found: NDArray[np.int8] | None
    if work.bits < 8:
        scales, found = _few_bits(node, values, floor, work)
        q = decoded(graph, graph, hint, found, Grid(work.bits), onnx.TensorProto.INT8, node)
    else:
        q = multiplied(graph, hint, values, scales, node.op, transposed, reader(node.inputs[1]))
        found = peek(q) if values.size <= HELD else None
    corrected = start
    if work.mean is not None and found is not None:
        corrected = start + _mean_error(node, values, found.astype(np.float64) * scales, work.mean)
    node.inputs[0] = qdq.dequantized(graph, node.inputs[0], work.input)
    qdq.weight(graph, node, 1, q, scales, None if work.per_tensor else axis)
    product = np.float32(work.input.scale) * scales.reshape(() if work.per_tensor else -1)
    if node.op != "MatMul" or add is not None:
        qdq.bias(graph, holder, slot, corrected, product, holder.inputs[slot].name if has else f"{hint}_bias")
    if work.output is not None:
        tail = node if work.tail == key_of(node) else edit.find(graph, work.tail)[0]
        qdq.requantize(graph, tail.outputs[0], work.output)


def _few_bits(
    node: gs.Node, values: FloatArray, floor: FloatArray, work: Quantized
) -> tuple[FloatArray, NDArray[np.int8]]:
    """Return scales, at least ``floor``, and integers of few bits; rounding hides errors where inputs do not go."""
    rows = rows_of(values, node.op, bool(node.attrs.get("transB", 0)))
    second = work.second
    if second is not None and work.moments is not None and work.mean is not None:  # the bias takes over the mean error
        second = shrunk(work.moments.second - np.outer(work.moments.mean, work.moments.mean), work.moments.n)
    fitted = fit(rows, Grid(work.bits), rows.shape[1], second, signs=False, half=False, floor=floor.reshape(-1, 1))
    if node.op == "Conv" or node.attrs.get("transB", 0):
        return fitted.scales.reshape(-1, *(1,) * (values.ndim - 1)), fitted.q.reshape(values.shape)
    return fitted.scales.T, np.ascontiguousarray(fitted.q.T)


def _stored(graph: Graph, scope: Graph, node: gs.Node, work: Quantized) -> None:
    for slot in weight_slots(node):
        before, shared = node.inputs[slot], len(node.inputs[slot].outputs) > 1
        after = store(graph, scope, node, slot, work.wide, work.second, work.source, work.kept)
        if after is None or work.mean is None or node.op != "Conv" or slot != 1 or shared:
            continue
        values = values_of(before)
        bias = bias_tensor(node)
        if bias is not None and not isinstance(bias, gs.Constant):
            continue
        old = np.zeros(len(values), np.float32) if bias is None else values_of(bias)
        corrected = (old + _mean_error(node, values, after.astype(np.float64), work.mean)).astype(np.float32)
        name = before.name + "_bias" if bias is None else bias.name
        set_bias(node, edit.constant(graph, f"{name}_corrected", corrected))


def _mean_error(
    node: gs.Node, values: FloatArray, rounded: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (W − Ŵ)·μ per output channel, μ being the channel means of the input."""
    difference = values.astype(np.float64) - rounded
    if node.op != "Conv":
        matrix = difference if node.attrs.get("transB", 0) else difference.T
        return np.asarray(matrix @ mean) if matrix.shape[1] == len(mean) else np.zeros(len(matrix))
    per_input = difference.reshape(*difference.shape[:2], -1).sum(-1)  # (O, C/group)
    group = int(node.attrs.get("group", 1))
    if len(mean) != per_input.shape[1] * group:
        return np.zeros(len(per_input))
    by_group = mean.reshape(group, -1)
    return np.asarray(np.einsum("goc,gc->go", per_input.reshape(group, -1, per_input.shape[1]), by_group)).reshape(-1)
