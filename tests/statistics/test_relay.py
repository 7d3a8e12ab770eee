from __future__ import annotations

import numpy as np
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.relay import Relay

FEEDS = [{"x": np.random.default_rng(i).normal(size=(3, 6)).astype(np.float32)} for i in range(3)]


def chain() -> Graph:
    """Four layers; the third reads the first too, across the second."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("MatMul", ["s", "w2"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w3"], ["y"]),
    ]
    weights = [constant(f"w{i}", rng.normal(size=(6, 6))) for i in range(4)]
    return decode(model(nodes, weights, {"x": [3, 6]}, {"y": [3, 6]}))


def change(graph: Graph, key: str) -> None:
    node = edit.find(graph, key)[0]
    node.inputs[1] = edit.constant(graph, f"{key}_new", np.eye(6, dtype=np.float32) * 2)


@pytest.mark.parametrize("held", [1 << 20, 0])
def test_runs_between_edits_see_all_of_them_wherever_they_start(held: int) -> None:
    graph = chain()
    relay = Relay(graph, FEEDS, held)
    runs: list[int] = []
    for wanted, key in ((["x"], "a"), (["a"], "b"), (["s", "a"], "c"), (["d"], "y")):
        found = list(relay.run(wanted, [key]))
        runs.append(sum(map(len, relay._known)))
        whole = graph.copy()
        whole.outputs = [t for t in whole.tensors().values() if t.name in wanted and t.name != "x"]
        for feed, values in zip(FEEDS, found, strict=True):
            expected = {**feed, **(Session(whole).run(feed) if whole.outputs else {})}
            for name in wanted:
                np.testing.assert_allclose(np.asarray(values[name]), np.asarray(expected[name]), rtol=1e-5)
        change(graph, key)

    assert runs == ([0, 3, 3, 3] if held else [0, 0, 0, 0])  # a; then s; then d
