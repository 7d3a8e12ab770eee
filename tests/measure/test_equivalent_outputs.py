"""Models that answer the same in another form get the same plan."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.contract.bench import Bench

Array = NDArray[np.float32]
CLASSES = 12
TAILS = ("plain", "LogSoftmax", "ArgMax", "times 1000", "plus 100", "TopK", "Greater")
PASSES = ("lowrank{max-error=0.05}", "prune{max-error=0.02 round-to=4}", "sparsify{ratio=0.6}", "int8")


def net(tail: str, seed: int, joined: bool | None = None) -> onnx.ModelProto:
    """Return a classifier whose answers end in a tail; with ``joined`` a second head is an output or is joined on."""
    rng = np.random.default_rng(seed)
    stored, nodes = [], []
    kinds: dict[str, tuple[int, list[str | int]]] = {}

    def constant(values: object, name: str, dtype: type = np.float32) -> str:
        stored.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def op(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def layer(x: str, rows: int, columns: int, name: str) -> str:
        weight = constant(rng.standard_normal((rows, columns)) / np.sqrt(rows), f"w_{name}")
        return op("Gemm", [x, weight, constant(rng.standard_normal(columns) * 0.1, f"b_{name}")], name)

    x = op("Tanh", [layer("x", 48, 192, "first")], "a")
    x = op("Tanh", [layer(x, 192, 192, "second")], "b")
    logits = layer(x, 192, CLASSES, "logits" if tail != "plain" or joined else "y")
    kinds["y"] = (TensorProto.FLOAT, ["N", CLASSES])
    if joined is not None:
        box = op("Mul", [layer(x, 192, 4, "box"), constant(640, "size")], "boxes")
        if joined:
            op("Concat", [logits, box], "y", axis=1)
            kinds["y"] = (TensorProto.FLOAT, ["N", CLASSES + 4])
        else:
            kinds["boxes"] = (TensorProto.FLOAT, ["N", 4])
    elif tail == "LogSoftmax":
        op(tail, [logits], "y", axis=-1)
    elif tail == "ArgMax":
        op(tail, [logits], "y", axis=-1, keepdims=0)
        kinds["y"] = (TensorProto.INT64, ["N"])
    elif tail == "times 1000":
        op("Mul", [logits, constant(1000, "factor")], "y")
    elif tail == "plus 100":
        op("Add", [logits, constant(100, "offset")], "y")
    elif tail == "Greater":
        op(tail, [logits, constant(0.5, "limit")], "y")
        kinds["y"] = (TensorProto.BOOL, ["N", CLASSES])
    elif tail == "TopK":
        nodes.append(helper.make_node("TopK", [logits, constant([3], "three", np.int64)], ["y", "places"]))
        kinds = {"y": (TensorProto.FLOAT, ["N", 3]), "places": (TensorProto.INT64, ["N", 3])}
    outputs = [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in kinds.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 48])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def feeds(seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((10, 48))
    return [{"x": (rng.standard_normal((16, 10)) @ mixing / 12).astype(np.float32)} for _ in range(24)]


def plan(model: onnx.ModelProto, pipeline: str, data: list[dict[str, Array]]) -> dict[str, str]:
    """Return what was done where; the last layer is called otherwise where something follows it."""
    with patch.object(Bench, "latency", lambda *_: 0.5):
        done = squeeze(model, pipeline, data).report.steps[-1].done
    return {("logits" if site.key == "y" else site.key): site.action for site in done}


@pytest.mark.parametrize("pipeline", PASSES)
@pytest.mark.parametrize("seed", range(2))
def test_the_form_of_an_answer_does_not_change_the_plan(pipeline: str, seed: int) -> None:
    data = feeds(seed)
    found = {tail: plan(net(tail, seed), pipeline, data) for tail in TAILS}

    assert found["plain"]
    assert {tail: each for tail, each in found.items() if each != found["plain"]} == {}


@pytest.mark.parametrize("pipeline", PASSES)
def test_outputs_in_one_tensor_or_in_two_get_the_same_plan(pipeline: str) -> None:
    data = feeds(5)
    joined, split = (plan(net("plain", 5, joined), pipeline, data) for joined in (True, False))

    assert joined
    assert joined == split
