"""Weights of few bits in integer arithmetic: what ONNX Runtime restores are the integers that were said."""

from __future__ import annotations

import numpy as np
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit.few import few_bits


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize(("bits", "levels"), [(2, 0), (3, 0), (4, 0), (2, 4), (3, 5), (3, 8), (4, 16), (6, 64)])
def test_the_runtime_restores_the_integers(bits: int, levels: int, opset: int) -> None:
    rows = np.random.default_rng(bits).normal(size=(9, 31)).astype(np.float32)
    proto = model([helper.make_node("Mul", ["x", "w"], ["y"])], [constant("w", rows.T)], {"x": [1]}, {"y": [31, 9]})
    proto.opset_import[0].version, proto.ir_version = opset, 10
    graph = load(proto)
    (node,) = graph.nodes
    tensor, integers, scales = few_bits(
        graph, graph, "w", rows, bits, levels, None, 0.0, lambda q: np.ascontiguousarray(q.T), node
    )
    node.inputs[1] = edit.insert(graph, graph, "Cast", [tensor], "w_float", {"to": 1}, before=node)
    edit.tidy(graph)

    found = np.asarray(Session(graph).run({"x": np.ones(1, np.float32)})["y"])
    assert np.array_equal(found, integers.astype(np.float32))
    assert scales.shape == (9, 1)
    count = levels or 1 << bits
    assert len(np.unique(integers)) <= count
    error, power = (float(np.sum(each**2)) for each in (rows - scales * integers.T, rows))
    assert error < power * 2.4 / count**2
