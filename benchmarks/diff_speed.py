"""Time the diff of a graph with itself after all names are changed: ``python benchmarks/diff_speed.py [NODES ...]``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxsqueeze import diff


def chain(nodes: int, prefix: str = "") -> onnx.ModelProto:
    """Return a residual chain of 1x1 convolutions with ``nodes`` nodes, every name with ``prefix``."""
    rng = np.random.default_rng(0)
    made, weights, x = [], [], "x"
    for i in range(nodes // 4):
        w, c, r, s, a = (f"{prefix}{letter}{i}" for letter in "wcrsa")
        weights.append(numpy_helper.from_array(rng.normal(size=(8, 8, 1, 1)).astype(np.float32), w))
        made.append(helper.make_node("Conv", [x, w], [c], name=f"{prefix}conv{i}"))
        made.append(helper.make_node("Relu", [c], [r], name=f"{prefix}relu{i}"))
        made.append(helper.make_node("Sigmoid", [r], [s], name=f"{prefix}sigmoid{i}"))
        made.append(helper.make_node("Add", [s, x], [a], name=f"{prefix}add{i}"))
        x = a
    made[-1].output[0] = "y"
    values = [helper.make_tensor_value_info(name, 1, [1, 8, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph(made, "chain", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Print nodes, seconds (passed, and of the processor) and the verdict for each size."""
    with tempfile.TemporaryDirectory() as folder:
        for nodes in [int(each) for each in sys.argv[1:]] or [1_000, 10_000, 50_000]:
            a, b = Path(folder, "a.onnx"), Path(folder, "b.onnx")
            onnx.save(chain(nodes), a)
            onnx.save(chain(nodes, "other/"), b)
            start, busy = time.perf_counter(), time.process_time()
            found = diff(a, b)
            passed, busy = time.perf_counter() - start, time.process_time() - busy
            print(f"{nodes:6} nodes {passed:6.2f} s ({busy:.2f} s CPU)  {found.verdict}", flush=True)


if __name__ == "__main__":
    main()
