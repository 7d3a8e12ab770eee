"""Taps: the last float tensors from which answers are computed that are no smooth function of what a pass changes.

A label, a set of detections or a length jumps where the scores behind it move a little, or does not move at all. So
errors are measured one step before: at the float tensors that ArgMax, TopK, NonMaxSuppression, a comparison or a
rounding to integers reads, and at those that the operators behind read besides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.edit import duplicate, tidy
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph

__all__ = ["LAYERS", "MOVES", "ROWS", "Ancestry", "Front", "expose", "withdraw"]

_LAYERS = """Conv ConvTranspose ConvInteger QLinearConv Gemm MatMul MatMulInteger QLinearMatMul Einsum LSTM GRU RNN
    Attention If Loop Scan TreeEnsembleClassifier TreeEnsembleRegressor TreeEnsemble SVMClassifier SVMRegressor
    LinearClassifier LinearRegressor BatchNormalization LayerNormalization InstanceNormalization
    GroupNormalization RMSNormalization"""
LAYERS = frozenset(_LAYERS.split())
"""Operators that compute features; what is behind the last of them is post-processing."""
MOVES = frozenset(["Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Tile", "Expand"])
ROWS = frozenset(["TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"])
"""Operators that choose among rows, by values."""
CHOICES = ROWS | {"ArgMax", "ArgMin", "Multinomial", "Bernoulli", "Hardmax"}
COMPARISONS = frozenset(["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign", "IsNaN", "IsInf", "Not"])
_SHAPES = ("Shape", "Size")
ROUNDINGS = frozenset(["Ceil", "Floor", "Round"])
SHAPED_BY = {
    "Expand": (1,), "Reshape": (1,), "Range": (0, 1, 2), "ConstantOfShape": (0,), "Slice": (1, 2), "Tile": (1,),
    "Resize": (2, 3), "Pad": (1,), "Split": (1,), "RandomNormal": (), "SequenceAt": (1,),
}  # fmt: skip
"""Which inputs say how long the output is."""


@dataclass(frozen=True)
class Front:
    """What stands in front of an output: the operator that makes it discrete, and the tensors to measure at.

    ``whole`` says that nothing else enters the output; else its own error counts as well.
    """

    op: str
    taps: tuple[str, ...]
    whole: bool = True


class Ancestry:
    """The graph seen from its outputs."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._deep: dict[int, bool] = {}

    def behind_layers(self, output: gs.Tensor) -> list[gs.Node]:
        """Return the nodes between the last layers and the output, the output's own first."""
        return self._back(output, across=False)

    def front(self, output: gs.Tensor, *, discrete: bool) -> Front | None:
        """Return what makes the output a jumping function of its float tensors, None if nothing does.

        ``discrete`` says that it is no float tensor: then comparisons and conversions count as well.
        """
        region = self.behind_layers(output)
        hazards = [node for node in region if self._jumps(node, discrete) and self._reads_computed(node)]
        if hazards:
            found = self._taps(output, region, hazards)
            if found:
                return Front(hazards[-1].op, found)
        if discrete:
            return None
        return self._length(output, region)

    def steps(self, output: gs.Tensor) -> list[gs.Node]:
        """Return the nodes that round what a layer makes to whole numbers from which the output has its length."""
        front = self.front(output, discrete=not self._is_float(output))
        if front is None or front.whole:
            return []
        nodes, hazards, shaping = self._shaped(output)
        rounding = [node for node in hazards if self._rounds(node) and _feeds(node, shaping, nodes)]
        behind = _tainted(nodes, rounding)
        return [node for node in rounding if not any(id(t) in behind for t in node.inputs)]

    def _shaped(self, output: gs.Tensor) -> tuple[list[gs.Node], list[gs.Node], list[gs.Node]]:
        """Return what an output is made by, what of it jumps, and what has a shape that depends on the jumps."""
        nodes = self._back(output, across=True)
        hazards = [node for node in nodes if self._jumps(node, True) and self._reads_computed(node)]
        tainted = _tainted(nodes, hazards)
        shaping = [
            node for node in nodes for slot in SHAPED_BY.get(node.op, ())
            if slot < len(node.inputs) and id(node.inputs[slot]) in tainted
        ]  # fmt: skip
        return nodes, hazards, shaping

    def _length(self, output: gs.Tensor, region: Sequence[gs.Node]) -> Front | None:
        """Return what the length of the output comes from, if that depends on data."""
        nodes, hazards, shaping = self._shaped(output)
        if not shaping:
            return None
        inside = {id(node) for node in region}
        near = [node for node in hazards if id(node) in inside]
        if near and all(id(node) in inside for node in shaping):
            found = self._taps(output, region, near)
            return Front(near[-1].op, found) if found else None
        causes = [node for node in hazards if _feeds(node, shaping, nodes)]
        roots = dict.fromkeys(
            name for node in causes for t in node.inputs if self._is_computed_float(t) and (name := self._root(t))
        )
        return Front(causes[-1].op, tuple(roots), whole=False) if roots else None

    def _taps(self, output: gs.Tensor, region: Sequence[gs.Node], hazards: Sequence[gs.Node]) -> tuple[str, ...]:
        tainted = _tainted(region, hazards)
        if id(output) not in tainted:
            return ()
        chosen = {id(node) for node in hazards}
        readers = [node for node in region if id(node) in chosen or any(id(t) in tainted for t in node.inputs)]
        roots = [
            self._root(t) for node in reversed(readers) for t in node.inputs
            if id(t) not in tainted and self._is_computed_float(t)
        ]  # fmt: skip
        return tuple(dict.fromkeys(name for name in roots if name))

    def _root(self, tensor: gs.Tensor) -> str:
        """Return the tensor of which this one is only a reordering, or a shift by a number per row."""
        while tensor.inputs:
            node = tensor.inputs[0]
            same = node.op in MOVES or node.op == "LogSoftmax" or (node.op == "Cast" and self._is_float(node.inputs[0]))
            if not (same and is_standard(node) and self._is_computed_float(node.inputs[0])):
                break
            tensor = node.inputs[0]
        return str(tensor.name) if tensor.inputs else ""

    def _jumps(self, node: gs.Node, discrete: bool) -> bool:
        if not is_standard(node):
            return node.op in ("NonMaxSuppression", "NMS", "BatchedNMS")
        if node.op in CHOICES:
            return True
        return discrete and (node.op in COMPARISONS or self._rounds(node))

    def _rounds(self, node: gs.Node) -> bool:
        if node.op == "Cast":
            return self._is_float(node.inputs[0]) and not self._is_float(node.outputs[0])
        return node.op in ROUNDINGS

    def _reads_computed(self, node: gs.Node) -> bool:
        return any(self._is_computed_float(t) for t in node.inputs)

    def _is_computed_float(self, tensor: gs.Tensor) -> bool:
        return self._is_float(tensor) and self.deep(tensor)

    def _is_float(self, tensor: gs.Tensor) -> bool:
        dtype = self.view.dtype(tensor) if tensor.name else None
        return dtype is not None and (dtype.kind == "f" or dtype.name == "bfloat16")

    def deep(self, tensor: gs.Tensor) -> bool:
        """Whether a layer lies between the inputs of the model and the tensor; shapes of what it makes do not count."""
        stack = [tensor]
        while stack:
            each = stack[-1]
            node = each.inputs[0] if each.inputs else None
            if id(each) in self._deep or node is None or node.op in _SHAPES or node.op in LAYERS or _is_foreign(node):
                self._deep.setdefault(id(each), node is not None and node.op not in _SHAPES)
                stack.pop()
                continue
            waiting = [t for t in node.inputs if id(t) not in self._deep]
            if waiting:
                stack += waiting
            else:
                self._deep[id(each)] = any(self._deep[id(t)] for t in node.inputs)
                stack.pop()
        return self._deep[id(tensor)]

    def _back(self, output: gs.Tensor, *, across: bool) -> list[gs.Node]:
        seen: dict[int, gs.Node] = {}
        stack = [output]
        while stack:
            for node in stack.pop().inputs:
                if id(node) not in seen and (across or not (node.op in LAYERS or _is_foreign(node))):
                    seen[id(node)] = node
                    stack.extend(node.inputs)
        places = {id(node): i for i, node in enumerate(self.view.nodes)}
        return sorted(seen.values(), key=lambda node: -places.get(id(node), 0))


def _is_foreign(node: gs.Node) -> bool:
    return not is_standard(node) and node.domain != "ai.onnx.ml" and not node.op.endswith(("NMS", "Suppression"))


def _tainted(nodes: Iterable[gs.Node], hazards: Iterable[gs.Node]) -> set[int]:
    """Return the ids of the tensors that depend on what the hazards make; ``nodes`` stand from the output backwards."""
    found = {id(t) for node in hazards for t in node.outputs}
    for node in reversed(list(nodes)):
        if any(id(t) in found for t in node.inputs):
            found.update(id(t) for t in node.outputs)
    return found


def _feeds(node: gs.Node, shaping: Iterable[gs.Node], nodes: Sequence[gs.Node]) -> bool:
    """Whether what a node makes says how long the output of another is."""
    tainted = _tainted(nodes, [node])
    return any(id(t) in tainted for each in shaping for i, t in enumerate(each.inputs) if i in SHAPED_BY[each.op])


# Tensors as outputs


def expose(graph: Graph, names: Iterable[str]) -> Graph:
    """Return a copy of the graph that has the tensors of these names as further outputs, so that passes keep them."""
    marked = duplicate(graph)
    view = View(marked)
    present = {str(t.name) for t in marked.outputs}
    tensors = {str(t.name): t for t in _made(marked)}
    for name in dict.fromkeys(names):
        if name in tensors and name not in present:
            tensor = tensors[name]
            tensor.dtype = tensor.dtype or view.dtype(tensor) or np.float32
            marked.outputs.append(tensor)
    return marked


def withdraw(graph: Graph, names: Iterable[str]) -> Graph:
    """Return a copy without these outputs, and without what only they needed."""
    gone = set(names)
    bare = duplicate(graph)
    bare.outputs = [t for t in bare.outputs if t.name not in gone]
    tidy(bare)
    return bare


def _made(graph: Graph) -> Iterator[gs.Tensor]:
    for node in graph.nodes:
        yield from node.outputs
