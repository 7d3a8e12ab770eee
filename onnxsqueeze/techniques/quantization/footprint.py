"""What the weights of a plan take of memory at run time, and which of them stay integers there.

A stored weight that is restored when the model is loaded passes through Cast, Mul and Reshape. ONNX Runtime keeps what
each of them makes until all constants are folded, then packs the last of them for its kernels, and the C library gives
little of what was freed back to the system: 3.2 times the float weight was seen in a process afterwards, 4.2 times for
a Conv, whose weight is laid out anew besides; the float model itself takes 1.5 and 2.8 times, since its file passes
through memory too (eight layers of 4 and 2 MB, each form in fresh processes, ONNX Runtime 1.32, glibc).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod

import onnx_graphsurgeon as gs

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.walk import key_of, walk
from onnxsqueeze.ir.objects import subgraphs
from onnxsqueeze.targets.times import UNBLOCKED
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.emit.lean import can_be_lean
from onnxsqueeze.techniques.quantization.layers import weight_slots

__all__ = ["excess", "frugal", "hunger", "kept_lean", "leanable"]

Plan = list[Site[Quantized] | Skip]
IN_FLOAT, IN_FLOAT_CONV = 1.5, 2.8
"""Bytes of memory per byte of a float weight in a float model."""
FOLDED, FOLDED_CONV = 3.2, 4.2
"""The same where it is restored when the model is loaded."""
IN_INTEGERS = 0.55
"""The same where a kernel multiplies by its integers."""
LEAN = 0.27
"""The same where it is restored at every run; one of them is there in float at a time."""
LEAST = 1 << 16
"""Bytes of a float weight that is worth restoring at every run."""
SLACK = 1 << 20
"""Bytes that a plan may take over the float model: what is not counted here varies by more."""


CHEAP = 0.02
"""The share of the float run time that weights may take which are restored at every run, so that memory is no more."""
HUNGRY = (
    "restoring the stored weights when the model is loaded takes about {} of memory more than the float model does; "
    "goal=memory restores them at every run, in more time"
)


def leanable(arithmetic: Arithmetic) -> set[str]:
    """Return the keys of the nodes whose weights had better be restored at every run, if memory is what counts.

    They stand in no loop and are large; a Conv, which needs room for a copy of its input then, has a weight that is
    larger than what it makes. The target says for which operators it works.
    """
    view = arithmetic.view
    looped = {id(node) for loop in view.nodes if loop.op in ("Loop", "Scan") for node in _inside(loop)}

    def pays(node: gs.Node) -> bool:
        slots, size = weight_slots(node), float_bytes(node)
        made = 4 * arithmetic.elements(arithmetic.layers.tail(node).outputs[0]) if node.op == "Conv" else 0.0
        known = node.op != "Conv" or not view.in_body(node)
        return bool(slots) and all(can_be_lean(node, s) for s in slots) and known and size >= max(LEAST, made)

    return {key_of(node) for node in view.of(*view.target.weights.kept) if id(node) not in looped and pays(node)}


def frugal(plan: Plan, arithmetic: Arithmetic, free: set[str], whole: float) -> Plan:
    """Return the plan in which as many weights are restored at every run as its memory needs to be float's.

    Only those of the keys ``free``, the cheapest for their size first, and for no more than a share of ``whole``, the
    nanoseconds of the float model.
    """
    nodes = {key_of(node): node for node in arithmetic.view.nodes}
    if excess(plan, nodes) <= 0:
        return plan
    costs = {
        entry.key: _restoring(nodes[entry.key], arithmetic)
        for entry in plan if isinstance(entry, Site) and entry.key in free
    }  # fmt: skip
    chosen: set[str] = set()
    left = CHEAP * whole
    for key in sorted(costs, key=lambda key: (costs[key] / max(float_bytes(nodes[key]), 1), key)):
        left -= costs[key]
        if left < 0 or excess(kept_lean(plan, chosen), nodes) <= 0:
            break
        chosen.add(key)
    return kept_lean(plan, chosen)


def _restoring(node: gs.Node, arithmetic: Arithmetic) -> float:
    """Return what restoring the weight of a layer at every run is predicted to cost, in nanoseconds."""
    lost = UNBLOCKED * arithmetic.in_float(node) if node.op == "Conv" else 0.0
    return arithmetic.target.times.dequantize * float_bytes(node) / 4 + lost


def hunger(plan: Plan, nodes: dict[str, gs.Node]) -> Iterator[str]:
    """Yield what to say of a plan that takes more memory at run time than float does."""
    if (more := excess(plan, nodes)) > 0:
        yield HUNGRY.format(f"{more / 1e6:.0f} MB")


def kept_lean(plan: Iterable[Site[Quantized] | Skip], keys: set[str]) -> Plan:
    """Return the plan in which the stored sites of these keys are restored at every run."""

    def finished(entry: Site[Quantized] | Skip) -> Site[Quantized] | Skip:
        if isinstance(entry, Skip) or entry.key not in keys or entry.work.form != "stored" or entry.work.wide:
            return entry
        return replace(entry, action="kept in 8 bits", work=replace(entry.work, lean=True))

    return [finished(entry) for entry in plan]


def excess(plan: Plan, nodes: dict[str, gs.Node]) -> float:
    """Return the predicted bytes that the weights of a plan take over those of the float model."""
    total = largest = 0.0
    for entry in plan:
        if isinstance(entry, Skip) or entry.work.between:
            continue
        node, work = nodes[entry.key], entry.work
        size, conv = float_bytes(node), node.op == "Conv"
        if node.op == "Gather":
            continue
        total -= size * (IN_FLOAT_CONV if conv else IN_FLOAT)
        if work.form != "stored":
            total += size * IN_INTEGERS
        elif work.lean:
            total += size * LEAN
            largest = max(largest, size)
        else:
            total += size * (FOLDED_CONV if conv else FOLDED)
    return total + largest - SLACK


def float_bytes(node: gs.Node) -> int:
    """Return the bytes of the weights of a node in float."""
    return sum(4 * prod(node.inputs[slot].shape) for slot in weight_slots(node))


def _inside(node: gs.Node) -> Iterator[gs.Node]:
    for body in subgraphs(node):
        yield from (inner for inner, _ in walk(body))
