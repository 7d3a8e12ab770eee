"""Local functions: what a call stands for, and writing it out in the place of the call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.opset import changed
from onnxsqueeze.graph.walk import is_standard, walk
from onnxsqueeze.ir.objects import Function, Graph, Node, subgraphs
from onnxsqueeze.ir.protos import standard

__all__ = ["callee", "calls", "inline", "obstacle"]

Name = tuple[str, str, str]
"""Operator, domain and overload."""


def callee(graph: Graph, node: gs.Node) -> Function | None:
    """Return the local function of the model that the node calls."""
    return _table(graph).get(_called(node)) if graph.functions else None


def calls(graph: Graph) -> list[tuple[gs.Node, Function]]:
    """Return every node that calls a local function, with it; those in bodies and in other functions included."""
    table = _table(graph)
    nodes = [node for scope in (graph, *graph.functions) for node, _ in walk(scope)] if table else []
    return [(node, table[_called(node)]) for node in nodes if _called(node) in table]


def _table(graph: Graph) -> dict[Name, Function]:
    found = [f for f in graph.functions if isinstance(f, Function)]
    return {(str(f.name), standard(f.domain or ""), f.overload): f for f in found}


def _called(node: gs.Node) -> Name:
    proto = getattr(node, "proto", None)
    return str(node.op), standard(node.domain or ""), "" if proto is None else str(proto.overload)


def obstacle(graph: Graph, function: Function) -> str:
    """Return why a call cannot be written out in the main graph, "" if it can."""
    versions = _versions(graph)
    for entry in function.import_domains or ():
        domain = standard(entry.domain)
        if versions.get(domain, entry.version) == entry.version:
            continue
        used = [node for node, _ in walk(function) if standard(node.domain or "") == domain]
        if any(not is_standard(n) or _changed(n.op, entry.version, versions[domain]) for n in used):
            return (
                f"it is written for opset {entry.version} of '{domain or 'ai.onnx'}', the model for {versions[domain]}"
            )
    makers = [id(tensor) for node in function.nodes for tensor in node.outputs if tensor.name]
    if len(makers) != len(set(makers)) or len({id(t) for t in function.inputs}) != len(function.inputs):
        return "it makes a tensor twice"
    return ""


def _versions(graph: Graph) -> dict[str, int]:
    return {standard(e.domain): e.version for e in graph.import_domains or ()} | {"": int(graph.opset)}


def _changed(op: str, one: int, other: int) -> bool:
    return not onnx.defs.has(op) or changed(op, one, other)


def inline(graph: Graph, scope: Graph, node: gs.Node, function: Function) -> None:
    """Put the nodes of a function in the place of the node of ``scope`` that calls it.

    Parameters become the values that the call gives, or their defaults; attributes that refer to a parameter that has
    neither are left out. Everything inside gets a name that the model does not have, led by the name of what the call
    makes; documentation and metadata of the nodes stay. A function that nothing calls any more is taken out.
    """
    body = function.copy()
    inner = [each for each, _ in walk(body)]
    given = {name: value for name, value in body.attrs.items() if value is not None} | dict(node.attrs)
    for each in inner:
        _resolve(each, given)
    _rename(graph, body, next((str(t.name) for t in node.outputs if t.name), node.op))
    inputs = [*node.inputs, *(gs.Variable.empty() for _ in body.inputs[len(node.inputs) :])]
    known = {id(formal): actual for formal, actual in zip(body.inputs, inputs, strict=False)}
    makers = {id(tensor): each for each in body.nodes for tensor in each.outputs if tensor.name}
    pairs = [(formal, output) for formal, output in zip(body.outputs, list(node.outputs), strict=False) if output.name]
    node.outputs.clear()
    again: list[tuple[gs.Tensor, gs.Tensor]] = []
    for formal, output in pairs:
        if id(formal) in makers and id(formal) not in known:
            _swap(makers[id(formal)].outputs, {id(formal): output})
            known[id(formal)] = output
        else:
            again.append((formal, output))
    for each in inner:
        _swap(each.inputs, known)
        for branch in subgraphs(each):
            _swap(branch.outputs, known)
    for formal, output in again:  # the function hands an input on, or one result twice
        body.nodes.append(Node("Identity", edit.mint(graph, output.name), {}, [known[id(formal)]], [output]))
    position = scope.nodes.index(node)
    node.inputs.clear()
    scope.nodes[position : position + 1] = list(body.nodes)
    graph.index.places = graph.index.bodies = None
    _import(graph, function)
    if not any(each is function for _, each in calls(graph)):
        _forget(graph, function)


def _swap(tensors: Any, by: dict[int, gs.Tensor]) -> None:
    for slot, tensor in enumerate(tensors):
        if id(tensor) in by:
            tensors[slot] = by[id(tensor)]


def _resolve(node: gs.Node, given: dict[str, Any]) -> None:
    """Give attributes that refer to a parameter of the function its value, and leave out those that have none."""
    for name, value in list(node.attrs.items()):
        if isinstance(value, gs.Node.AttributeRef):
            if value.name in given:
                node.attrs[name] = given[value.name]
            else:
                del node.attrs[name]


def _rename(graph: Graph, body: Graph, prefix: str) -> None:
    """Give everything that the body names a name of its own in the graph."""
    seen: set[int] = set()
    for tensor in _own(body):
        if tensor.name and id(tensor) not in seen:
            seen.add(id(tensor))
            tensor.name = edit.mint(graph, f"{prefix}/{tensor.name}")
    for node, _ in walk(body):
        if node.name:
            node.name = edit.mint(graph, f"{prefix}/{node.name}")


def _own(body: Graph) -> Iterator[gs.Tensor]:
    """Yield what the nodes of a body make, and what bodies inside take in, store and make."""
    for node in body.nodes:
        yield from node.outputs
        for inner in subgraphs(node):
            yield from inner.inputs
            yield from inner.source.initializers
            yield from _own(inner)


def _import(graph: Graph, function: Function) -> None:
    known = {standard(entry.domain) for entry in graph.import_domains or ()}
    for entry in function.import_domains or ():
        if standard(entry.domain) not in known:
            graph.import_domains = [*(graph.import_domains or ()), entry]


def _forget(graph: Graph, function: Function) -> None:
    """Take a function out that nothing calls, and those that only it has called."""
    inside = {id(each): each for node, _ in walk(function) if (each := callee(graph, node)) is not None}
    graph.functions[:] = [each for each in graph.functions if each is not function]
    for each in inside.values():
        left = any(each is other for other in graph.functions)
        if left and not any(called is each for _, called in calls(graph)):
            _forget(graph, each)
