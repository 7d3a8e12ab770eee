"""``inspect``: what every layer of a model costs and what its weights look like, as data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.analysis.inspection.weights import WeightStatistics, bits_a_weight, bits_in_blocks, statistics
from onnxsqueeze.feeds.sizes import Taken, Wanted, taken
from onnxsqueeze.graph.constants import constant_of, stored
from onnxsqueeze.graph.shapes.inferred import Shape
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.graph.words import described
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.cost import Cost, cost, counted
from onnxsqueeze.measure.saturation import Saturation, saturating
from onnxsqueeze.plain import plain
from onnxsqueeze.runtime import timing
from onnxsqueeze.runtime.memory import Memory
from onnxsqueeze.runtime.memory import memory as footprint
from onnxsqueeze.techniques.canonical.spellings import Spelling, spellings

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Inspection", "Layer", "Requirement", "inspect_model"]

LABEL = "onnxsqueeze#"
QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
)
RUNTIMES = {25: "1.24", 24: "1.24", 23: "1.23", 22: "1.21", 21: "1.18", 20: "1.17", 19: "1.15", 18: "1.14", 17: "1.12",
            16: "1.11", 15: "1.9", 14: "1.8", 13: "1.6", 12: "1.3"}  # fmt: skip
"""The first ONNX Runtime that knows a version of the standard operators."""


@dataclass(frozen=True)
class Layer:
    """One node: its key, operator, shapes, cost and share of the model's cost, and its weight if it has one.

    Shapes are those on the feed of ``Inspection.taken``; what the model says instead, where it leaves sizes open, is
    in ``formulas``, one for each output. ``macs`` are 0 for what has none and None where they are not known.
    ``quantization`` is empty, or the type of the weight and whether the input is quantized, in words.
    ``milliseconds`` was measured by ONNX Runtime's profiler.
    """

    key: str
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    bytes: int
    macs: int | None
    share: float
    quantization: str
    weight: WeightStatistics | None
    milliseconds: float | None = None
    formulas: tuple[str, ...] = ()


@dataclass(frozen=True)
class Requirement:
    """What a runtime must know: an operator set, an IR version, or an operator of a foreign domain."""

    what: str
    version: str
    note: str


@dataclass(frozen=True)
class Inspection:
    """A whole model; ``layers`` are sorted by what costs most: measured time, else MACs, then bytes.

    Their shares are those of ``share_of``: of the time of a run, of all MACs, or of all bytes of weights.
    """

    model: str
    cost: Cost
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_axes: tuple[str, ...]
    requirements: tuple[Requirement, ...]
    quantization: tuple[str, ...]
    layers: tuple[Layer, ...]
    functions: tuple[str, ...]
    milliseconds: float | None
    """Of one run; None where it was not measured."""
    unattributed_ms: float | None
    """What ONNX Runtime spent in nodes of its own, and between nodes."""
    saturating: tuple[Saturation, ...] = ()
    """Layers whose integer sums can be wrong on x86-64 processors without VNNI."""
    spellings: tuple[Spelling, ...] = ()
    """Nodes that are spelled in a way that is slow on ONNX Runtime's CPU provider."""
    memory: Memory | None = None
    """What it takes at run time; None where it was not measured."""
    taken: Taken | None = None
    """The sizes that MACs, times and shapes are those of; None where no feed can be made up."""
    share_of: str = "MACs"
    """What the shares of the layers are shares of: "time", "MACs" or "bytes"."""

    def to_dict(self) -> dict[str, object]:
        """Return the inspection as JSON values."""
        found = plain(self)
        assert isinstance(found, dict)
        return found


def inspect_model(
    model: AnyModel,
    *,
    profile: bool = False,
    calibration: Any = None,
    memory: bool = False,
    sizes: Wanted | None = None,
) -> Inspection:
    """Return what every node of ``model`` costs, needs and weighs.

    With ``profile`` the model runs on ``calibration`` (whatever ``squeeze`` takes, random values without it) and every
    node gets the median of its measured time; with ``memory`` what it takes is measured in a process of its own.
    ``sizes`` are those of open axes by name, ``{"height": 320}``, and shapes of inputs, ``{"x": (1, 3, 320, 320)}``;
    without them and without ``calibration`` they are made up. Raises ModelError, FeedError or UsageError.
    """
    graph = model if isinstance(model, gs.Graph) else load(model)
    feeds, sized = taken(graph, calibration, sizes, runs=profile or memory)
    counts, shapes = counted(graph, feeds[0]) if feeds else ({}, {})
    total = cost(graph, file_size(graph), None)
    layers = _layers(graph, counts if feeds else None, shapes)
    run = rest = None
    if profile:
        measured, run = timing.profile(*_labelled(graph), feeds)
        times = _attributed(graph, measured)
        layers = [replace(layer, milliseconds=times.get(i, 0.0)) for i, layer in enumerate(layers)]
        rest = max(0.0, run - sum(layer.milliseconds or 0.0 for layer in layers))
    known = [count for count in counts.values() if count is not None]
    everything = sum(known) if feeds and len(known) == len(counts) else None
    share_of = "time" if run is not None else "MACs" if sum(known) else "bytes"
    parts = [_part(layer, share_of) for layer in layers]
    whole = sum(parts) + (rest or 0.0)
    layers = [replace(layer, share=part / whole if whole else 0.0) for layer, part in zip(layers, parts, strict=True)]
    layers.sort(key=lambda layer: (-(layer.milliseconds or 0), -(layer.macs or 0), -layer.bytes))
    return Inspection(
        model=_title(model, graph),
        cost=Cost(total.bytes, total.parameters, everything, total.nodes, total.opset),
        inputs=tuple(f"{t.name} {described(t)}" for t in graph.inputs),
        outputs=tuple(f"{t.name} {described(t)}" for t in graph.outputs),
        dynamic_axes=tuple(
            f"{t.name}[{axis}]" + (f" = {size}" if size else "")
            for t in (*graph.inputs, *graph.outputs)
            for axis, size in enumerate(t.shape or ())
            if not isinstance(size, int) or size < 1
        ),
        requirements=tuple(_requirements(graph)),
        quantization=tuple(_quantization(graph)),
        layers=tuple(layers),
        functions=tuple("::".join(part for part in f.unique_id if part) for f in graph.functions),
        milliseconds=run,
        unattributed_ms=rest,
        saturating=saturating(graph),
        spellings=tuple(spellings(View(graph))),
        memory=footprint(_path(graph) or graph, feeds[0]) if memory else None,
        taken=sized,
        share_of=share_of,
    )


def _path(graph: Graph) -> Path | None:
    return None if graph.file is None else graph.file.path


def _title(model: object, graph: Graph) -> str:
    return str(model) if isinstance(model, (str, os.PathLike)) else str(graph.file.path) if graph.file else "<memory>"


def _layers(graph: Graph, counts: Mapping[str, int | None] | None, shapes: Mapping[str, Shape]) -> list[Layer]:
    view = View(graph)
    told: set[int] = set()
    alike = Counter(key_of(node) for node in view.nodes)
    found = []
    for node in view.nodes:
        parameters = size = 0
        for constant in _constants(node):
            if id(constant) not in told:
                told.add(id(constant))
                parameters += prod(map(int, constant.shape))
                size += int(getattr(constant._values, "nbytes", 0))
        macs = None if counts is None else counts.get(key_of(node), 0)
        outputs = [tensor for tensor in node.outputs if tensor.name]
        found.append(
            Layer(
                key=key_of(node),
                name=str(node.name or ""),
                op=node.op if not node.domain else f"{node.domain}::{node.op}",
                inputs=tuple(_shape(view, t, shapes) for t in node.inputs if t.name and constant_of(t) is None),
                outputs=tuple(_shape(view, t, shapes) for t in outputs),
                parameters=parameters,
                bytes=size,
                macs=None if macs is None else macs // alike[key_of(node)],
                share=0.0,
                quantization=_how_quantized(view, node),
                weight=statistics(node),
                formulas=_formulas(view, outputs, shapes),
            )
        )
    return found


def _constants(node: gs.Node) -> Iterable[gs.Constant]:
    """Yield the constants of a layer; those that are only dequantized belong to the layer that reads the result."""
    if node.op == "DequantizeLinear" and constant_of(node.inputs[0]) is not None and node.outputs[0].outputs:
        return
    for tensor in node.inputs:
        for constant in (constant_of(tensor), *stored(tensor)[:3]):
            if constant is not None:
                yield constant


def _shape(view: View, tensor: gs.Tensor, shapes: Mapping[str, Shape]) -> str:
    shape: Sequence[object] | None = shapes.get(str(tensor.name), view.shape(tensor))
    return "?" if shape is None else "x".join(map(_size, shape)) or "scalar"


def _size(size: object) -> str:
    """Return the size of an axis; what ONNX's inference has made up a name for is not known."""
    return "?" if size is None or str(size).startswith("unk__") else str(size)


def _formulas(view: View, tensors: Sequence[gs.Tensor], shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Return what the model says of shapes of which a feed has shown the numbers; nothing if it says these."""
    found = tuple(_shape(view, tensor, {}) for tensor in tensors)
    return found if found != tuple(_shape(view, tensor, shapes) for tensor in tensors) else ()


def _part(layer: Layer, share_of: str) -> float:
    """Return what the share of a layer is computed from."""
    return float((layer.milliseconds if share_of == "time" else layer.macs if share_of == "MACs" else layer.bytes) or 0)


# Quantization and requirements


def _how_quantized(view: View, node: gs.Node) -> str:
    parts = []
    if node.outputs and bits_a_weight(node.outputs[0], 1) is not None:
        return ""  # it restores a weight, which belongs to the layer that reads it
    for i, tensor in enumerate(node.inputs[:2]):
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None or maker.op != "DequantizeLinear":
            bits = _stored_bits(view, tensor)
            parts += [] if bits is None else [f"weight stored in {bits:.1f} bits"]
            continue
        constant, scale, _, _ = stored(tensor)
        if constant is not None and scale is not None:
            per = "channel" if prod(map(int, scale.shape)) > 1 else "tensor"
            parts.append(f"{np.dtype(constant.dtype)} weight per {per}")
        elif (bits := _stored_bits(view, tensor)) is not None:
            parts.append(f"weight of {bits:.1f} bits")
        elif i == 0:
            parts.append("quantized input")
    in_blocks = bits_in_blocks(node)
    if in_blocks is not None:
        parts.append(f"weight of {in_blocks:.1f} bits in blocks of {node.attrs.get('block_size')}")
    if node.op in ("MatMulInteger", "ConvInteger") or node.op.startswith("QLinear"):
        parts.append("integer arithmetic")
    return ", ".join(parts)


def _stored_bits(view: View, tensor: gs.Tensor) -> float | None:
    """Return the bits that a weight takes in the file if the runtime restores it when it loads the model."""
    shape = view.shape(tensor)
    if shape is None or len(shape) < 2 or not all(isinstance(size, int) for size in shape):
        return None
    return bits_a_weight(tensor, prod(int(size) for size in shape if isinstance(size, int)))


def _quantization(graph: Graph) -> Iterable[str]:
    nodes = View(graph).nodes
    counts = Counter(node.op for node in nodes if node.op in QUANTIZED or node.op.startswith("QLinear"))
    yield from (f"{count} {op}" for op, count in sorted(counts.items()))
    constants = {id(c): c for node in nodes for t in node.inputs if (c := constant_of(t)) is not None}
    types: Counter[str] = Counter()
    for constant in constants.values():
        if prod(map(int, constant.shape)) > 1 and np.dtype(constant.dtype) != np.int64:
            types[str(np.dtype(constant.dtype))] += prod(map(int, constant.shape))
    yield from (f"{count} parameters of {name}" for name, count in types.most_common())


def _requirements(graph: Graph) -> Iterable[Requirement]:
    first = next((RUNTIMES[v] for v in sorted(RUNTIMES) if v >= graph.opset), "a newer one than known here")
    yield Requirement("opset", str(graph.opset), f"ONNX Runtime {first} or later")
    if graph.ir_version:
        yield Requirement("IR", str(graph.ir_version), "")
    foreign: dict[str, set[str]] = {}
    known = {(f.domain, f.name) for f in graph.functions}
    for node in View(graph).nodes:
        if node.domain and (node.domain, node.op) not in known:
            foreign.setdefault(node.domain, set()).add(node.op)
    versions = {entry.domain: str(entry.version) for entry in graph.import_domains or ()}
    for domain, ops in sorted(foreign.items()):
        yield Requirement(domain, versions.get(domain, "1"), ", ".join(sorted(ops)))


# Measured time


def _labelled(graph: Graph) -> tuple[onnx.ModelProto, Path | None]:
    """Return the model with the position of each node in its name, so that measured times find their nodes."""
    model = encode(graph)
    count = 0

    def label(body: onnx.GraphProto) -> None:
        nonlocal count
        for node in body.node:
            node.name = f"{LABEL}{count}"
            count += 1
            for attribute in node.attribute:
                for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                    label(inner)

    label(model.graph)
    return model, graph.folder


def _attributed(graph: Graph, measured: Mapping[tuple[str, str], float]) -> dict[int, float]:
    """Return the time of each node by position; that of a fused one counts for the layer that it began with."""
    nodes = View(graph).nodes
    position = {id(node): i for i, node in enumerate(nodes)}
    makers = {str(t.name): node for node in nodes for t in node.outputs if t.name}
    found: dict[int, float] = {}
    for (name, op), time in measured.items():
        if name.startswith(LABEL) and name[len(LABEL) :].isdecimal():
            found[int(name[len(LABEL) :])] = found.get(int(name[len(LABEL) :]), 0.0) + time
            continue
        node = makers.get(name)
        while node is not None and node.op != op:
            node = next((t.inputs[0] for t in node.inputs if t.inputs), None)
        if node is not None:
            found[position[id(node)]] = found.get(position[id(node)], 0.0) + time
    return found
