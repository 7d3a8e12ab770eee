"""Small models of linear layers, and calibration feeds whose channels depend on each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[np.generic]


def conv_model(
    weight: NDArray[np.floating], size: Sequence[int], bias: NDArray[np.floating] | None = None, **attrs: object
) -> onnx.ModelProto:
    """Return a model of one Conv ``x -> y`` on inputs of the spatial ``size``."""
    constants = [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")]
    if bias is not None:
        constants.append(onnx.numpy_helper.from_array(bias.astype(np.float32), "b"))
    node = helper.make_node("Conv", ["x", "w", *(["b"] if bias is not None else [])], ["y"], **attrs)  # type: ignore[arg-type]
    channels = weight.shape[1] * int(attrs.get("group", 1))  # type: ignore[call-overload]
    return model(
        [node], constants, {"x": [1, channels, *size]}, {"y": ["n", "c", *(f"s{i}" for i in range(len(size)))]}
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[str | int]],
) -> onnx.ModelProto:
    """Return a model of float tensors at opset 17."""
    one = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    two = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    graph = helper.make_graph(list(nodes), "g", one, two, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def constant(name: str, values: NDArray[np.floating]) -> onnx.TensorProto:
    """Return a float32 initializer."""
    return onnx.numpy_helper.from_array(values.astype(np.float32), name)


def correlated(count: int, shape: Sequence[int], seed: int = 0) -> list[dict[str, Array]]:
    """Return feeds ``x`` of (1, C, ...) whose channels mix a third as many sources, neighbours in space alike."""
    rng = np.random.default_rng(seed)
    channels = shape[0]
    mixing = np.random.default_rng(99).normal(size=(channels, max(channels // 3, 1)))
    feeds: list[dict[str, Array]] = []
    for _ in range(count):
        sources = rng.normal(size=(mixing.shape[1], *shape[1:]))
        for axis in range(1, len(shape)):
            sources = sources + np.roll(sources, 1, axis)
        x = np.tensordot(mixing, sources, 1) + 0.1 * rng.normal(size=shape) + 0.5
        feeds.append({"x": x[None].astype(np.float32)})
    return feeds
