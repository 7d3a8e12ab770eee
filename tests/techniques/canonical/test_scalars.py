"""A constant of one element may add axes, and float32 does not hold every quotient: such places stay, each alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze

WEIGHT = np.random.default_rng(0).standard_normal((4, 3, 3, 3))


def model_of(nodes: list[onnx.NodeProto], x: list[int | str | None], **constants: object) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    given, made = helper.make_tensor_value_info("x", 1, x), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", [given], [made], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: list[int]) -> onnx.NodeProto:
    made: onnx.NodeProto = helper.make_node(op, inputs.split(), [output], **attributes)  # type: ignore[arg-type]
    return made


def hard(shift: object, scale: object, x: list[int | str | None]) -> onnx.ModelProto:
    nodes = [node("Add", "x b", "a"), node("Clip", "a low high", "k"), node("Mul", "k s", "y")]
    return model_of(nodes, x, b=shift, low=0, high=6, s=scale)


def exchange(scale: object, shift: float, x: list[int | str | None]) -> onnx.ModelProto:
    nodes = [node("Mul", "x k", "q"), node("Add", "q s", "p"), node("Conv", "p w", "y", pads=[1, 1, 1, 1])]
    return model_of(nodes, x, w=WEIGHT, s=shift, k=scale)


def forward(scale: float, weight: float) -> onnx.ModelProto:
    return model_of([node("Mul", "x k", "p"), node("Conv", "p w", "y")], ["n", 3, 8, 8], w=WEIGHT * weight, k=scale)


IMAGE = np.ones((1, 3, 8, 8))
STAY = {
    "a shift of three axes": (hard([[[3]]], 1 / 6, ["n"]), np.arange(5.0)),
    "a scale of two axes": (hard(3, [[1 / 6]], ["n"]), np.arange(5.0)),
    "a scale of four axes": (exchange([[[[2]]]], 1, [3, 8, 8]), np.ones((3, 8, 8))),
    "t/s is over float32": (exchange(1e-30, 3e10, ["n", 3, 8, 8]), IMAGE),
    "W·s is over float32": (forward(1e30, 1e10), IMAGE * 1e-30),
    "W·s is under float32": (forward(1e-30, 1e-10), IMAGE * 1e30),
}
GO = {
    "hard": (hard(3, 1 / 6, ["n"]), np.arange(5.0)),
    "one axis": (hard([3], [1 / 6], ["n"]), np.arange(5.0)),
    "exchange": (exchange(2, 1, ["n", 3, 8, 8]), IMAGE),
    "forward": (forward(2, 1), IMAGE),
}


@pytest.mark.parametrize("name", [*STAY, *GO])
def test_every_place_keeps_shape_and_answers_also_where_nothing_is_checked(name: str) -> None:
    model, x = {**STAY, **GO}[name]
    feed = {"x": x.astype(np.float32)}

    result = squeeze(model, "canonical", validate="none")

    one, other = (
        np.asarray(ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0])
        for m in (model, result.model)
    )
    assert bool(result.report.steps[-1].done) == (name in GO)
    assert one.shape == other.shape
    assert np.allclose(one, other, rtol=1e-4, atol=1e-5)
