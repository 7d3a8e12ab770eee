"""Graph surgery: minting names, inserting and replacing nodes, dead-code removal and a stable topological sort."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.errors import PassError
from onnxsqueeze.graph.walk import key_of, walk
from onnxsqueeze.ir.objects import Graph, Node, subgraphs
from onnxsqueeze.ir.weights import Weight

if TYPE_CHECKING:
    from onnxsqueeze.ir.objects import Graph

__all__ = [
    "Rewrite",
    "alive",
    "constant",
    "distinguish",
    "duplicate",
    "find",
    "home",
    "insert",
    "mint",
    "reads",
    "redirect",
    "remove",
    "replace",
    "sort",
    "tidy",
    "variable",
]

Rewrite = Callable[["Graph", str], None]
"""Rewrites, in a graph, the node that makes the tensor of a name."""


def duplicate(graph: Graph) -> Graph:
    """Return a copy that can be edited without touching the graph."""
    return graph.copy()


def mint(graph: Graph, hint: str) -> str:
    """Return a name that no tensor or node of the model has: ``hint``, or ``hint_2``, ``hint_3`` and so on.

    Names that a pass gives by hand between here and the next ``tidy`` are not seen; ``tidy`` refuses duplicates.
    """
    names = graph.index.names
    if names is None:
        names = graph.index.names = _names(graph)
        graph.index.minted.clear()
    count = graph.index.minted.get(hint, 1)
    name = hint if count == 1 else f"{hint}_{count}"
    while name in names:
        count += 1
        name = f"{hint}_{count}"
    graph.index.minted[hint] = count
    names.add(name)
    return name


def _names(graph: Graph) -> set[str]:
    names: set[str] = set()
    for scope in (graph, *(body for node, _ in walk(graph) for body in subgraphs(node))):
        names.update(t.name for t in (*scope.inputs, *scope.outputs, *scope.source.initializers))
        names.update(info.name for _, info in scope.source.value_info)
        for node in scope.nodes:
            names.add(node.name)
            names.update(t.name for t in (*node.inputs, *node.outputs))
    return names


def distinguish(graph: Graph) -> None:
    """Give tensors that nodes of several bodies make under one name a name each, so that ``find`` tells them apart."""
    seen: set[str] = set()
    for node, _ in walk(graph):
        for tensor in node.outputs:
            if tensor.name in seen:
                tensor.name = mint(graph, tensor.name)
            if tensor.name:
                seen.add(tensor.name)


def constant(graph: Graph, hint: str, values: NDArray[np.generic] | Weight) -> gs.Constant:
    """Return a new initializer; it enters the file when a node reads it."""
    return gs.Constant(mint(graph, hint), values if isinstance(values, Weight) else np.asarray(values))


def variable(graph: Graph, hint: str) -> gs.Variable:
    """Return a new intermediate tensor."""
    return gs.Variable(mint(graph, hint))


def find(graph: Graph, key: str) -> tuple[gs.Node, Graph]:
    """Return the node whose first output is named ``key``, and the graph that holds it."""
    for attempt in ("what is known", "a new look"):
        places = graph.index.places
        if places is None or attempt == "a new look":
            places = {key_of(node): (node, _unless(graph, scope)) for node, scope in walk(graph)}
            graph.index.places = places
        node, body = places.get(key, (None, None))
        scope = body or graph
        if node is not None and key_of(node) == key and _position(scope, node) is not None:
            return node, scope
    raise PassError(f"no node makes '{key}' any more: an earlier site of the same plan has removed it")


def _unless(graph: Graph, scope: Graph) -> Graph | None:
    """Return the scope, None for the graph itself, which what it owns must not keep alive."""
    return None if scope is graph else scope


def home(graph: Graph, scope: Graph, tensor: gs.Tensor) -> Graph:
    """Return the graph in which all readers of a tensor see what is made there: ``scope`` if they all stand in it."""
    inside = {id(node) for node in scope.nodes}
    return scope if all(id(node) in inside for node in tensor.outputs) else graph


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
        scope.nodes.insert(_index(scope, before), node)
    elif after is not None:
        scope.nodes.insert(_index(scope, after) + 1, node)
    else:
        scope.nodes.append(node)
    return made[0]


def replace(
    graph: Graph,
    scope: Graph,
    node: gs.Node,
    op: str,
    inputs: Sequence[gs.Tensor],
    attrs: Mapping[str, object] | None = None,
) -> gs.Node:
    """Put a new node in the place of ``node``, making the same outputs, and return it."""
    outputs, position = list(node.outputs), _index(scope, node)
    node.inputs.clear()
    node.outputs.clear()
    made = Node(op, name=node.name, attrs=dict(attrs or {}), inputs=list(inputs), outputs=outputs)
    scope.nodes[position] = made
    if graph.index.places is not None:
        graph.index.places[key_of(made)] = made, _unless(graph, scope)
    return made


def remove(scope: Graph, node: gs.Node) -> None:
    """Take the node out of the graph and detach it from its tensors."""
    del scope.nodes[_index(scope, node)]
    _detach(node)


def _index(scope: Graph, node: gs.Node) -> int:
    position = _position(scope, node)
    if position is None:
        raise PassError(f"the node '{node.name}' is not in the graph")
    return position


def _position(scope: Graph, node: gs.Node) -> int | None:
    # sites come in the order of the nodes, so the search starts where the last one ended, and goes both ways
    nodes, last = scope.nodes, scope.index.last
    for distance in range(max(len(nodes), last)):
        for i in (last + distance, last - 1 - distance):
            if 0 <= i < len(nodes) and nodes[i] is node:
                scope.index.last = i
                return i
    return None


def redirect(old: gs.Tensor, new: gs.Tensor, *, only: Sequence[gs.Node] | None = None) -> None:
    """Let the readers of ``old`` (those in ``only``, or all) read ``new``. Outputs of the model keep their tensor."""
    chosen = None if only is None else {id(node) for node in only}
    for node in {id(n): n for n in old.outputs if chosen is None or id(n) in chosen}.values():
        for slot, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[slot] = new


def tidy(graph: Graph) -> None:
    """Remove what no output needs and bring the nodes into topological order; a tidy graph is left as it is.

    Raises PassError for a cycle, and for two tensors of one name.
    """
    graph.index.names = graph.index.places = None
    _sweep(graph, alive(graph))
    sort(graph)
    _refuse_equal_names(graph)


def alive(graph: Graph) -> set[int]:
    """Return the ids of the nodes, those in bodies included, that the outputs of the graph depend on."""
    found: set[int] = set()
    seen: set[int] = set()
    stack: list[gs.Tensor] = list(graph.outputs)
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in tensor.inputs:
            if id(node) not in found:
                found.add(id(node))
                stack.extend(node.inputs)
                for body in subgraphs(node):
                    stack.extend(body.outputs)
    return found


def _sweep(graph: Graph, kept: set[int]) -> None:
    dead = [node for node in graph.nodes if id(node) not in kept]
    for node in dead:
        _detach(node)
    if dead:
        graph.nodes[:] = [node for node in graph.nodes if id(node) in kept]
    for node in graph.nodes:
        for body in subgraphs(node):
            _sweep(body, kept)


def _detach(node: gs.Node) -> None:
    for body in subgraphs(node):
        for inner in body.nodes:
            _detach(inner)
    node.inputs.clear()
    node.outputs.clear()


def _refuse_equal_names(graph: Graph) -> None:
    named: dict[str, gs.Tensor] = {}
    for tensor in chain(graph.inputs, graph.outputs, *((*node.inputs, *node.outputs) for node in graph.nodes)):
        if tensor.name and named.setdefault(tensor.name, tensor) is not tensor:
            raise PassError(f"two tensors are called '{tensor.name}': take new names from edit.mint")
    for node in graph.nodes:
        for body in subgraphs(node):
            _refuse_equal_names(body)


def sort(graph: Graph) -> None:
    """Sort the nodes of the graph and its bodies topologically; nodes that may stay where they are do.

    Raises PassError for a cycle.
    """
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    edges = [
        (position[id(maker)], i)
        for i, node in enumerate(graph.nodes) for t in reads(node) for maker in t.inputs if id(maker) in position
    ]  # fmt: skip
    if any(source >= i for source, i in edges):
        import networkx as nx  # slow to import, and most graphs are sorted

        network = nx.DiGraph(edges)
        network.add_nodes_from(range(len(graph.nodes)))
        try:
            order = list(nx.lexicographical_topological_sort(network))
        except nx.NetworkXUnfeasible:
            stuck = graph.nodes[nx.find_cycle(network)[0][0]]
            raise PassError(f"it has a cycle at '{key_of(stuck)}', which depends on itself") from None
        graph.nodes[:] = [graph.nodes[i] for i in order]
    for node in graph.nodes:
        for body in subgraphs(node):
            sort(body)


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield what the node reads, what its bodies capture included."""
    yield from node.inputs
    for body in subgraphs(node):
        yield from body.outputs
        for inner in body.nodes:
            yield from reads(inner)
