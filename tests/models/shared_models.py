"""Models in which several nodes read one weight, each with feeds: what exporters write of tied and repeated layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from linear_models import Array, constant
from onnx import TensorProto, helper

__all__ = ["SHARED", "Model"]

WIDE = 96
Inputs = dict[str, tuple[int, list[int | str]]]
"""Element types and shapes by name."""


@dataclass(frozen=True)
class Model:
    """A model, its feeds, and how large a share of the file its weights in one int8 copy may be."""

    proto: onnx.ModelProto
    feeds: list[dict[str, Array]]
    share: float = 0.34


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    """Return a weight most of which lies in few directions."""
    rng = _rng()
    low = rng.normal(size=(shape[0], 8)) @ rng.normal(size=(8, *shape[1:])) / 3
    return constant(name, (low + 0.1 * rng.normal(size=shape)) / np.sqrt(shape[0]))


def _made(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    inputs: Inputs,
    output: tuple[str, list[int | str]],
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    made = [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])]
    graph = helper.make_graph(nodes, "g", given, made, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _floats(*shape: int, name: str = "x", count: int = 8) -> list[dict[str, Array]]:
    rng = _rng()
    return [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def recurrent() -> Model:
    """An unrolled cell: a Gemm in each step, all on one weight and one bias."""
    nodes, state = [], "h0"
    for step in range(6):
        nodes.append(helper.make_node("Gemm", [state, "w", "b"], [f"a{step}"]))
        nodes.append(helper.make_node("Tanh", [f"a{step}"], [f"t{step}"]))
        nodes.append(helper.make_node("Add", [f"t{step}", "h0"], [f"s{step}"]))
        state = f"s{step}"
    nodes[-1].output[0] = "y"
    weights = [_weight("w", WIDE, WIDE), constant("b", _rng().normal(size=WIDE))]
    return Model(
        _made(nodes, weights, {"h0": (TensorProto.FLOAT, [4, WIDE])}, ("y", [4, WIDE])), _floats(4, WIDE, name="h0")
    )


def tokens() -> Model:
    """The same two layers again and again on (batch, sequence, features), as in ALBERT."""
    nodes, x = [], "x"
    for step in range(4):
        nodes.append(helper.make_node("MatMul", [x, "up"], [f"u{step}"]))
        nodes.append(helper.make_node("Relu", [f"u{step}"], [f"r{step}"]))
        nodes.append(helper.make_node("MatMul", [f"r{step}", "down"], [f"d{step}"]))
        nodes.append(helper.make_node("Add", [x, f"d{step}"], [f"x{step}"]))
        x = f"x{step}"
    nodes[-1].output[0] = "y"
    weights = [_weight("up", WIDE, 2 * WIDE), _weight("down", 2 * WIDE, WIDE)]
    return Model(
        _made(nodes, weights, {"x": (TensorProto.FLOAT, [2, 6, WIDE])}, ("y", [2, 6, WIDE])), _floats(2, 6, WIDE)
    )


def both_ways() -> Model:
    """An autoencoder with one weight: as it is, and transposed by a node."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["r", "wt"], ["y"]),
    ]
    proto = _made(nodes, [_weight("w", WIDE, 2 * WIDE)], {"x": (TensorProto.FLOAT, [2, 6, WIDE])}, ("y", [2, 6, WIDE]))
    return Model(proto, _floats(2, 6, WIDE))


def reshaped() -> Model:
    """A weight that another node reshapes, for a second layer."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["w", "shape"], ["other"]),
        helper.make_node("MatMul", ["a", "other"], ["y"]),
    ]
    shape = onnx.numpy_helper.from_array(np.array([2 * WIDE, WIDE], np.int64), "shape")
    weights = [_weight("w", WIDE, 2 * WIDE), shape]
    proto = _made(nodes, weights, {"x": (TensorProto.FLOAT, [2, 6, WIDE])}, ("y", [2, 6, WIDE]))
    return Model(proto, _floats(2, 6, WIDE))


def branches() -> Model:
    """Two bodies of an If with the same layers."""

    def body(name: str, op: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], [f"{name}a"]),
            helper.make_node(op, [f"{name}a"], [f"{name}b"]),
            helper.make_node("MatMul", [f"{name}b", "w2"], [f"{name}y"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}y", TensorProto.FLOAT, None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=body("t", "Relu"), else_branch=body("e", "Tanh"))
    weights = [_weight("w1", WIDE, 2 * WIDE), _weight("w2", 2 * WIDE, WIDE)]
    inputs: Inputs = {"x": (TensorProto.FLOAT, [2, 6, WIDE]), "c": (TensorProto.BOOL, [])}
    proto = _made([node], weights, inputs, ("y", [2, 6, WIDE]))
    return Model(proto, [{**feed, "c": np.array(i % 2 == 0)} for i, feed in enumerate(_floats(2, 6, WIDE))])


def loop() -> Model:
    """A layer of the main graph that a Loop repeats."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s_in", "w"], ["m"]),
            helper.make_node("Tanh", ["m"], ["s_out"]),
            helper.make_node("Identity", ["c_in"], ["c_out"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c_in", TensorProto.BOOL, []),
            value("s_in", TensorProto.FLOAT, None),
        ],
        [value("c_out", TensorProto.BOOL, []), value("s_out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Loop", ["count", "", "a"], ["y"], body=body),
    ]
    count = onnx.numpy_helper.from_array(np.array(3, np.int64), "count")
    proto = _made(
        nodes, [_weight("w", WIDE, WIDE), count], {"x": (TensorProto.FLOAT, [2, 6, WIDE])}, ("y", [2, 6, WIDE])
    )
    return Model(proto, _floats(2, 6, WIDE))


def embedding(transposes: bool) -> Model:
    """A table that a Gather reads at the front and a MatMul, or a Gemm with transB, at the end."""
    words = 600
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["e", "r"], ["h"]),
    ]
    if transposes:
        nodes += [
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["h", "turned"], ["y"]),
        ]
    else:
        nodes += [helper.make_node("Gemm", ["h", "table"], ["y"], transB=1)]
    shape: list[int | str] = [2, 12] if transposes else [12]
    weights = [_weight("table", words, WIDE), _weight("w", WIDE, WIDE)]
    proto = _made(nodes, weights, {"ids": (TensorProto.INT64, shape)}, ("y", [*shape, words]))
    rng = _rng()
    return Model(proto, [{"ids": rng.integers(0, words, shape)} for _ in range(8)])  # type: ignore[arg-type]


def siamese() -> Model:
    """Two branches of the same convolutions on two inputs."""
    nodes = []
    for branch in "zx":
        for k, before in enumerate((branch, f"{branch}r0", f"{branch}r1")):
            nodes.append(helper.make_node("Conv", [before, f"w{k}", f"b{k}"], [f"{branch}c{k}"], pads=[1] * 4))
            nodes.append(helper.make_node("Relu", [f"{branch}c{k}"], [f"{branch}r{k}"]))
        nodes.append(helper.make_node("GlobalAveragePool", [f"{branch}r2"], [f"{branch}p"]))
    nodes.append(helper.make_node("Sub", ["zp", "xp"], ["y"]))
    rng, sizes = _rng(), [16, 48, 64, 64]
    weights = []
    for k in range(3):
        scale = np.sqrt(sizes[k] * 4.5)
        low = rng.normal(size=(sizes[k + 1], 8)) @ rng.normal(size=(8, sizes[k] * 9)) / 3
        noise = 0.1 * rng.normal(size=(sizes[k + 1], sizes[k] * 9))
        weights.append(constant(f"w{k}", (low + noise).reshape(sizes[k + 1], sizes[k], 3, 3) / scale))
        weights.append(constant(f"b{k}", rng.normal(size=sizes[k + 1]) / 4))
    inputs: Inputs = {name: (TensorProto.FLOAT, [1, 16, 12, 12]) for name in "zx"}
    proto = _made(nodes, weights, inputs, ("y", [1, 64, 1, 1]))
    feeds = [
        {**one, **other}
        for one, other in zip(_floats(1, 16, 12, 12, name="z"), _floats(1, 16, 12, 12)[::-1], strict=True)
    ]
    return Model(proto, feeds)


SHARED: dict[str, Callable[[], Model]] = {
    "recurrent": recurrent,
    "tokens": tokens,
    "both ways": both_ways,
    "reshaped": reshaped,
    "branches": branches,
    "loop": loop,
    "embedding": lambda: embedding(True),
    "embedding in a Gemm": lambda: embedding(False),
    "siamese": siamese,
}
"""The models by what shares a weight in them."""
