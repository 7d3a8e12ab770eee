"""Which rule says how the indices along an axis follow each other, for every operator."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.operators import ELEMENTWISE, POOLS, REDUCTIONS, operator
from onnxsqueeze.techniques.pruning.axes.kept import (
    along,
    elementwise,
    layer_normalization,
    per_channel,
    reduction,
    spatial,
)
from onnxsqueeze.techniques.pruning.axes.mixed import convolution, matrix_product
from onnxsqueeze.techniques.pruning.axes.moved import concat, gather, slice_, split, squeeze, transpose
from onnxsqueeze.techniques.pruning.axes.place import Place, Rule
from onnxsqueeze.techniques.pruning.axes.reshaped import reshape
from onnxsqueeze.techniques.pruning.axes.sized import constant_of_shape, expand, pad, resize, shape_of, tile

__all__ = ["rule_of"]


def rule_of(node: gs.Node) -> Rule:
    """Return the rule of a node's operator."""
    return _RULES.get(operator(node), _unknown)


def _unknown(at: Place) -> str:
    return f"the operator '{operator(at.node)}' ({at.node.outputs[0].name}) is not known to keep channels apart"


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS, spatial),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(["Conv", "ConvTranspose"], convolution),
    **dict.fromkeys(["Gemm", "MatMul"], matrix_product),
    **dict.fromkeys(["BatchNormalization", "InstanceNormalization"], per_channel),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], layer_normalization),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "TopK"], along),
    **dict.fromkeys(["Reshape", "Flatten"], reshape),
    **dict.fromkeys(["Squeeze", "Unsqueeze"], squeeze),
    **dict.fromkeys(["Resize", "Upsample"], resize),
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Gather": gather,
    "Pad": pad,
    "Shape": shape_of,
    "Slice": slice_,
    "Split": split,
    "Tile": tile,
    "Transpose": transpose,
}
