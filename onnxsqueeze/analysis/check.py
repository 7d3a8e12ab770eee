"""What of a model breaks on a target, and where: the rules of a profile, held against a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.saturation import saturating, warning
from onnxsqueeze.targets.target import Target
from onnxsqueeze.techniques.canonical.spellings import spellings

__all__ = ["Breach", "breaches", "words"]

AT_RUN_TIME = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
BODIES = ("If", "Loop", "Scan")
NEAR = 1e-3
"""How far the scale of a bias may be from the product, as a share of it."""


@dataclass(frozen=True)
class Breach:
    """A place of a model that does not keep to a rule: the rule by its line in the profile, and what is wrong."""

    rule: str
    key: str
    problem: str
    notice: bool = False
    """Whether it is only told: an operator in float costs speed and breaks no form of numbers."""


def breaches(graph: Graph, target: Target | None = None) -> tuple[Breach, ...]:
    """Return what of the graph breaks on the target, by default the one that it was made for.

    Looked at is what can be seen in the model: opset, operators, shapes, forms of numbers, scales and zero points. That
    nothing is found is no proof that a compiler takes the model.
    """
    view, target = View(graph), target or graph.target
    return tuple(breach for rule in _RULES for breach in rule(view, target))


def words(found: Iterable[Breach]) -> list[str]:
    """Return a sentence for each rule that is broken."""
    rules: dict[str, list[Breach]] = {}
    for breach in found:
        rules.setdefault(breach.rule, []).append(breach)
    sentences = []
    for first, *others in rules.values():
        more = f", and {len(others)} more such" if others else ""
        where = f" at '{first.key}'" if first.key else ""
        sentences.append(f"{first.problem}{where}{more}")
    return sentences


# ---------------------------------------------------------------------------------------------------- the graph


def _opset(view: View, target: Target) -> Iterator[Breach]:
    low, high = target.graph.opset
    if not low <= view.opset <= high:
        yield Breach("graph.opset", "", f"{target.name} takes opsets {low} to {high}, and this is {view.opset}")


def _operators(view: View, target: Target) -> Iterator[Breach]:
    rules, forms = target.graph, target.integers.forms
    for node in view.nodes:
        if not is_standard(node):
            if not rules.contrib and node.domain not in {function.domain for function in view.graph.functions}:
                yield _breach("graph.contrib", node, f"{target.name} has no {node.op} of the domain {node.domain}")
        elif node.op in BODIES and not rules.bodies:
            yield _breach("graph.bodies", node, f"{target.name} runs no {node.op}")
        elif node.op in rules.missing or (rules.operators and node.op not in rules.operators):
            yield _breach("graph.missing", node, f"{target.name} has no {node.op}")
        elif node.op in AT_RUN_TIME and "dynamic" not in forms:
            yield _breach("integers.forms", node, f"{target.name} quantizes nothing at run time, and this is {node.op}")
        elif node.op.startswith("QLinear") and "operators" not in forms:
            yield _breach("integers.forms", node, f"{target.name} wants Q/DQ pairs instead of {node.op}")


def _shapes(view: View, target: Target) -> Iterator[Breach]:
    for tensor in () if target.graph.dynamic_shapes else view.graph.inputs:
        shape = tensor.shape
        if shape is None or not all(isinstance(size, int) and size >= 0 for size in shape):
            problem = f"{target.name} needs fixed shapes, and those of the model's own input are not"
            yield Breach("graph.dynamic_shapes", str(tensor.name), problem)


def _sizes(view: View, target: Target) -> Iterator[Breach]:
    most = target.graph.largest
    tensors = {id(t): t for node in view.nodes for t in node.inputs if isinstance(t, gs.Constant)} if most else {}
    for tensor in tensors.values():
        size = int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        if size > most:
            yield Breach("graph.largest", str(tensor.name), f"{target.name} takes weights of {most} bytes at most")


# ---------------------------------------------------------------------------------------------------- numbers


def _weights(view: View, target: Target) -> Iterator[Breach]:
    """Hold every constant under a DequantizeLinear against the rules of weights."""
    rules = target.weights
    for node in view.of("DequantizeLinear"):
        value = view.value(node.inputs[0])
        if value is None or value.dtype == np.int32:
            continue
        readers = node.outputs[0].outputs
        zero = _zero(view, node)
        block = int(node.attrs.get("block_size", 0))
        if value.dtype.name not in rules.types:
            yield _breach("weights.types", node, f"{target.name} takes no weights of {value.dtype.name}")
        if rules.symmetric and zero is not None and zero.astype(np.float32).any():
            yield _breach("weights.symmetric", node, f"{target.name} wants weights with zero points of 0")
        if value.dtype == np.int8 and value.size and int(value.min()) < rules.least:
            yield _breach("weights.least", node, f"{target.name} takes no weight under {rules.least}")
        if block and block not in rules.blocks:
            sizes = f"of {', '.join(map(str, rules.blocks))}" if rules.blocks else "of no size"
            yield _breach("weights.blocks", node, f"{target.name} takes blocks {sizes}, and these are of {block}")
        scale = view.value(node.inputs[1])
        if scale is None or scale.size == 1 or block:
            continue
        for reader in _behind_moves(readers):
            if reader.op not in rules.per_channel and reader.op not in rules.kept:
                problem = f"{target.name} wants one scale for a weight of {reader.op}, and this has {scale.size}"
                yield _breach("weights.per_channel", reader, problem)
            elif _is_static(view, reader) and not _along_outputs(node, reader, value):
                yield _breach("weights.per_channel", reader, f"{target.name} wants scales along output channels")
        if "stored" not in target.integers.forms and readers and not any(_is_static(view, r) for r in readers):
            yield _breach("integers.forms", node, f"{target.name} takes no weights that are only stored in integers")


def _behind_moves(readers: Sequence[gs.Node]) -> Iterator[gs.Node]:
    """Yield the readers of a weight, behind what lays it out otherwise."""
    for reader in readers:
        if reader.op in ("Reshape", "Transpose"):
            yield from _behind_moves(reader.outputs[0].outputs)
        else:
            yield reader


def _along_outputs(node: gs.Node, reader: gs.Node, value: Array) -> bool:
    """Return whether the scales of a weight lie along the output channels of the layer that reads it."""
    axis = int(node.attrs.get("axis", 1)) % max(value.ndim, 1)
    if reader.op in ("MatMul", "Gemm"):
        return axis == (0 if reader.attrs.get("transB", 0) else value.ndim - 1)
    return axis == (1 if reader.op == "ConvTranspose" else 0)


def _activations(view: View, target: Target) -> Iterator[Breach]:
    """Hold every QuantizeLinear against the rules of activations."""
    rules = target.activations
    for node in view.of("QuantizeLinear"):
        if view.value(node.inputs[0]) is not None:
            continue
        zero, scale = _zero(view, node), view.value(node.inputs[1])
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        if "static" not in target.integers.forms:
            yield _breach("integers.forms", node, f"{target.name} computes in float alone")
        if kind.name not in rules.types:
            yield _breach("activations.types", node, f"{target.name} takes no activations of {kind.name}")
        if scale is not None and scale.size > 1:
            yield _breach("activations.types", node, f"{target.name} wants one scale for an activation")
        middle = 2 ** (8 * kind.itemsize - 1) if kind.kind == "u" else 0
        if rules.zero_point == "middle" and (0 if zero is None else int(zero.reshape(-1)[0])) != middle:
            yield _breach("activations.zero_point", node, f"{target.name} wants zero points of {middle}")


def _biases(view: View, target: Target) -> Iterator[Breach]:
    for node in view.of("Conv", "Gemm"):
        maker = _maker(node, 2)
        weight = _maker(node, 1)
        if not _is_static(view, node) or weight is None or weight.op != "DequantizeLinear":
            continue
        if len(node.inputs) < 3 or not node.inputs[2].name:
            continue
        integer = maker is not None and maker.op == "DequantizeLinear"
        if target.bias.type == "float" and integer:
            yield _breach("bias.type", node, f"{target.name} wants float biases")
        elif target.bias.type == "int32" and not integer:
            yield _breach("bias.type", node, f"{target.name} wants int32 biases")
        elif integer and target.bias.product:
            scales = [view.value(maker_.inputs[1]) for slot in range(3) if (maker_ := _maker(node, slot)) is not None]
            x, weight, bias = (None if each is None else each.astype(np.float64).reshape(-1) for each in scales)
            if x is not None and len(x) == 1 and weight is not None and bias is not None:
                product = x * weight
                if len({len(product), len(bias), 1}) > 2 or (abs(bias - product) > NEAR * product).any():
                    problem = (
                        f"on {target.name} the scale of a bias has to be that of the input times that of the weight"
                    )
                    yield _breach("bias.product", node, problem)


def _pairs_around(view: View, target: Target) -> Iterator[Breach]:
    """Hold operators between pairs against the rules for their scales, and find those that are left in float."""
    rules = target.operators
    if not any(True for _ in view.of("QuantizeLinear")):
        return
    known = (*rules.layers, *rules.same_scale, *rules.own_scale)
    for node in view.of(*known):
        if view.dtype(node.outputs[0]) not in (None, np.dtype(np.float32)) or view.in_body(node):
            continue
        source, reader = _maker(node, 0), _quantizer(node)
        inside = source is not None and source.op == "DequantizeLinear"
        if node.op in rules.same_scale and inside and reader is not None:
            if _parameters(view, source) != _parameters(view, reader):
                problem = f"on {target.name} input and output of {node.op} have to share a scale"
                yield _breach("operators.same_scale", node, problem)
        elif target.integers.placement == "everywhere" and not (inside and reader is not None):
            if all(view.value(t) is not None for t in node.inputs[:1]) or _in_layer(node):
                continue
            problem = f"on {target.name} {node.op} is not between Q/DQ pairs: it runs in float"
            yield _breach("integers.placement", node, problem, notice=True)


def _in_layer(node: gs.Node) -> bool:
    """Return whether the operator goes straight into an activation that a compiler fuses, or is one."""
    readers = node.outputs[0].outputs
    if len(readers) == 1 and readers[0].op in ("Relu", "Clip") and _quantizer(readers[0]) is not None:
        return True
    maker = _maker(node, 0)
    return node.op in ("Relu", "Clip") and maker is not None and maker.op in ("Conv", "Gemm", "MatMul")


def _saturation(view: View, target: Target) -> Iterator[Breach]:
    found = saturating(view.graph) if target.integers.pairs else ()
    if found:
        worst = max(found, key=lambda each: (each.largest, each.pairs))
        yield Breach("integers.pairs", "", warning(found))
        yield from (Breach("integers.pairs", each.key, "its sums can saturate") for each in found if each is not worst)


def _spellings(view: View, target: Target) -> Iterator[Breach]:
    for each in spellings(view, target):
        yield Breach("spellings.slow", each.key, f"{each.problem} ({each.name})", notice=True)


_RULES: tuple[Callable[[View, Target], Iterator[Breach]], ...] = (
    _opset, _operators, _shapes, _sizes, _weights, _activations, _biases, _pairs_around, _saturation,
    _spellings,
)  # fmt: skip


def _breach(rule: str, node: gs.Node, problem: str, notice: bool = False) -> Breach:
    return Breach(rule, key_of(node), problem, notice)


def _zero(view: View, node: gs.Node) -> Array | None:
    return view.value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None


def _maker(node: gs.Node, slot: int) -> gs.Node | None:
    tensor = node.inputs[slot] if slot < len(node.inputs) else None
    return tensor.inputs[0] if tensor is not None and tensor.inputs else None


def _quantizer(node: gs.Node) -> gs.Node | None:
    """Return the QuantizeLinear that reads what the node makes."""
    return next((r for t in node.outputs for r in t.outputs if r.op == "QuantizeLinear"), None)


def _is_static(view: View, node: gs.Node) -> bool:
    """Return whether a layer reads activations in integers."""
    maker = _maker(node, 0)
    return maker is not None and maker.op == "DequantizeLinear" and view.value(maker.inputs[0]) is None


def _parameters(view: View, node: gs.Node | None) -> tuple[float, float] | None:
    scale = None if node is None else view.value(node.inputs[1])
    if node is None or scale is None or scale.size != 1:
        return None
    zero = _zero(view, node)
    return float(scale.reshape(-1)[0]), 0.0 if zero is None else float(zero.reshape(-1)[0])
