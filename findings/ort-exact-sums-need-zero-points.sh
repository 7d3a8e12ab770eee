#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU provider, x86-64 without VNNI: session.x64quantprecision=1, which keeps 8-bit sums from saturating there, gives every DequantizeLinear of
# int8 over 64 without a zero point one of no axes. With scales per channel or in blocks the session is created, and each run fails. With VNNI the option does nothing.
# Output seen: without a zero point: runs by default, fails with exact sums · with one: runs, runs
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
grep -qE ' (avx512_vnni|avx_vnni)' /proc/cpuinfo && { echo "this processor has VNNI: the option does nothing here"; exit 0; }
python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
PYTHONPATH=$work/site python3 - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


def runs(zero: bool, exact: bool) -> str:
    """Return whether a MatMul of a weight of int8 with a scale per column runs."""
    constants = {"q": np.full((64, 128), 127, np.int8), "s": np.full(128, 0.1, np.float32), "z": np.zeros(128, np.int8)}
    names = ["q", "s", "z"][: 3 if zero else 2]
    nodes = [helper.make_node("DequantizeLinear", names, ["w"], axis=1), helper.make_node("MatMul", ["x", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 64), ("y", 128)))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(constants[n], n) for n in names])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        session.run(None, {"x": np.ones((1, 64), np.float32)})
    except Exception as error:
        assert "zero_point" in str(error), error
        return "fails"
    return "runs"


found = [[runs(zero, exact) for exact in (False, True)] for zero in (False, True)]
print(f"without a zero point: {found[0][0]} by default, {found[0][1]} with exact sums · with one: {found[1][0]}, {found[1][1]}")
assert found == [["runs", "fails"], ["runs", "runs"]], "it has changed"
PYTHON
