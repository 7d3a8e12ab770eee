"""Sequential refit: the linear layers behind an edit are fitted again to what the original answers at their place.

In the order of the graph, the layer's weight becomes ``W + (Σyx − W·Σxx)(Σxx + λI)⁻¹`` with the rows x that it reads
now and the target y that the original had, both centred: least squares with a ridge towards the present weight. Where
the layer adds to a residual stream, y is the original stream less the present one, so that errors do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor, bias_value
from onnxsqueeze.linear.layers import Linear, describe, matrix, set_matrix
from onnxsqueeze.linear.ridge import Fit, lowest
from onnxsqueeze.measure import cost
from onnxsqueeze.statistics.paired import Cross, Pair, accumulate, targets
from onnxsqueeze.statistics.relay import Relay

__all__ = ["Kept", "Place", "places", "refit"]

Matrix = NDArray[np.float64]
WIDEST = 2400
ROWS = 8192
FEEDS = 32
MEMORY = 1 << 28
"""Bytes of the original's answers that are held."""
SWEEP_WORK = 2e11
"""Multiply-accumulates that all sweeps over the feeds may take; with fewer sweeps more layers are fitted at once."""


@dataclass(frozen=True)
class Place:
    """A tensor that both graphs have and that linear layers of the edited one add up to.

    ``members`` are those layers, ``offset`` the name of a constant addend, ``less`` the other addends.
    """

    target: str
    members: tuple[Linear, ...]
    offset: str
    less: tuple[str, ...]
    level: int
    keep: tuple[int, ...] | None = None
    """The channels of the original that the edited graph still has; None: all."""

    @property
    def pair(self) -> Pair:
        """What has to be measured."""
        axis = 1 if self.members[0].op == "Conv" else -1
        return Pair(tuple(m.gram for m in self.members), self.target, self.less, axis, self.keep)


Kept = Mapping[str, tuple[int, NDArray[np.int64]]]
"""Per tensor that has lost channels: their axis, and which of the original's channels it still has."""


def refit(graph: Graph, bench: Bench, kept: Kept | None = None) -> Iterator[str]:
    """Fit every linear layer that reads changed values, and yield what that gained; a loss is taken back."""
    found = places(graph, bench.original, kept or {})
    if not found or len(bench.calib) < 2:
        return
    before = bench.sqnr(graph)
    undo: list[tuple[str, int, gs.Tensor]] = []
    fitted = 0
    groups = _groups(found, graph, bench)
    feeds = (
        [bench.calib[i * len(bench.calib) // FEEDS] for i in range(FEEDS)] if len(bench.calib) > FEEDS else bench.calib
    )
    width = sum(place.members[0].outputs for place in found)
    rows = min(ROWS, MEMORY // (4 * width))
    expected = targets(bench.original, [place.pair for place in found], feeds, rows, bench.seed)
    relay = Relay(graph, feeds)
    for i, group in enumerate(groups):
        bench.progress("refitting", i, len(groups))
        members = {member.key for place in group for member in place.members}
        moments = accumulate(relay, [place.pair for place in group], members, expected, rows, bench.seed)
        for place, halves in zip(group, moments, strict=True):
            fitted += _update(graph, place, *halves, undo)
            expected.pop((place.pair.target, place.pair.axis, place.pair.keep), None)
        del moments
    bench.progress("refitting", len(groups), len(groups))
    after = bench.sqnr(graph)
    if after < before:
        for key, slot, tensor in reversed(undo):
            edit.find(graph, key)[0].inputs[slot] = tensor
        yield f"refitting {fitted} layers was taken back: {before:.1f} to {after:.1f} dB on calibration feeds"
    elif not fitted:
        yield "refitting the layers behind would not help: nothing was changed"
    else:
        yield f"refitted {fitted} layers: {before:.1f} to {after:.1f} dB on calibration feeds"


def places(graph: Graph, original: Graph, kept: Kept | None = None) -> list[Place]:
    """Return the places where layers of the edited graph read changed values, in topological order."""
    view = View(graph)
    there = {t.name for node in original.nodes for t in node.outputs if t.name}
    old = {key_of(node): node for node in original.nodes}
    lost = kept or {}
    level: dict[str, int] = {}
    found: list[Place] = []
    done: set[str] = set()
    pending: dict[str, Place] = {}
    for node in graph.nodes:
        known = [level.get(t.name, 0) for t in node.inputs if t.name in level or t.name in lost]
        before = old.get(key_of(node))
        same = (
            before is not None
            and before.op == node.op
            and [t.name for t in before.inputs] == [t.name for t in node.inputs]
        )
        here = max(known, default=-1 if same else 0)
        target = _tail(view, node, there)
        if target is not None and target.name not in done:
            done.add(target.name)
            members, offset, less = _addends(view, target)
            if members and sum(m.columns for m in members) <= WIDEST:
                keep = _keep(members[0], lost.get(target.name))
                pending[target.name] = Place(target.name, tuple(members), offset, tuple(less), 0, keep)
        for tensor in node.outputs:
            if not tensor.name:
                continue
            mine = here
            place = pending.get(tensor.name)
            if place is not None and here >= 0:
                found.append(replace(place, level=here))
                mine = here + 1
            if mine >= 0:
                level[tensor.name] = mine
    return found


def _keep(member: Linear, kept: tuple[int, NDArray[np.int64]] | None) -> tuple[int, ...] | None:
    if kept is None:
        return None
    axis, indices = kept
    return tuple(indices.tolist()) if axis == 1 or member.op != "Conv" else ()


def _tail(view: View, node: gs.Node, there: set[str]) -> gs.Tensor | None:
    """Return the last tensor that the layer's output reaches through Adds alone and that the original has too."""
    if view.in_body(node) or not is_standard(node) or not isinstance(describe(view, node), Linear):
        return None
    tensor = node.outputs[0]
    last = tensor if tensor.name in there else None
    while True:
        reader = view.only_consumer(tensor)
        if reader is None or reader.op != "Add" or view.in_body(reader):
            return last
        tensor = reader.outputs[0]
        last = tensor if tensor.name in there else last


def _addends(view: View, target: gs.Tensor) -> tuple[list[Linear], str, list[str]]:
    """Return the linear layers, the constant (its name, or "") and the other tensors whose sum ``target`` is."""
    members: list[Linear] = []
    offset, less = "", []
    stack = [target]
    while stack:
        tensor = stack.pop()
        node = view.producer(tensor)
        inner = tensor is target or (node is not None and view.only_consumer(tensor) is not None)
        value = view.value(tensor)
        if value is not None:
            if value.ndim == 1 and not offset and isinstance(tensor, gs.Constant):
                offset = str(tensor.name)
            else:
                less.append("")
        elif node is not None and inner and node.op in ("Add", "Sum") and is_standard(node):
            stack.extend(node.inputs)
        else:
            layer = describe(view, node) if node is not None and inner else None
            if isinstance(layer, Linear):
                members.append(layer)
            else:
                less.append(str(tensor.name))
    if "" in less or len({m.op for m in members}) != 1 or any(m.gram.axis == 0 for m in members):
        return [], "", []
    members.sort(key=lambda m: m.key)
    return members, offset, less


def _groups(found: Sequence[Place], graph: Graph, bench: Bench) -> list[list[Place]]:
    """Split the places by level, into no more sweeps than are affordable."""
    levels = sorted({place.level for place in found})
    feed = bench.feeds[0]
    one = 0.5 * sum(cost.macs(graph, feed).values()) * min(len(bench.calib), FEEDS)
    sweeps = min(2 if bench.slow else max(int(SWEEP_WORK / max(one, 1)), 4), len(levels))
    index = {level: i * sweeps // len(levels) for i, level in enumerate(levels)}
    groups: list[list[Place]] = [[] for _ in range(sweeps)]
    for place in found:
        groups[index[place.level]].append(place)
    return [group for group in groups if group]


def _update(graph: Graph, place: Place, even: Cross, odd: Cross, undo: list[tuple[str, int, gs.Tensor]]) -> bool:
    """Give the members the weights that serve the odd feeds better than the present ones, fitted on the even ones."""
    if even.n < 2 or odd.n < 2:
        return False
    view = View(graph)
    nodes = [edit.find(graph, m.key)[0] for m in place.members]
    weight = np.concatenate([matrix(view, node) for node in nodes], axis=1)
    holder, slot = _bias_slot(view, place, nodes)
    if even.yx.shape != weight.shape or holder is None:
        return False
    old = np.zeros(len(weight))
    for node in nodes:
        old = old + bias_value(view, node)
    offset = next((t for node in _adds(view, place) for t in node.inputs if t.name == place.offset), None)
    fixed = (
        np.zeros(len(weight))
        if offset is None
        else np.broadcast_to(np.asarray(view.value(offset), np.float64), len(weight))
    )
    half = Fit(even, weight)
    ridge, error = lowest(lambda candidate: odd.error(*half.at(candidate)))
    if error >= odd.error(weight, old + fixed) * 0.998:
        return False
    new, bias = Fit(even.merge(odd), weight).at(ridge)
    start = 0
    for node, member in zip(nodes, place.members, strict=True):
        undo.append((key_of(node), 1, node.inputs[1]))
        part = new[:, start : start + member.columns]
        start += member.columns
        set_matrix(graph, node, part, "refit")
    values = bias - fixed if holder.op != "Add" else bias - old
    if holder.op != "Add":  # other biases among the members stay
        for node in nodes:
            if node is not holder:
                values = values - bias_value(view, node)
    present = holder.inputs[slot] if slot < len(holder.inputs) else None
    dtype = np.asarray(view.value(nodes[0].inputs[1])).dtype
    constant = edit.constant(graph, f"{nodes[0].inputs[1].name}_bias", values.astype(dtype))
    if present is None:
        holder.inputs.append(constant)
        zero = edit.constant(graph, f"{nodes[0].inputs[1].name}_zero", np.zeros(len(weight), dtype))
        undo.append((key_of(holder), slot, zero))
    else:
        undo.append((key_of(holder), slot, present))
        holder.inputs[slot] = constant
    return True


def _adds(view: View, place: Place) -> Iterator[gs.Node]:
    """Yield the Adds between the members and the target."""
    stack = [node.outputs[0] for node in view.nodes if any(t.name == place.target for t in node.outputs)]
    while stack:
        node = view.producer(stack.pop())
        if node is not None and node.op in ("Add", "Sum"):
            yield node
            stack.extend(node.inputs)


def _bias_slot(view: View, place: Place, nodes: Sequence[gs.Node]) -> tuple[gs.Node | None, int]:
    """Return the node and the input that hold the place's bias: of a member, or the constant addend."""
    if nodes[0].op != "MatMul":
        with_bias = [n for n in nodes if bias_tensor(n) is not None]
        chosen = (with_bias or [n for n in nodes if len(n.inputs) == 2] or [None])[0]
        return chosen, 2
    for node in _adds(view, place):
        for slot, tensor in enumerate(node.inputs):
            if place.offset and tensor.name == place.offset and view.value(tensor) is not None:
                return node, slot
    return None, 0
