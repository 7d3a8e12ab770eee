"""Rewriting one node into the quantized form that was decided for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor, set_bias
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.shrinkage import shrunk
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic as quantize_input
from onnxsqueeze.techniques.quantization.emit.few import few_bits
from onnxsqueeze.techniques.quantization.emit.lean import can_be_lean, lean
from onnxsqueeze.techniques.quantization.emit.stored import stored as store
from onnxsqueeze.techniques.quantization.emit.weights import (
    HELD,
    Integers,
    Kept,
    correct_bias,
    known,
    laid,
    multiplied,
    product_scales,
    read_by,
    reader,
    remember,
    values_of,
)
from onnxsqueeze.techniques.quantization.fewbits import rows_of
from onnxsqueeze.techniques.quantization.grids import Affine
from onnxsqueeze.techniques.quantization.layers import weight_slots
from onnxsqueeze.techniques.quantization.outliers import Smoothing

__all__ = ["Quantized", "as_stored", "quantize", "quantize_alone", "quantize_site"]

FloatArray = NDArray[np.floating]
ROOM = np.float32(16)
"""How much larger than the first reader of a shared weight needs it the least scale of a channel is."""


@dataclass(frozen=True)
class Quantized:
    """How one node is quantized; ``quantize`` reads nothing else.

    ``form`` is ``static``, ``integer``, ``gate``, ``dynamic`` or ``stored``. ``input`` and ``output`` are the
    parameters around a static layer, ``mean`` the channel means of its input and ``inside`` how often each tap of its
    kernel sees it and no padding; ``tail`` and ``add`` are the nodes that belong to it. ``inputs`` are those of an
    operator between layers. ``smoothing`` and ``moments`` are those of a layer that quantizes its input, called
    ``source``, at run time. ``wide`` weights are stored in 16 bits, those of integer arithmetic in ``bits``; with under
    8 a static layer has the ``moments`` of its input rows, and ``levels`` says how many its indices stand for, 0: they
    are its integers. Stored weights that are ``lean`` are restored at every run.
    ``kept`` is shared by all plans of a graph. A weight that is ``tied`` is read by other nodes too, which read the
    same integers.
    """

    form: Literal["static", "integer", "gate", "dynamic", "stored"]
    input: Affine | None = None
    output: Affine | None = None
    mean: NDArray[np.float64] | None = None
    inside: NDArray[np.float64] | None = None
    inputs: tuple[Affine | None, ...] = ()
    smoothing: Smoothing | None = None
    source: str = ""
    moments: Moments | None = None
    kept: Kept = field(default_factory=Kept)
    wide: bool = False
    tail: str = ""
    add: str = ""
    per_tensor: bool = False
    tied: bool = False
    bits: int = 8
    levels: int = 0
    lean: bool = False

    @property
    def between(self) -> bool:
        """Whether it is an operator between layers, which has no weight of its own."""
        return self.form in ("integer", "gate")

    @property
    def second(self) -> FloatArray | None:
        """``E[xxᵀ]`` of the input, rows relative to their size and few of them shrunk, None if not measured."""
        if self.moments is None or self.moments.gram is None:
            return None
        return shrunk(self.moments.second, self.moments.n)


def quantize(graph: Graph, key: str, work: Quantized) -> None:
    """Rewrite the node that makes the tensor ``key``."""
    node, scope = edit.find(graph, key)
    if work.form == "static":
        _static(graph, node, work)
    elif work.form == "integer":
        tail = edit.find(graph, work.tail)[0] if work.tail else node
        qdq.carry(graph, node, tail, work.inputs, work.output)
    elif work.form == "gate":
        qdq.gate(graph, node, work.inputs[0])
    elif work.form == "dynamic":
        quantize_input(
            graph, scope, node, work.smoothing, work.second, work.source, work.kept, work.tied, work.bits, work.levels
        )
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
    work = Quantized("stored", mean=old.mean, inside=old.inside, moments=old.moments, source=old.source, kept=old.kept)
    return replace(entry, action="stored", detail={**entry.detail, "float": reason}, work=work)


def _static(graph: Graph, node: gs.Node, work: Quantized) -> None:
    assert work.input is not None
    values = values_of(node.inputs[1])
    transposed = bool(node.attrs.get("transB", 0))
    axis = 0 if node.op == "Conv" or transposed else 1
    channels, hint = values.shape[axis], node.inputs[1].name
    pairs = graph.target.integers.pairs
    add = edit.find(graph, work.add)[0] if work.add else None
    holder, slot = (node, 2) if add is None else (add, 1 if add.inputs[0] is node.outputs[0] else 0)
    has = len(holder.inputs) > slot and bool(holder.inputs[slot].name)
    old = values_of(holder.inputs[slot]).reshape(-1) if has else np.zeros(1)
    start = np.broadcast_to(old, (channels,)).astype(np.float64)
    # an int32 bias must not overflow in the product scale
    kind = f"{'one scale' if work.per_tensor else 'scales'} of {node.op}, {transposed}"
    plain = work.kept.get(lambda: product_scales(values, node.op, transposed, work.per_tensor, pairs), values, kind)
    floor = np.float32(1 / (work.input.scale * 2**30)) * np.abs(start).astype(np.float32)
    floor = floor.max() if work.per_tensor else floor.reshape(plain.shape)
    scale: gs.Constant | None = None
    q: gs.Constant | None = None
    weight: gs.Tensor
    if work.tied:
        made = _shared(graph, node, plain, floor)
        q, scales = made.q, np.asarray(made.scale.values, np.float32).reshape(plain.shape)
        weight, scale = laid(graph, graph, q, _is_flipped(node), node), made.scale
    elif work.bits < 8:
        weight, few, scales = few_bits(
            graph, graph, hint, rows_of(values, node.op, transposed), work.bits, work.levels, _centred(work),
            floor.reshape(-1, 1), lambda q: q.reshape(values.shape) if axis == 0 else np.ascontiguousarray(q.T), node,
        )  # fmt: skip
        scales = scales.reshape(plain.shape)
    else:
        scales = np.maximum(plain, floor)
        weight = q = multiplied(graph, hint, values, scales, node.op, transposed, reader(node.inputs[1]), pairs)
    corrected = start
    if work.mean is not None and values.size <= HELD:
        whole = few.astype(np.float64) if q is None else np.asarray(q.values, np.float64)
        flipped = q is not None and weight is not q
        corrected = start + _mean_error(node, values, (whole.T if flipped else whole) * scales, work)
    node.inputs[0] = qdq.dequantized(graph, node.inputs[0], work.input)
    qdq.weight(graph, node, 1, weight, scales, None if work.per_tensor else axis, scale)
    product = np.float32(work.input.scale) * scales.reshape(() if work.per_tensor else -1)
    if node.op != "MatMul" or add is not None:
        name = holder.inputs[slot].name if has else f"{hint}_bias"
        if graph.target.bias.type == "float":
            set_bias(holder, edit.constant(graph, name, corrected.astype(np.float32)))
        else:
            qdq.bias(graph, holder, slot, corrected, product, name)
    if work.output is not None:
        tail = node if work.tail == key_of(node) else edit.find(graph, work.tail)[0]
        qdq.requantize(graph, tail.outputs[0], work.output)


def _centred(work: Quantized) -> FloatArray | None:
    """Return what rounding a static layer looks at: without the mean, whose error the bias takes over."""
    if work.moments is None or work.moments.gram is None or work.mean is None:
        return work.second
    return shrunk(work.moments.second - np.outer(work.moments.mean, work.moments.mean), work.moments.n)


def _is_flipped(node: gs.Node) -> bool:
    found = read_by(node)
    return found is not None and found.flipped


def _shared(graph: Graph, node: gs.Node, plain: FloatArray, floor: FloatArray) -> Integers:
    """Return the integers of a weight that others read too, whose scales are at least ``floor``.

    Where they are made here, scales get room for readers whose inputs are on finer scales or whose biases are larger.
    """
    found = read_by(node)
    assert found is not None
    shape = () if plain.size == 1 and plain.ndim else (-1,)
    least = np.broadcast_to(floor, plain.shape).reshape(-1)
    for each in known(graph, found.constant):
        scales = np.asarray(each.scale.values).reshape(-1)
        fits = scales.size == plain.size and (each.axis == found.axis or not shape)
        if each.factor is None and fits and np.all(scales >= least):
            return each
    scales = np.maximum(plain, floor * ROOM).astype(np.float32).reshape(shape)
    values, hint = values_of(found.constant), found.constant.name
    across = found.axis == 0 and node.op != "Conv"
    q = multiplied(graph, hint, values, scales, node.op, across, reader(found.constant))
    scale = edit.constant(graph, f"{hint}_scale", scales)
    return remember(graph, Integers(found.constant, q, scale, found.axis))


def _stored(graph: Graph, scope: Graph, node: gs.Node, work: Quantized) -> None:
    for slot in weight_slots(node):
        before, shared = node.inputs[slot], len(node.inputs[slot].outputs) > 1
        if work.lean and can_be_lean(node, slot):
            after = lean(graph, scope, node, slot, work.second, work.source, work.kept)
        else:
            after = store(graph, scope, node, slot, work.wide, work.second, work.source, work.kept)
        if after is None or work.mean is None or node.op != "Conv" or slot != 1 or shared:
            continue
        values = values_of(before)
        bias = bias_tensor(node)
        if bias is not None and not isinstance(bias, gs.Constant):
            continue
        correct_bias(graph, node, before, _mean_error(node, values, after.astype(np.float64), work))


def _mean_error(
    node: gs.Node, values: FloatArray, rounded: NDArray[np.float64], work: Quantized
) -> NDArray[np.float64]:
    """Return (W − Ŵ)·μ per output channel, μ being the channel means of the input, and 0 in the padding of a Conv."""
    mean = work.mean
    assert mean is not None
    difference = values.astype(np.float64) - rounded
    if node.op != "Conv":
        matrix = difference if node.attrs.get("transB", 0) else difference.T
        return np.asarray(matrix @ mean) if matrix.shape[1] == len(mean) else np.zeros(len(matrix))
    difference = difference if work.inside is None else difference * work.inside
    per_input = difference.reshape(*difference.shape[:2], -1).sum(-1)  # (O, C/group)
    group = int(node.attrs.get("group", 1))
    if len(mean) != per_input.shape[1] * group:
        return np.zeros(len(per_input))
    by_group = mean.reshape(group, -1)
    return np.asarray(np.einsum("goc,gc->go", per_input.reshape(group, -1, per_input.shape[1]), by_group)).reshape(-1)
