"""Blocks: the parts of a graph between tensors that all ways from its inputs to its outputs go through."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View
from onnxsqueeze.training.leaves import Leaf

__all__ = ["Block", "blocks"]

UNFELT = ("Shape", "Size", "ConstantOfShape", "Range", "ArgMax", "ArgMin", "NonZero", "Constant")
"""Operators whose outputs do not move with the values of their inputs."""


@dataclass(frozen=True)
class Block:
    """From ``inputs`` to ``outputs`` by ``nodes``, with the leaves that no other block reads.

    The inputs are the one tensor that crosses into the block and what it reads besides of tensors that no leaf moves.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[gs.Node, ...]
    leaves: tuple[Leaf, ...]


def blocks(view: View, leaves: Sequence[Leaf], known: Collection[str], whole: bool = False) -> list[Block]:
    """Return the blocks in order, each with a leaf; ``known`` are the tensors that have a target.

    A vertex that dominates the outputs in the graph of what the leaves move is where one tensor crosses (its ancestors
    in the dominator tree; Lengauer and Tarjan 1979). A part without a leaf goes with the block before it. ``whole``:
    one block of everything.
    """
    moved = _moved(view, leaves)
    made = {str(t.name): node for node in moved for t in node.outputs if t.name}
    ends = [str(t.name) for t in view.graph.outputs if str(t.name) in made and _is_float(view, t)]
    if not ends:
        return []
    cuts = [] if whole else [(name,) for name in _crossings(view, moved, made, ends) if name in known]
    found: list[Block] = []
    taken: set[int] = set()
    for outputs in [*cuts, tuple(dict.fromkeys(ends))]:
        nodes = _back(outputs, made, taken)
        taken.update(id(node) for node in nodes)
        order = {id(node): i for i, node in enumerate(moved)}
        nodes.sort(key=lambda node: order[id(node)])
        found.append(_block(view, nodes, outputs, leaves))
    merged: list[Block] = []
    for block in found:
        if merged and not block.leaves:
            last = merged.pop()
            block = _block(view, [*last.nodes, *block.nodes], block.outputs, leaves)
        merged.append(block)
    return [block for block in merged if block.leaves]


def _is_float(view: View, tensor: gs.Tensor) -> bool:
    dtype = view.dtype(tensor)
    return dtype is None or dtype == np.float32


def _moved(view: View, leaves: Sequence[Leaf]) -> list[gs.Node]:
    """Return the nodes whose outputs move with a leaf."""
    readers = {key for leaf in leaves for key in leaf.readers}
    moving: set[int] = set()
    found = []
    for node in view.graph.nodes:
        reads = any(str(t.name) in readers for t in node.outputs) or any(id(t) in moving for t in node.inputs)
        if not reads or node.op in UNFELT:
            continue
        felt = [t for t in node.outputs if t.name and (node.op == "QuantizeLinear" or _is_moving_type(view, t))]
        if felt:
            moving.update(id(t) for t in felt)
            found.append(node)
    return found


def _is_moving_type(view: View, tensor: gs.Tensor) -> bool:
    dtype = view.dtype(tensor)
    return dtype is None or dtype.kind == "f" or dtype.name == "bfloat16"


def _crossings(view: View, moved: Sequence[gs.Node], made: Mapping[str, gs.Node], ends: Sequence[str]) -> list[str]:
    """Return the tensors that every way from the first leaves to the outputs goes through, in order."""
    import networkx as nx  # slow to import

    network, index = nx.DiGraph(), {id(node): i for i, node in enumerate(moved)}
    for i, node in enumerate(moved):
        sources = {index[id(made[str(t.name)])] for t in node.inputs if str(t.name) in made}
        network.add_edges_from((source, i) for source in sources or {"in"})
    network.add_edges_from((index[id(made[name])], "out") for name in ends)
    above = nx.immediate_dominators(network, "in")
    found, at = [], above.get("out", "in")
    while at not in ("in", "out"):
        tensors = [t for t in moved[at].outputs if t.name and (t.outputs or view.is_output(t))]
        if len(tensors) == 1 and _is_float(view, tensors[0]) and str(tensors[0].name) not in ends:
            found.append(str(tensors[0].name))
        at = above[at]
    return found[::-1]


def _back(outputs: Sequence[str], made: Mapping[str, gs.Node], taken: set[int]) -> list[gs.Node]:
    """Return the moved nodes that the outputs depend on, without those that were taken before."""
    found: dict[int, gs.Node] = {}
    stack = [made[name] for name in outputs]
    while stack:
        node = stack.pop()
        if id(node) not in taken and id(node) not in found:
            found[id(node)] = node
            stack.extend(made[str(t.name)] for t in node.inputs if str(t.name) in made)
    return list(found.values())


def _block(view: View, nodes: Sequence[gs.Node], outputs: tuple[str, ...], leaves: Sequence[Leaf]) -> Block:
    own = {str(t.name) for node in nodes for t in node.outputs}
    mine = tuple(leaf for leaf in leaves if leaf.readers <= own)
    inputs = dict.fromkeys(
        str(t.name)
        for node in nodes
        for t in node.inputs
        if t.name and str(t.name) not in own and not _is_fixed(view, t)
    )
    return Block(tuple(inputs), outputs, tuple(nodes), mine)


def _is_fixed(view: View, tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant, or made of constants alone."""
    stack = [tensor]
    while stack:
        each = stack.pop()
        if view.constant(each) is not None:
            continue
        node = view.producer(each)
        if node is None or "Random" in node.op:
            return False
        stack.extend(t for t in node.inputs if t.name)
    return True
