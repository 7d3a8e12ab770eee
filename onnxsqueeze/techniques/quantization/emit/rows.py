"""Weights of few bits that stay so in memory: tables that are gathered, and layers that multiply few rows at a time.

Both read the layout of MatMulNBits: codes (N, K/b, b·bits/8), the integers of a block of b one after the other from the
lowest bits of its first byte on, stored plus ``2^(bits−1)``, and scales (N, K/b). So a table that is gathered can also
be the weight of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor
from onnxsqueeze.techniques.quantization.emit.nbits import TYPED, scale_of
from onnxsqueeze.techniques.quantization.fewbits import Fit

__all__ = ["DEQUANTIZED", "Rows", "codes", "fuses", "multiplied", "rows_of"]

Codes = NDArray[np.uint8]
DOMAIN = "com.microsoft"
DEQUANTIZED = (4, 8)
"""Bits that DequantizeLinear takes in blocks from opset 21 on."""


def codes(found: Fit) -> Codes:
    """Return the integers of a fit as MatMulNBits reads them; a block of them has to be whole bytes."""
    rows, count = found.scales.shape
    bits = found.grid.bits
    q = (found.q.astype(np.int16) + (1 << (bits - 1))).reshape(rows, count, -1, 8 // bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(q << (np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)), axis=-1))


@dataclass(frozen=True, eq=False)
class Rows:
    """A matrix (N, K) of few bits as constants: codes, and scales as steps and one number per row, or as they are."""

    hint: str
    found: Fit
    held: gs.Constant
    steps: gs.Constant
    tops: gs.Constant | None

    def scales(self, graph: Graph, scope: Graph, before: gs.Node) -> gs.Tensor:
        """Return all scales (N, K/b) in float, which nodes make that fold when the model is loaded."""
        x: gs.Tensor = self.steps
        if np.dtype(self.steps.dtype) != np.float32:
            to = {"to": onnx.TensorProto.FLOAT}
            x = edit.insert(graph, scope, "Cast", [x], f"{self.hint}_steps_float", to, before=before)
        if self.tops is None:
            return x
        return edit.insert(graph, scope, "Mul", [x, self.tops], f"{self.hint}_scale", before=before)

    def gathered(self, graph: Graph, scope: Graph, node: gs.Node, rank: int) -> None:
        """Replace a Gather of rows: it gathers codes and scales, and restores only those.

        ``rank`` is that of the indices.
        """
        indices, bits, out = node.inputs[1], self.found.grid.bits, str(node.outputs[0].name)
        width, count = self.found.q.shape[1], self.found.scales.shape[1]

        def take(tensor: gs.Constant, what: str) -> gs.Tensor:
            return edit.insert(graph, scope, "Gather", [tensor, indices], f"{out}_{what}", {"axis": 0}, before=node)

        def put(op: str, inputs: Sequence[gs.Tensor], what: str, **attrs: object) -> gs.Tensor:
            return edit.insert(graph, scope, op, inputs, f"{out}_{what}", attrs, before=node)

        def numbers(what: str, values: object, dtype: type) -> gs.Constant:
            return edit.constant(graph, f"{out}_{what}", np.asarray(values, dtype))

        last = numbers("last", [-1], np.int64)
        x = take(self.held, "codes")
        if bits != 8:
            places = np.arange(8 // bits) * bits
            x = put("Unsqueeze", [x, last], "bytes")
            x = put("BitShift", [x, numbers("left", 8 - bits - places, np.uint8)], "high", direction="LEFT")
            x = put("BitShift", [x, numbers("right", [8 - bits], np.uint8)], "low", direction="RIGHT")
        x = put("Cast", [x], "cast", to=onnx.TensorProto.FLOAT)
        x = put("Sub", [x, numbers("middle", 1 << (bits - 1), np.float32)], "signed")
        x = put("Reshape", [x, numbers("blocks_shape", [0] * rank + [count, width // count], np.int64)], "integers")
        scale = take(self.steps, "scale")
        if np.dtype(self.steps.dtype) != np.float32:
            scale = put("Cast", [scale], "scale_float", to=onnx.TensorProto.FLOAT)
        if self.tops is not None:
            scale = put("Mul", [scale, take(self.tops, "top")], "scales")
        x = put("Mul", [x, put("Unsqueeze", [scale, last], "scale_column")], "blocks")
        edit.replace(graph, scope, node, "Reshape", [x, numbers("shape", [0] * rank + [width], np.int64)])

    def multiplied(self, graph: Graph, scope: Graph, node: gs.Node, level: int) -> None:
        """Replace a MatMul or Gemm by MatMulNBits, which rounds its input as its accuracy level says."""
        (rows, width), count = self.found.q.shape, self.found.scales.shape[1]
        output, bias = node.outputs[0], bias_tensor(node)
        attrs = {"K": width, "N": rows, "bits": self.found.grid.bits, "block_size": width // count}
        inputs = [node.inputs[0], self.held, self.scales(graph, scope, node)]
        inside = isinstance(bias, gs.Constant) and tuple(bias.shape) == (rows,)
        if inside:
            inputs += [gs.Variable.empty(), gs.Variable.empty(), bias]
        hint = f"{output.name}_product"
        attrs["accuracy_level"] = level
        product = edit.insert(graph, scope, "MatMulNBits", inputs, hint, attrs, before=node, domain=DOMAIN)
        if bias is not None and not inside:
            edit.replace(graph, scope, node, "Add", [product, bias])
            return
        maker = product.inputs[0]
        edit.remove(scope, node)
        maker.outputs[0] = output


def rows_of(graph: Graph, hint: str, found: Fit) -> Rows:
    """Return the constants of a weight, which several nodes may read."""
    held = edit.constant(graph, f"{hint}_uint{found.grid.bits}", codes(found))
    if found.steps is not None and found.tops is not None:
        steps = edit.constant(graph, f"{hint}_steps", found.steps)
        return Rows(hint, found, held, steps, edit.constant(graph, f"{hint}_top", found.tops[:, None]))
    with np.errstate(over="ignore"):
        half = found.scales.astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), found.scales)
    return Rows(hint, found, held, edit.constant(graph, f"{hint}_scale", half if exact else found.scales), None)


def fuses(view: View, node: gs.Node) -> bool:
    """Return whether ONNX Runtime makes one operator of DequantizeLinear in blocks and the MatMul or Gemm behind it.

    It does not where a Relu or Clip is all that reads the result, also behind the Add of a bias; nor where something
    computed is added to a matrix, which makes a Gemm first. Blocks and int4 are of opset 21.
    """
    if view.opset < TYPED:
        return False
    reader = view.only_consumer(node.outputs[0])
    if reader is not None and reader.op == "Add":
        if any(view.value(t) is None for t in reader.inputs if t is not node.outputs[0]):
            shape = view.shape(node.inputs[0])
            return shape is not None and len(shape) > 2
        reader = view.only_consumer(reader.outputs[0])
    return reader is None or reader.op not in ("Relu", "Clip") or not is_standard(reader)


def multiplied(graph: Graph, scope: Graph, node: gs.Node, found: Fit, fused: bool) -> None:
    """Let a MatMul or Gemm multiply by a weight (K, N) of few bits as it lies in memory.

    As the target says: DequantizeLinear in blocks, where the runtime makes one operator of both (``fused``); else
    MatMulNBits.
    """
    rules, tensor = graph.target.decoding, node.inputs[1]
    if rules.form != "dequantize" or not fused or found.grid.bits not in DEQUANTIZED:
        rows_of(graph, str(tensor.name), found).multiplied(graph, scope, node, rules.level)
        return
    hint, (rows, count) = str(tensor.name), found.scales.shape
    q = np.ascontiguousarray(found.q.T)
    held = edit.constant(graph, f"{hint}_int{found.grid.bits}", q if found.grid.bits == 8 else q.astype(ml_dtypes.int4))
    scale = scale_of(graph, scope, hint, found, (count, rows), node)
    attrs = {"axis": 0, "block_size": found.q.shape[1] // count}
    node.inputs[1] = edit.insert(graph, scope, "DequantizeLinear", [held, scale], f"{hint}_float", attrs, before=node)
    node.attrs.pop("transB", None)
