"""Chains of operators that ONNX Runtime computes in one kernel, and that folding their end away would leave in pieces.

``x·½·(1 + erf(x/√2))`` becomes Gelu and ``γ·(x − μ)/√(σ² + ε) + β`` LayerNormalization, also without μ and β, only if
the scale at the end is there (ONNX Runtime 1.32). In pieces a Gelu takes twice its time, a normalization six kernels.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View

__all__ = ["ends_chain"]


def ends_chain(view: View, node: gs.Node, slot: int) -> bool:
    """Return whether the scale or shift of the input at ``slot`` by a constant is the last operator of such a chain."""
    before = view.producer(node.inputs[slot])
    if before is None or node.op not in ("Mul", "Add"):
        return False
    if node.op == "Add":
        return before.op == "Mul" and any(_is_normal(view, tensor) for tensor in before.inputs)
    return _is_normal(view, node.inputs[slot]) or (before.op == "Mul" and any(_is_bell(view, t) for t in before.inputs))


def _is_normal(view: View, tensor: gs.Tensor) -> bool:
    """Return whether something over a root of a mean makes the tensor."""
    ratio = view.producer(tensor)
    root = view.producer(ratio.inputs[1]) if ratio is not None and ratio.op == "Div" else None
    shifted = view.producer(root.inputs[0]) if root is not None and root.op == "Sqrt" else None
    makers = [view.producer(t) for t in shifted.inputs] if shifted is not None and shifted.op == "Add" else []
    return any(maker is not None and maker.op == "ReduceMean" for maker in makers)


def _is_bell(view: View, tensor: gs.Tensor) -> bool:
    """Return whether 1 + erf(x) makes the tensor."""
    shifted = view.producer(tensor)
    makers = [view.producer(t) for t in shifted.inputs] if shifted is not None and shifted.op == "Add" else []
    return any(maker is not None and maker.op == "Erf" for maker in makers)
