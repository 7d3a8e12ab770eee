"""The changed part of two graphs as boxes and arrows; what did not change is collapsed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import onnx_graphsurgeon as gs

from onnxsqueeze.analysis.diff.words import summary
from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph

if TYPE_CHECKING:
    from onnxsqueeze.analysis.diff.diff import GraphDiff

__all__ = ["Box", "Picture", "attributes_of", "pictures"]

BOXES = 120
"""Boxes of one picture; of a larger graph neighbours share one."""
OPENED = 80
"""Nodes of a box that can be opened into boxes of their own; of a larger one only the names are listed."""


_Node = tuple[str, str, str, int]


@dataclass(frozen=True)
class Box:
    """One node, or several in one box: ``nodes`` are positions in the picture's list of nodes."""

    title: str
    status: str
    nodes: tuple[int, ...]
    opens: bool


@dataclass(frozen=True)
class Picture:
    """The main graph of one model: nodes as (key, operator, status, number of the change or -1), edges, and boxes."""

    nodes: tuple[_Node, ...]
    edges: tuple[tuple[int, int], ...]
    boxes: tuple[Box, ...]


def pictures(a: Graph, b: Graph, found: GraphDiff) -> tuple[Picture, Picture]:
    """Return the pictures of both main graphs; nodes of one change have its number in both."""
    before: dict[str, tuple[str, int]] = {}
    after: dict[str, tuple[str, int]] = {}
    for number, change in enumerate(found.changes):
        if change.scope:  # a change in a body shows at the node that has the body
            for key in (key for key in found.pairs if change.scope.startswith(f"{key}/")):
                before.setdefault(key, ("changed", number))
                after.setdefault(found.pairs[key], ("changed", number))
            continue
        for refs, side in ((change.before, before), (change.after, after)):
            for ref in refs:
                side[ref.key] = change.kind, number
    return _picture(a, before), _picture(b, after)


def _picture(graph: Graph, marked: Mapping[str, tuple[str, int]]) -> Picture:
    shown = [node for node in graph.nodes if node.op != "Constant" or key_of(node) in marked]
    position = {id(node): i for i, node in enumerate(shown)}
    nodes = tuple((key_of(n), str(n.op), *marked.get(key_of(n), ("same", -1))) for n in shown)
    sources: list[list[int]] = []
    for node in shown:
        read = [t for t in node.inputs if t.name and (constant_of(t) is None or t.inputs)]
        sources.append(sorted({position[id(m)] for t in read for m in t.inputs if id(m) in position}))
    edges = tuple((j, i) for i, before in enumerate(sources) for j in before)
    return Picture(nodes, edges, _boxes(nodes, sources))


def _boxes(nodes: tuple[_Node, ...], sources: list[list[int]]) -> tuple[Box, ...]:
    """Put the nodes of one change, and unchanged neighbours, into one box each; if that is too many, runs of boxes.

    No cycle may arise. Unchanged nodes whose paths from the inputs cross equally many borders between changed and
    unchanged parts can share a box: a path that leaves it crosses a border and cannot come back.
    """
    units = _units(nodes, sources)
    owner = {i: number for number, unit in enumerate(units) for i in unit}
    before = [sorted({owner[j] for i in unit for j in sources[i]} - {number}) for number, unit in enumerate(units)]
    changed = [nodes[unit[0]][3] >= 0 for unit in units]
    groups = nx.utils.UnionFind(range(len(units)))
    level = [0] * len(units)
    for number in _order(before):
        level[number] = max((level[j] + (changed[number] or changed[j]) for j in before[number]), default=0)
        for j in before[number]:
            if not changed[number] and not changed[j] and level[j] == level[number]:
                groups.union(number, j)
    merged: dict[int, list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        merged[groups[number]].extend(unit)
    runs = [sorted(members) for members in merged.values()]
    owner = {i: number for number, run in enumerate(runs) for i in run}
    before = [sorted({owner[j] for i in run for j in sources[i]} - {number}) for number, run in enumerate(runs)]
    runs = [runs[number] for number in _order(before)]
    if len(runs) > BOXES:
        size = -(-len(runs) // BOXES)
        runs = [sorted(i for run in runs[k : k + size] for i in run) for k in range(0, len(runs), size)]
    return tuple(_box(nodes, run) for run in runs)


def _units(nodes: tuple[_Node, ...], sources: list[list[int]]) -> list[list[int]]:
    """Return the nodes of each change together, unless other nodes lie on a way from one to another of them."""
    together: dict[object, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        together[("change", node[3]) if node[3] >= 0 else i].append(i)
    owner = {i: name for name, members in together.items() for i in members}
    network = nx.DiGraph()
    network.add_nodes_from(together)
    network.add_edges_from((owner[j], owner[i]) for i, read in enumerate(sources) for j in read if owner[i] != owner[j])
    tangled = {name for part in nx.strongly_connected_components(network) if len(part) > 1 for name in part}
    units = [[i] for name in tangled for i in together[name]]
    return sorted([*units, *(members for name, members in together.items() if name not in tangled)])


def _order(before: list[list[int]]) -> list[int]:
    """Return a topological order that keeps what belongs to one path together."""
    order: list[int] = []
    done: set[int] = set()
    stack = list(range(len(before) - 1, -1, -1))
    while stack:
        number = stack[-1]
        waiting = [other for other in before[number] if other not in done]
        if number not in done and waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        if number not in done:
            done.add(number)
            order.append(number)
    return order


def _box(nodes: tuple[_Node, ...], members: list[int]) -> Box:
    if len(members) == 1:
        _, op, status, _ = nodes[members[0]]
        return Box(op, status, (members[0],), False)
    changes = {nodes[i][3] for i in members}
    opens = len(members) <= OPENED
    if len(changes) == 1 and -1 not in changes:
        return Box(summary([nodes[i][1] for i in members], 3), nodes[members[0]][2], tuple(members), opens)
    ops = Counter(nodes[i][1] for i in members)
    most = ", ".join(op if count == 1 else f"{count} {op}" for op, count in ops.most_common(2))
    title = f"{len(members)} nodes: {most}{', …' if len(ops) > 2 else ''}"
    changes.discard(-1)
    statuses = {nodes[i][2] for i in members if nodes[i][3] >= 0}
    status = "same" if not changes else statuses.pop() if len(statuses) == 1 else "mixed"
    if changes:
        title = f"{len(changes)} change{'s' if len(changes) > 1 else ''} in {title}"
    return Box(title, status, tuple(members), opens)


def attributes_of(node: gs.Node) -> dict[str, str]:
    """Return the attributes of a node as short text."""
    found = {}
    for name, value in node.attrs.items():
        text = "a graph" if isinstance(value, gs.Graph) else "a tensor" if isinstance(value, gs.Tensor) else str(value)
        found[name] = text if len(text) <= 60 else text[:59] + "…"
    return found
