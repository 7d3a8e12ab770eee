"""Operators that ONNX Runtime's own optimizer wrote, FusedMatMul, FusedGemm and FusedConv, as the layers they are.

ONNX Runtime fuses them again when it loads the model, so nothing becomes slower.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived, peek
from onnxsqueeze.techniques.canonical.scalars import fits

__all__ = ["is_fused", "take_apart"]

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip
"""Activations by what of their parameters are attributes."""


def is_fused(view: View, node: gs.Node) -> bool:
    """Return whether the node is one of the three, with a constant weight of its own that can be written as a layer."""
    if node.domain != "com.microsoft" or len(node.inputs) < 2 or view.dtype(node.inputs[1]) != np.float32:
        return False
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant) or view.constant(weight) is None or view.value(node.inputs[0]) is not None:
        return False
    if node.op == "FusedMatMul":
        alpha = float(node.attrs.get("alpha", 1.0))
        if any(node.attrs.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
            return False
        if len(weight.shape) != 2 or len(weight.outputs) > 1:
            return False
        values = peek(weight)
        return alpha == 1 or bool(
            np.isfinite(values).all() and fits(alpha, alpha * float(np.abs(values).max(initial=0)))
        )
    if node.op == "FusedConv" and len(node.inputs) > 3 and node.inputs[3].name:
        return False  # adds a tensor in front of the activation
    if node.op not in ("FusedConv", "FusedGemm"):
        return False
    activation = str(node.attrs.get("activation", ""))
    wanted = 2 if activation == "Clip" else len(_PARAMETERS.get(activation, ()))
    if activation == "Clip" and view.opset < 11:
        return False
    return activation in _PARAMETERS and len(_parameters(node)) >= wanted


def take_apart(graph: Graph, scope: Graph, node: gs.Node) -> None:
    """Put the layer, and its activation behind it, in the place of the fused operator."""
    if node.op == "FusedMatMul":
        _plain_product(graph, scope, node)
        return
    kind, given = str(node.attrs["activation"]), _parameters(node)
    attrs = {name: value for name, value in node.attrs.items() if not name.startswith("activation")}
    name = node.outputs[0].name
    inputs = [tensor for tensor in node.inputs if tensor.name]
    linear = edit.insert(graph, scope, node.op.removeprefix("Fused"), inputs, f"{name}_linear", attrs, before=node)
    limits = [edit.constant(graph, f"{name}_limit", np.float32(v)) for v in (given[:2] if kind == "Clip" else ())]
    edit.replace(graph, scope, node, kind, [linear, *limits], dict(zip(_PARAMETERS[kind], given, strict=False)))


def _plain_product(graph: Graph, scope: Graph, node: gs.Node) -> None:
    weight, alpha = node.inputs[1], np.float32(node.attrs.get("alpha", 1.0))
    transposed = bool(node.attrs.get("transB", 0))
    if transposed or alpha != 1:
        shape = tuple(weight.shape[::-1] if transposed else weight.shape)

        def values() -> np.ndarray:
            found = peek(weight).T if transposed else peek(weight)
            return np.ascontiguousarray(found * alpha)

        weight_of = edit.constant(graph, f"{weight.name}_plain", Derived(shape, np.dtype(np.float32), values))
        edit.replace(graph, scope, node, "MatMul", [node.inputs[0], weight_of])
    else:
        edit.replace(graph, scope, node, "MatMul", list(node.inputs[:2]))


def _parameters(node: gs.Node) -> list[float]:
    """Return the parameters of the activation: a list of FusedConv, single attributes of FusedGemm."""
    if node.op == "FusedConv":
        return [float(value) for value in node.attrs.get("activation_params") or ()]
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    return [float(node.attrs[name]) for name in names if name in node.attrs]
