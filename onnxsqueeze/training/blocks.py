"""Blocks: the parts of a graph between tensors that all ways from its inputs to its outputs go through."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View
from onnxsqueeze.training.leaves import Leaf

__all__ = ["Block", "blocks", "crossings"]

UNFELT = ("Shape", "Size", "ConstantOfShape", "Range", "ArgMax", "ArgMin", "NonZero", "Constant")
"""Operators whose outputs do not move with the values of their inputs."""

ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")
"""Operators whose integers move with their inputs."""


@dataclass(frozen=True)
class Block:
    """From ``inputs`` to ``outputs`` by ``nodes``, with the leaves that no other block reads.

    The inputs are the one tensor that crosses into the block and what it reads besides of tensors that no leaf moves.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[gs.Node, ...]
    leaves: tuple[Leaf, ...]


def crossings(view: View, leaves: Sequence[Leaf]) -> list[str]:
    """Return the tensors that every way from the first leaves to the outputs goes through, in order.

    They are made by the vertices that dominate the outputs in the graph of what the leaves move: their ancestors in the
    dominator tree (Lengauer and Tarjan 1979).
    """
    import networkx as nx  # slow to import

    moved = _moved(view, leaves)
    made = _made(moved)
    ends = _ends(view, made)
    network, index = nx.DiGraph(), {id(node): i for i, node in enumerate(moved)}
    for i, node in enumerate(moved):
        sources: set[object] = {index[id(made[str(t.name)])] for t in node.inputs if str(t.name) in made}
        network.add_edges_from((source, i) for source in sources or {"in"})
    network.add_edges_from((index[id(made[name])], "out") for name in ends)
    if "out" not in network:
        return []
    above = nx.immediate_dominators(network, "in")
    found: list[str] = []
    at = above["out"]
    while at != "in":
        tensors = [t for t in moved[at].outputs if t.name and (t.outputs or view.is_output(t))]
        if len(tensors) == 1 and _is_float(view, tensors[0]) and str(tensors[0].name) not in ends:
            found.append(str(tensors[0].name))
        at = above[at]
    return found[::-1]


def blocks(view: View, leaves: Sequence[Leaf], cuts: Collection[str], whole: bool = False) -> list[Block]:
    """Return the blocks in order, each with a leaf: they end at those ``crossings`` that are among ``cuts``.

    A part without a leaf goes with the block before it. ``whole``: one block of everything.
    """
    moved = _moved(view, leaves)
    made, order = _made(moved), {id(node): i for i, node in enumerate(moved)}
    ends = _ends(view, made)
    if not ends:
        return []
    taken: set[int] = set()
    found: list[Block] = []
    for outputs in [*([] if whole else [(name,) for name in crossings(view, leaves) if name in cuts]), tuple(ends)]:
        nodes = sorted(_back(outputs, made, taken), key=lambda node: order[id(node)])
        taken.update(id(node) for node in nodes)
        block = _block(view, nodes, outputs, leaves)
        if found and not block.leaves:
            block = _block(view, [*found.pop().nodes, *nodes], outputs, leaves)
        found.append(block)
    return [block for block in found if block.leaves]


def _made(moved: Sequence[gs.Node]) -> dict[str, gs.Node]:
    return {str(t.name): node for node in moved for t in node.outputs if t.name}


def _ends(view: View, made: Mapping[str, gs.Node]) -> list[str]:
    """Return the outputs of the model that the leaves move, each once."""
    return list(dict.fromkeys(str(t.name) for t in view.graph.outputs if str(t.name) in made and _is_float(view, t)))


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
        felt = [t for t in node.outputs if t.name and (node.op in ROUNDING or _is_moving_type(view, t))]
        if felt:
            moving.update(id(t) for t in felt)
            found.append(node)
    return found


def _is_moving_type(view: View, tensor: gs.Tensor) -> bool:
    dtype = view.dtype(tensor)
    return dtype is None or dtype.kind == "f" or dtype.name == "bfloat16"


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
