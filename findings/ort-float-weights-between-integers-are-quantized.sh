#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU provider: a Conv or Gemm whose weight is a plain float initializer, between DequantizeLinear and QuantizeLinear, is not computed in float,
# as the model says: the session quantizes the weight itself, to int8, and computes in integers. Who left the layer in float for its accuracy does not get it.
# A Sum of one behind the layer keeps it in float. With session.disable_quant_qdq=1 nothing of the model is computed in integers.
# Output seen: as written: QLinearConv, 12 dB to the unoptimized graph · with a Sum of one: Conv, 348 dB
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
PYTHONPATH=$work/site python3 - "$work/optimized.onnx" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
weight = rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
weight[:, 0] *= 50  # a wide channel, which takes the scale of the others
x = rng.normal(size=(1, 8, 12, 12)).astype(np.float32)
x[:, 0] /= 50
scalars = {"s": 4 / 128, "t": 0.5}


def answers(apart: bool, level: ort.GraphOptimizationLevel) -> tuple[np.ndarray, list[str]]:
    """Return the answers at a level of optimization, and the layers as they run."""
    pair = lambda a, b, scale: [helper.make_node("QuantizeLinear", [a, scale, "z"], [b + "q"]), helper.make_node("DequantizeLinear", [b + "q", scale, "z"], [b])]
    nodes = [*pair("x", "d", "s"), helper.make_node("Conv", ["d", "w"], ["c"])]
    nodes += [helper.make_node("Sum", ["c"], ["a"])] if apart else []
    nodes += pair("a" if apart else "c", "y", "t")
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.uint8(128), "z")]
    constants += [numpy_helper.from_array(np.float32(value), name) for name, value in scalars.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, k, k]) for n, k in (("x", 12), ("y", 10))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level, options.optimized_model_filepath = 4, level, sys.argv[1]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], [n.op_type for n in onnx.load(sys.argv[1]).graph.node if "Conv" in n.op_type]


found = []
for apart in (False, True):
    (all_, ops), (none, _) = (answers(apart, getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")) for level in ("ENABLE", "DISABLE"))
    found.append((ops[0], 10 * np.log10(np.sum(none.astype(float) ** 2) / max(np.sum((all_ - none).astype(float) ** 2), 1e-30))))
print(f"as written: {found[0][0]}, {found[0][1]:.0f} dB to the unoptimized graph · with a Sum of one: {found[1][0]}, {found[1][1]:.0f} dB")
assert found[0][0] == "QLinearConv" and found[1][0] == "Conv", "it has changed"
PYTHON
