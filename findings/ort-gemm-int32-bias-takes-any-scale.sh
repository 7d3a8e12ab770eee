#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU provider: a Gemm between Q/DQ pairs whose int32 bias has a scale of its own is fused to QGemm, which reads the bias in the
# product scale (input scale x weight scale) whatever its DequantizeLinear says. The model is valid ONNX; its answers are wrong without a word.
# A Conv with the same bias is not fused from a factor of about 1.1 on, and is right. So an exporter that writes biases in another scale gets right Convs and wrong Gemms.
# Output seen: factor 1: Gemm 43.5 dB (QGemm 1) · factor 4: Gemm 3.2 dB (QGemm 1), unoptimized 43.5 dB · Conv with factor 4: QLinearConv 0, 43.5 dB
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
weight = (rng.integers(-60, 61, (64, 32))).astype(np.int8)
bias = rng.standard_normal(32) * 4
x = rng.uniform(0, 1, (8, 64)).astype(np.float32)
xs, ws = np.float32(1 / 255), np.float32(0.01)
expected = np.rint(x / xs) * xs @ (weight * float(ws)) + bias
ys = np.float32(np.abs(expected).max() / 127)


def build(op: str, factor: float) -> onnx.ModelProto:
    bs = np.float32(xs * ws * factor)
    constants = {
        "xs": xs, "xz": np.uint8(0), "ws": ws, "wz": np.int8(0), "ys": ys, "yz": np.uint8(128), "bs": bs,
        "w": weight if op == "Gemm" else weight.T.reshape(32, 64, 1, 1), "b": np.rint(bias / bs).astype(np.int32), "bz": np.int32(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]), helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]), helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"]),
        helper.make_node(op, ["xd", "wd", "bd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["yq"]), helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    more = [] if op == "Gemm" else [1, 1]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", T.FLOAT, [8, 64, *more])], [helper.make_tensor_value_info("y", T.FLOAT, [8, 32, *more])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(op: str, factor: float, optimize: bool = True) -> tuple[float, Counter[str]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = sys.argv[1] + "/optimized.onnx"
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(build(op, factor).SerializeToString(), options)
    (found,) = session.run(None, {"x": x if op == "Gemm" else x.reshape(8, 64, 1, 1)})
    kinds = Counter(node.op_type for node in onnx.load(sys.argv[1] + "/optimized.onnx").graph.node)
    return float(10 * np.log10((expected**2).sum() / ((found.reshape(8, 32) - expected) ** 2).sum())), kinds


good, fused = run("Gemm", 1)
bad, wrong = run("Gemm", 4)
plain, _ = run("Gemm", 4, optimize=False)
conv, kept = run("Conv", 4)
print(f"factor 1: Gemm {good:.1f} dB (QGemm {fused['QGemm']}) · factor 4: Gemm {bad:.1f} dB (QGemm {wrong['QGemm']}), unoptimized {plain:.1f} dB"
      f" · Conv with factor 4: QLinearConv {kept['QLinearConv']}, {conv:.1f} dB")
assert fused["QGemm"] == wrong["QGemm"] == 1 and kept["QLinearConv"] == 0, "other operators are fused"
assert good > 35 and plain > 35 and conv > 35 and bad < 10, "the answers are others"
PYTHON
