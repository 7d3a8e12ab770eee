"""Units of channels that can only leave a graph together, in groups of those that leave in the same places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.techniques.pruning.component import Component, Ref
from onnxsqueeze.techniques.pruning.units import Group, Kind, Role, Slot

__all__ = ["groups_of"]

_ROLES: tuple[Role, Role, Role] = ("producer", "carrier", "consumer")


def groups_of(component: Component, order: Mapping[str, int]) -> Iterator[Group]:
    """Yield the units that layers make as groups; ``order`` are the positions of the nodes by key."""
    kinds, reasons = _alike(component)
    leaders = _leaders(component, kinds, order)
    ranks = np.zeros(len(kinds), np.int64)
    for ref in {ref for ref, _ in leaders.values()}:
        labels = component.labels(ref)
        mine = np.flatnonzero(np.isin(kinds[labels], [k for k, (leader, _) in leaders.items() if leader == ref]))[::-1]
        ranks[labels[mine]] = mine
    places: dict[int, list[tuple[Ref, NDArray[np.int64]]]] = {kind: [] for kind in leaders}
    for root, refs in component.classes.items():
        labels = component.labels(root)
        if not len(labels):
            continue
        cells = np.lexsort((labels, ranks[labels], kinds[labels]))
        sorted_kinds = kinds[labels[cells]]
        new_unit = np.cumsum(np.diff(labels[cells], prepend=-1) != 0)
        starts = [0, *(np.flatnonzero(np.diff(sorted_kinds)) + 1).tolist(), len(cells)]
        for start, end in itertools.pairwise(starts):
            kind = int(sorted_kinds[start])
            if kind in places:
                indices = cells[start:end].reshape(int(new_unit[end - 1] - new_unit[start]) + 1, -1)
                places[kind] += [(ref, indices) for ref in refs]
    names: dict[str, int] = {}
    for kind, (ref, node) in leaders.items():
        group = _group(component, order, ref, node, places[kind], reasons[kind])
        names[group.name] = names.get(group.name, 0) + 1
        yield group if names[group.name] == 1 else replace(group, name=f"{group.name}[{names[group.name]}]")


def _alike(component: Component) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return for each unit a number, the same for units with as many indices of the same axes, and why they stay."""
    kinds = np.zeros(component.units, np.int64)
    used = 1
    for root in component.classes:
        labels = component.labels(root)
        counts = np.bincount(labels, minlength=1)
        found = np.flatnonzero(counts)
        alike, numbers = np.unique(kinds[found] * (len(labels) + 1) + counts[found], return_inverse=True)
        kinds[found] = used + numbers.reshape(-1)
        used += len(alike)
    texts = ["", *dict.fromkeys(component.reasons.values())]
    numbers_of = {text: number for number, text in enumerate(texts)}
    why = np.zeros(len(kinds), np.int64)
    for unit, text in component.reasons.items():
        why[unit] = numbers_of[text]
    kinds = kinds * len(texts) + why
    return kinds, {int(kind): texts[int(kind) % len(texts)] for kind in np.unique(kinds)}


def _leaders(component: Component, kinds: NDArray[np.int64], order: Mapping[str, int]) -> dict[int, tuple[Ref, str]]:
    """Return for each kind of units the weight's axis and the node that make them first."""
    found: dict[int, tuple[Ref, str]] = {}
    made = [(node, ref) for (ref, role), nodes in component.roles.items() if role == "producer" for node in nodes]
    for node, ref in sorted(made, key=lambda entry: order[entry[0]]):
        for kind in np.unique(kinds[component.labels(ref)]) if ref in component.lengths else ():
            found.setdefault(int(kind), (ref, node))
    return found


def _group(
    component: Component,
    order: Mapping[str, int],
    leader: Ref,
    first: str,
    places: list[tuple[Ref, NDArray[np.int64]]],
    reason: str,
) -> Group:
    slots: list[Slot] = []
    tensors: dict[str, tuple[int, NDArray[np.int64]]] = {}
    producers: set[str] = set()
    for ref, indices in places:
        tensor, axis = component.tensors[ref[0]], ref[1]
        if not isinstance(tensor, gs.Constant):
            if tensor.name in tensors:
                reason = reason or f"it runs along two axes of '{tensor.name}'"
            tensors[str(tensor.name)] = axis, indices
            continue
        roles: list[Role] = [role for role in _ROLES if (ref, role) in component.roles]
        for role in roles or [_ROLES[1]]:
            nodes = component.roles.get((ref, role)) or [key_of(node) for node in tensor.outputs]
            slots.append(Slot(str(tensor.name), axis, indices, role, tuple(dict.fromkeys(nodes))))
            producers.update(nodes if role == "producer" else ())
    slots.sort(key=lambda slot: (_ROLES.index(slot.role), min(order.get(node, -1) for node in slot.nodes)))
    indices = next(indices for ref, indices in places if ref == leader)
    if len(indices) == 1:
        reason = reason or "its channels can only leave all together"
    name = first if indices.size == component.lengths[leader] else f"{first}[{_span(indices)}]"
    kind = _kind(component, {ref for ref, _ in places}, producers)
    return Group(name, kind, len(indices), tuple(slots), tensors, reason)


def _span(indices: NDArray[np.int64]) -> str:
    """Return indices as a user would slice them."""
    first, last = int(indices.min()), int(indices.max())
    return f"{first}:{last + 1}" if last - first + 1 == indices.size else f"{first}…{last + 1}"


def _kind(component: Component, refs: set[tuple[int, int]], producers: set[str]) -> Kind:
    """Return what a group of channels is to a user."""
    if refs & component.products:
        return "heads"
    if len(producers) > 1 and _joined(component, {key for key, _ in refs}, producers):
        return "residual"
    return "neurons" if all(component.ops[key] in ("Gemm", "MatMul") for key in producers) else "channels"


def _joined(component: Component, inside: set[int], producers: set[str]) -> bool:
    """Return whether an Add joins what different layers make, each side with one that the other has not."""
    nodes = {id(n): n for key in inside for n in component.tensors[key].inputs}
    sources: dict[int, frozenset[str]] = {}
    for node in sorted(nodes.values(), key=lambda n: component.positions[id(n)]):
        parts = [sources[id(t)] for t in node.inputs if id(t) in sources]
        if node.op in ("Add", "Sum") and any(a - b and b - a for a in parts for b in parts):
            return True
        own = frozenset([key_of(node)]) if key_of(node) in producers else frozenset()
        for tensor in node.outputs:
            if id(tensor) in inside:
                sources[id(tensor)] = own or frozenset().union(*parts)
    return False
