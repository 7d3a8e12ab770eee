"""All nodes of a graph, and what they are called by."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnxsqueeze.ir.objects import Graph, subgraphs

__all__ = ["is_standard", "key_of", "walk"]

_STANDARD = (None, "", "ai.onnx")


def key_of(node: gs.Node) -> str:
    """Return the name of the node's first named output, which identifies it across edits."""
    for tensor in node.outputs:
        if tensor.name:
            return str(tensor.name)
    return ""


def is_standard(node: gs.Node) -> bool:
    """Return whether the node's operator is of the standard ONNX domain."""
    return node.domain in _STANDARD


def walk(graph: Graph) -> Iterator[tuple[gs.Node, Graph]]:
    """Yield every node with the graph that holds it: the main graph first, each body right after its node."""
    for node in graph.nodes:
        yield node, graph
        for body in subgraphs(node):
            yield from walk(body)
