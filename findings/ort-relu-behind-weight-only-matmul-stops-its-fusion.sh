#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU provider: weight-only int8, DequantizeLinear(weight) -> MatMul, is fused to com.microsoft.MatMulNBits, unless a Relu or Clip
# stands behind the MatMul and something behind that. Then the whole weight is dequantized at every run, about ten times as slow for one row. Gelu, Sigmoid or
# LeakyRelu in its place, or a Relu whose result is the model's output, let the fusion happen; so of a ReLU network only the last layers are fused.
# Output seen: Relu: DequantizeLinear 1, MatMulNBits 0 · Clip: 1, 0 · LeakyRelu: 0, 1 · Sigmoid: 0, 1 · Relu as the output: 0, 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
PYTHONPATH=$work/site python3 - "$work" <<'PYTHON'
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

rng = np.random.default_rng(0)
stored = rng.integers(-127, 128, (128, 128)).astype(np.int8)
constants = {"w": stored, "s": rng.uniform(0.01, 0.02, 128).astype(np.float32), "z": np.zeros(128, np.int8), "low": np.float32(0), "high": np.float32(6)}


def optimized(op: str, last: bool) -> tuple[int, int]:
    out = "y" if last else "r"
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1), helper.make_node("MatMul", ["x", "d"], ["m"]),
        helper.make_node(op, ["m", "low", "high"] if op == "Clip" else ["m"], [out]),
    ]
    nodes += [] if last else [helper.make_node("Neg", ["r"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, [1, 128])], [helper.make_tensor_value_info("y", T.FLOAT, [1, 128])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if op == "Clip" or k not in ("low", "high")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = sys.argv[1] + "/optimized.onnx"
    ort.InferenceSession(model.SerializeToString(), options)
    kinds = Counter(node.op_type for node in onnx.load(sys.argv[1] + "/optimized.onnx").graph.node)
    return kinds["DequantizeLinear"], kinds["MatMulNBits"]


found = {op: optimized(op, False) for op in ("Relu", "Clip", "LeakyRelu", "Sigmoid")} | {"Relu as the output": optimized("Relu", True)}
print(" · ".join(f"{op}: {left}, {fused}" for op, (left, fused) in found.items()))
assert found == {"Relu": (1, 0), "Clip": (1, 0), "LeakyRelu": (0, 1), "Sigmoid": (0, 1), "Relu as the output": (0, 1)}, "it is otherwise now"
PYTHON
