#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU provider: a node that reads only initializers, such as the DequantizeLinear of a weight, runs right before its reader if it
# stands in front of all other nodes of the file, and at the very beginning if it stands, as sorted files have it, in front of its reader. In the usual
# order every weight of a model is there in float at once at each run; moved to the front, one at a time. Both orders are sorted and valid.
# Output seen: in front of its reader: D D D D M T M T M T M T · in front of all: D M T D M T D M T D M T
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
PYTHONPATH=$work/site python3 - "$work" <<'PYTHON'
import json
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

rng, layers = np.random.default_rng(0), 4
names = ["x", *(f"t{i}" for i in range(1, layers)), "y"]
restore = [helper.make_node("DequantizeLinear", [f"q{i}", "s"], [f"w{i}"]) for i in range(layers)]
compute = [
    [helper.make_node("MatMul", [names[i], f"w{i}"], [f"m{i}"]), helper.make_node("Tanh", [f"m{i}"], [names[i + 1]])] for i in range(layers)
]
constants = {f"q{i}": rng.integers(-127, 128, (1, 64, 64)).astype(np.int8) for i in range(layers)} | {"s": np.float32(0.01)}


def order(nodes: list[onnx.NodeProto]) -> str:
    values = [helper.make_tensor_value_info(name, T.FLOAT, [1, 4, 64]) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, sys.argv[1] + "/profile"
    session = ort.InferenceSession(model.SerializeToString(), options)
    session.run(None, {"x": np.zeros((1, 4, 64), np.float32)})
    events = json.load(open(session.end_profiling()))
    return " ".join(each["args"]["op_name"][0] for each in events if each["name"].endswith("_kernel_time"))


usual = order([node for i in range(layers) for node in (restore[i], *compute[i])])
first = order([*restore, *(node for pair in compute for node in pair)])
print(f"in front of its reader: {usual} · in front of all: {first}")
assert (usual, first) == ("D D D D M T M T M T M T", "D M T D M T D M T D M T"), "it is otherwise now"
PYTHON
