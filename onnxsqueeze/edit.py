"""Graph surgery: minting names, inserting and replacing nodes, dead-code removal and a stable topological sort."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.codec import Graph, Node
from onnxsqueeze.errors import PassError
from onnxsqueeze.view import key_of, walk
from onnxsqueeze.weights import Weight

__all__ = ["bodies", "constant", "duplicate", "find", "insert", "mint", "redirect", "remove", "replace", "sort", "tidy", "variable"]


def bodies(node: gs.Node) -> Iterator[Graph]:
    """Yield the graphs that the node's attributes hold."""
    for value in node.attrs.values():
        for body in value if isinstance(value, list) else (value,):
            if isinstance(body, gs.Graph):
                yield body


def duplicate(graph: Graph) -> Graph:
    """Return a copy that can be edited without touching the graph."""
    copy = graph.copy()
    for scope in {id(s): s for s in (copy, *(s for _, s in walk(copy)))}.values():
        for cache in ("_names", "_by_key", "_last"):
            scope.__dict__.pop(cache, None)
    return copy


def mint(graph: Graph, hint: str) -> str:
    """Return a name that no tensor or node of the model has: ``hint``, or ``hint_2``, ``hint_3`` and so on."""
    names: set[str] | None = graph.__dict__.get("_names")
    if names is None:
        names = set()
        for scope in {id(s): s for _, s in walk(graph)}.values():
            names.update(t.name for t in (*scope.inputs, *scope.outputs))
        for node, _ in walk(graph):
            names.add(node.name)
            names.update(t.name for t in (*node.inputs, *node.outputs))
        names.update(t.name for t in graph.__dict__.get("spare", ()))
        graph.__dict__["_names"] = names
    name, count = hint, 1
    while name in names:
        count += 1
        name = f"{hint}_{count}"
    names.add(name)
    return name


def constant(graph: Graph, hint: str, values: NDArray[np.generic] | Weight) -> gs.Constant:
    """Return a new initializer; it enters the file when a node reads it."""
    return gs.Constant(mint(graph, hint), values if isinstance(values, Weight) else np.asarray(values))


def variable(graph: Graph, hint: str) -> gs.Variable:
    """Return a new intermediate tensor."""
    return gs.Variable(mint(graph, hint))


def find(graph: Graph, key: str) -> tuple[gs.Node, Graph]:
    """Return the node whose first output is named ``key``, and the graph that holds it."""
    index: dict[str, tuple[gs.Node, Graph]] = graph.__dict__.get("_by_key", {})
    node, scope = index.get(key, (None, graph))
    if node is not None and key_of(node) == key:
        return node, scope
    index = {key_of(node): (node, scope) for node, scope in walk(graph)}
    graph.__dict__["_by_key"] = index
    if key in index:
        return index[key]
    raise PassError(f"no node makes '{key}' any more: an earlier site of the same plan has removed it")


def insert(
    graph: Graph,
    scope: Graph,
    op: str,
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor] | str,
    attrs: Mapping[str, object] | None = None,
    *,
    before: gs.Node | None = None,
    after: gs.Node | None = None,
    domain: str | None = None,
) -> gs.Tensor:
    """Put a new node into ``scope``, right before or after another (at the end if neither), and return its output.

    ``outputs`` is a list of tensors, or a hint from which the name of one new tensor is minted.
    """
    made = [variable(graph, outputs)] if isinstance(outputs, str) else list(outputs)
    node = Node(
        op, name=mint(graph, made[0].name), attrs=dict(attrs or {}), inputs=list(inputs), outputs=made, domain=domain
    )
    if before is not None:
        scope.nodes.insert(_position(scope, before), node)
    elif after is not None:
        scope.nodes.insert(_position(scope, after) + 1, node)
    else:
        scope.nodes.append(node)
    return made[0]


def _position(scope: Graph, node: gs.Node) -> int:
    # sites come in the order of the nodes, so the search goes on where the last one ended
    nodes, last = scope.nodes, scope.__dict__.get("_last", 0)
    for i in chain(range(last, len(nodes)), range(min(last, len(nodes)))):
        if nodes[i] is node:
            scope.__dict__["_last"] = i
            return i
    raise PassError(f"the node '{node.name}' is not in the graph")


def replace(
    graph: Graph, scope: Graph, node: gs.Node, op: str, inputs: Sequence[gs.Tensor], attrs: Mapping[str, object] | None = None
) -> gs.Node:
    """Put a new node in the place of ``node``, making the same outputs, and return it."""
    outputs = list(node.outputs)
    position = _position(scope, node)
    node.inputs.clear()
    node.outputs.clear()
    made = Node(op, name=node.name, attrs=dict(attrs or {}), inputs=list(inputs), outputs=outputs)
    scope.nodes[position] = made
    return made


def remove(scope: Graph, node: gs.Node) -> None:
    """Take the node out of the graph and detach it from its tensors."""
    node.inputs.clear()
    node.outputs.clear()
    del scope.nodes[_position(scope, node)]


def redirect(old: gs.Tensor, new: gs.Tensor, *, only: Sequence[gs.Node] | None = None) -> None:
    """Let the readers of ``old`` (those in ``only``, or all) read ``new``. Outputs of the model keep their tensor."""
    chosen = None if only is None else {id(node) for node in only}
    for node in {id(n): n for n in old.outputs if chosen is None or id(n) in chosen}.values():
        for slot, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[slot] = new


def tidy(graph: Graph) -> None:
    """Remove what no output needs and bring the nodes into topological order; a tidy graph is left as it is."""
    alive: set[int] = set()
    seen: set[int] = set()
    stack: list[gs.Tensor] = list(graph.outputs)
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in tensor.inputs:
            if id(node) not in alive:
                alive.add(id(node))
                _mark(node, stack)
    _sweep(graph, alive)
    sort(graph)


def _mark(node: gs.Node, stack: list[gs.Tensor]) -> None:
    stack.extend(node.inputs)
    for body in bodies(node):
        stack.extend(body.outputs)


def _sweep(graph: Graph, alive: set[int]) -> None:
    kept = []
    for node in graph.nodes:
        if id(node) in alive:
            kept.append(node)
            for body in bodies(node):
                _sweep(body, alive)
        else:
            _detach(node)
    if len(kept) != len(graph.nodes):
        graph.nodes[:] = kept


def _detach(node: gs.Node) -> None:
    for body in bodies(node):
        for inner in body.nodes:
            _detach(inner)
    node.inputs.clear()
    node.outputs.clear()


def sort(graph: Graph) -> None:
    """Sort the nodes of the graph and its bodies topologically; nodes that may stay where they are do."""
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    waiting: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    ordered = True
    for i, node in enumerate(graph.nodes):
        sources = {position[id(p)] for t in _reads(node) for p in t.inputs if id(p) in position}
        sources.discard(i)
        ordered = ordered and all(source < i for source in sources)
        waiting.append(sources)
        for source in sources:
            readers.setdefault(source, []).append(i)
    if not ordered:
        ready = [i for i, sources in enumerate(waiting) if not sources]
        heapq.heapify(ready)
        order = []
        while ready:
            i = heapq.heappop(ready)
            order.append(i)
            for reader in readers.get(i, ()):
                waiting[reader].discard(i)
                if not waiting[reader]:
                    heapq.heappush(ready, reader)
        if len(order) != len(graph.nodes):
            raise PassError("the graph has a cycle")
        graph.nodes[:] = [graph.nodes[i] for i in order]
    for node in graph.nodes:
        for body in bodies(node):
            sort(body)


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield what the node reads, what its bodies capture included."""
    yield from node.inputs
    for body in bodies(node):
        for inner in body.nodes:
            yield from _reads(inner)
