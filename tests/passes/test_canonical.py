from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_models import Array, constant, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.runtime.session import Session

Floats = NDArray[np.floating]
SIZE = 9


def ops(result: Result) -> list[str]:
    return [node.op for node in result.graph.nodes]


def sqnr(one: onnx.ModelProto, two: onnx.ModelProto, feed: dict[str, Array]) -> float:
    """The SQNR in dB of the worst output, both unoptimized, so that ONNX Runtime's own rewrites do not count."""
    expected, found = (Session(m, optimize="none").run(feed) for m in (one, two))
    worst = math.inf
    for name, value in expected.items():
        a, b = np.asarray(value, np.float64), np.asarray(found[name], np.float64)
        assert a.shape == b.shape
        gap = float(((a - b) ** 2).sum())
        worst = worst if gap == 0 else min(worst, 10 * math.log10(max(float((a**2).sum()), 1e-30) / gap))
    return worst


def canonical(proto: onnx.ModelProto) -> Result:
    return squeeze(proto, "canonical", validate="none")


def feed(proto: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    shape = [d.dim_value or 2 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": (3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)}


class Chain:
    """A chain of Convs, scales, shifts and activations drawn at random; ``tensors`` are its results in order."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = draw(st.sampled_from([1, 4, 6]))
        self.first = self.channels
        self.tensors = ["x"]

    def value(self, values: Floats) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(constant(name, values))
        return name

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))  # type: ignore[arg-type]
        self.tensors.append(name)
        return name

    def vector(self, zeros: bool) -> str:
        shape = self.draw(st.sampled_from([(), (1,), (self.channels, 1, 1), (1, self.channels, 1, 1), (1, 1, 1, 1)]))
        values = self.rng.uniform(0.3, 2, shape) * self.rng.choice([-1, 1], shape)
        if zeros and np.size(values) > 1 and self.draw(st.booleans()):
            values.reshape(-1)[0] = 0
        return self.value(np.asarray(values))

    def step(self, x: str) -> str:
        kind = self.draw(st.sampled_from(["conv", "conv", "scale", "scale", "divide", "shift", "subtract", "hardswish",
                                          "hardsigmoid", "relu"]))  # fmt: skip
        if kind == "conv":
            return self.conv(x)
        if kind in ("scale", "shift"):
            pair = [x, self.vector(zeros=True)]
            pair = pair[::-1] if self.draw(st.booleans()) else pair
            return self.node("Mul" if kind == "scale" else "Add", *pair)
        if kind == "divide":
            return self.node("Div", x, self.vector(zeros=False))
        if kind == "subtract":
            pair = [x, self.vector(zeros=True)]
            return self.node("Sub", *(pair[::-1] if self.draw(st.booleans()) else pair))
        if kind == "relu":
            return self.node("Relu", x)
        shifted = self.node("Add", x, self.value(np.float32(3)))
        gate = self.node("Clip", shifted, self.value(np.float32(0)), self.value(np.float32(6)))
        product = self.node("Mul", x, gate) if kind == "hardswish" else gate
        return self.node("Div", product, self.value(np.float32(6)))

    def conv(self, x: str) -> str:
        group = self.draw(st.sampled_from([1, 2 if self.channels % 2 == 0 else 1, self.channels]))
        outputs = self.draw(st.sampled_from([self.channels, 2 * group, 4 * group]))
        kernel = self.draw(st.sampled_from([1, 2, 3]))
        weight = self.value(self.rng.normal(size=(outputs, self.channels // group, kernel, kernel)))
        bias = [self.value(self.rng.normal(size=outputs))] if self.draw(st.booleans()) else []
        padding: dict[str, object] = self.draw(
            st.sampled_from(
                [{"pads": [0] * 4}, {"pads": [1, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}]
            )
        )
        strides = [2, 1] if self.draw(st.integers(0, 5)) == 0 else [1, 1]
        made = self.node("Conv", x, weight, *bias, group=group, strides=strides, **padding)
        self.channels = outputs
        return made

    def proto(self, extra: list[str]) -> onnx.ModelProto:
        outputs = dict.fromkeys([*extra, self.tensors[-1]])
        one = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, self.first, SIZE, SIZE])]
        two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", one, two, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    chain = Chain(draw)
    x, convs = "x", 0
    for _ in range(draw(st.integers(2, 7))):
        before, channels = x, chain.channels
        x = chain.step(x)
        convs += chain.nodes[-1].op_type == "Conv"
        if draw(st.integers(0, 6)) == 0 and before != "x":  # a second reader of the same tensor
            after, chain.channels = chain.channels, channels
            chain.conv(before)
            chain.channels = after
            chain.tensors.append(x)
        if convs >= 3:
            break
    inner = [t for t in chain.tensors[1:-1] if t != x]
    extra = [t for t in inner if any(t == n.output[0] for n in chain.nodes) and draw(st.integers(0, 5)) == 0]
    read = {name for node in chain.nodes for name in node.input}
    return chain.proto([*extra, *(n.output[0] for n in chain.nodes if n.output[0] not in read)])


@settings(max_examples=80, deadline=None)
@given(chains())
def test_a_random_chain_keeps_its_answers(proto: onnx.ModelProto) -> None:
    result = canonical(proto)

    assert sqnr(proto, result.model, feed(proto)) > 80


def conv_behind(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], **attrs: object) -> onnx.ModelProto:
    """Nodes from ``x`` to ``s`` on 4 channels, then a 3x3 Conv to ``y``."""
    weight = constant("w", np.random.default_rng(0).normal(size=(6, 4, 3, 3)))
    conv = helper.make_node("Conv", ["s", "w"], ["y"], **attrs)  # type: ignore[arg-type]
    return model([*nodes, conv], [weight, *constants], {"x": [1, 4, 8, 8]}, {"y": [1, 6, "h", "w"]})


def test_a_scale_and_a_shift_vanish_in_front_of_a_conv() -> None:
    constants = [constant("k", np.array(0.0039)), constant("t", np.random.default_rng(0).normal(size=(1, 4, 1, 1)))]
    nodes = [helper.make_node("Mul", ["x", "k"], ["m"]), helper.make_node("Add", ["m", "t"], ["s"])]
    proto = conv_behind(nodes, constants)
    result = canonical(proto)

    assert ops(result) == ["Conv"]
    assert sqnr(proto, result.model, feed(proto)) > 80


def test_in_front_of_padding_a_shift_stays_and_its_scale_goes_on() -> None:
    constants = [constant("k", np.array(0.5)), constant("t", np.array(0.7))]
    nodes = [helper.make_node("Mul", ["x", "k"], ["m"]), helper.make_node("Add", ["m", "t"], ["s"])]
    proto = conv_behind(nodes, constants, pads=[1, 1, 1, 1])
    result = canonical(proto)

    assert ops(result) == ["Add", "Conv"]
    assert sqnr(proto, result.model, feed(proto)) > 80


@pytest.mark.parametrize("last", ["Div", "Mul"])
def test_a_spelled_out_hardswish_becomes_a_gate_and_a_product(last: str) -> None:
    constants = [constant(name, np.array(v)) for name, v in (("three", 3), ("zero", 0), ("six", 6), ("sixth", 1 / 6))]
    nodes = [
        helper.make_node("Add", ["x", "three"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["m"]),
        helper.make_node(last, ["m", "six" if last == "Div" else "sixth"], ["y"]),
    ]
    proto = model(nodes, constants, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]})
    result = canonical(proto)

    assert ops(result) == ["HardSigmoid", "Mul"]
    assert sqnr(proto, result.model, feed(proto)) > 80


def test_a_hardswish_with_a_part_that_others_read_is_left_alone() -> None:
    constants = [constant(name, np.array(v)) for name, v in (("three", 3), ("zero", 0), ("six", 6))]
    nodes = [
        helper.make_node("Add", ["x", "three"], ["a"]),
        helper.make_node("Clip", ["a", "zero", "six"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["m"]),
        helper.make_node("Div", ["m", "six"], ["y"]),
    ]
    proto = model(nodes, constants, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8], "c": [1, 4, 8, 8]})

    assert ops(canonical(proto)) == ["Add", "Clip", "Mul", "Div"]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("shape", [(), (12,), (1, 12)])
def test_a_scale_goes_into_a_matrix_and_a_shift_where_there_is_a_bias(op: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    constants = [constant("k", rng.normal(size=shape)), constant("t", rng.normal(size=shape))]
    constants.append(constant("w", rng.normal(size=(20, 12) if op == "Gemm" else (12, 20))))
    nodes = [
        helper.make_node("Sub", ["x", "t"], ["s"]),
        helper.make_node("Mul", ["s", "k"], ["m"]),
        helper.make_node(op, ["m", "w"], ["y"], **({"transB": 1} if op == "Gemm" else {})),  # type: ignore[arg-type]
    ]
    proto = model(nodes, constants, {"x": [3, 12]}, {"y": [3, 20]})
    result = canonical(proto)

    assert ops(result) == (["Gemm"] if op == "Gemm" else ["Sub", "MatMul"])
    assert sqnr(proto, result.model, feed(proto)) > 80


def test_a_factor_that_spreads_one_channel_over_several_stays() -> None:
    constants = [
        constant("k", np.random.default_rng(0).normal(size=(1, 4, 1, 1))),
        constant("w", np.ones((6, 4, 3, 3))),
    ]
    nodes = [helper.make_node("Mul", ["x", "k"], ["s"]), helper.make_node("Conv", ["s", "w"], ["y"])]
    proto = model(nodes, constants, {"x": [1, 1, 8, 8]}, {"y": [1, 6, 6, 6]})
    result = canonical(proto)

    assert ops(result) == ["Mul", "Conv"]
    assert sqnr(proto, result.model, feed(proto)) == math.inf


def test_a_factor_that_adds_an_axis_stays() -> None:
    constants = [constant("k", np.full((1, 1, 12), 2.0)), constant("w", np.ones((12, 5)))]
    nodes = [helper.make_node("Mul", ["x", "k"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    proto = model(nodes, constants, {"x": [3, 12]}, {"y": [1, 3, 5]})

    assert ops(canonical(proto)) == ["Mul", "MatMul"]


def test_what_other_layers_or_outputs_read_too_stays() -> None:
    constants = [constant("k", np.array(2.0))]
    scaled = [helper.make_node("Mul", ["x", "k"], ["s"])]
    other = conv_behind([*scaled, helper.make_node("Relu", ["s"], ["r"])], constants)
    other.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    output = conv_behind(scaled, constants)
    output.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))

    assert "Mul" in ops(canonical(other))
    assert "Mul" in ops(canonical(output))


def test_a_weight_that_two_layers_share_is_not_scaled_for_one_of_them() -> None:
    constants = [constant("k", np.array(2.0)), constant("w", np.ones((4, 4, 1, 1)))]
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    proto = model(nodes, constants, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]})

    assert ops(canonical(proto)) == ["Mul", "Conv", "Conv", "Add"]


def test_a_division_by_zero_is_left_to_the_runtime() -> None:
    constants = [constant("k", np.array([1, 0, 2, 3]).reshape(4, 1, 1))]
    proto = conv_behind([helper.make_node("Div", ["x", "k"], ["s"])], constants)

    assert ops(canonical(proto)) == ["Div", "Conv"]


def attention(mask: float, rows: list[list[bool]]) -> onnx.ModelProto:
    """Softmax(x + Where(rows, 0, mask)) of x (2, 4, 5)."""
    constants = [
        constant("zero", np.zeros(())),
        constant("mask", np.array(mask)),
        onnx.numpy_helper.from_array(np.array(rows)[:, None], "rows"),
    ]
    nodes = [
        helper.make_node("Where", ["rows", "zero", "mask"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    return model(nodes, constants, {"x": [2, 4, 5]}, {"y": [2, 4, 5]})


@pytest.mark.parametrize("mask", [-1e4, -1e9, float(np.finfo(np.float32).min), -math.inf])
def test_masked_scores_are_bounded_and_weigh_nothing(mask: float) -> None:
    proto = attention(mask, [[True] * 5, [True, True, False, True, False]])
    result = canonical(proto)
    answer = Session(result.model).run({"x": 40 * feed(proto)["x"]})["y"]

    assert ops(result) == ["Add", "ReduceMax", "Sub", "Max", "Softmax"]
    assert sqnr(proto, result.model, {"x": 4 * feed(proto)["x"]}) > 120
    assert np.asarray(answer)[1, :, [2, 4]].max() < 1e-6


@pytest.mark.parametrize("centre", [0.0, -30.0, -60.0, -100.0, 80.0])
def test_masked_scores_weigh_nothing_wherever_the_others_lie(centre: float) -> None:
    proto = attention(-1e9, [[True] * 5, [True, True, False, True, False]])
    result = canonical(proto)

    assert sqnr(proto, result.model, {"x": feed(proto)["x"] + np.float32(centre)}) > 120


def test_rows_in_which_everything_is_masked_stay_as_they_are() -> None:
    proto = attention(-1e9, [[True] * 5, [False] * 5])
    result = canonical(proto)

    assert sqnr(proto, result.model, feed(proto)) > 120


def test_scores_without_a_mask_are_not_bounded() -> None:
    assert "Clip" not in ops(canonical(attention(-5.0, [[True] * 5, [False] * 5])))


@pytest.mark.parametrize(("opset", "axis"), [(13, 1), (17, -3), (18, 2), (21, 0)])
def test_a_softmax_over_an_inner_axis_is_spelled_out(opset: int, axis: int) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=axis)
    proto = model([node], [], {"x": [2, 3, 4, 5]}, {"y": [2, 3, 4, 5]})
    proto.opset_import[0].version = opset
    result = canonical(proto)

    assert ops(result) == ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]
    assert sqnr(proto, result.model, {"x": 30 * feed(proto)["x"]}) > 120


@pytest.mark.parametrize(("shape", "axis"), [([2, 3, 4], -1), ([2, 3, 4], 2), ([2, 3, 1, 1], 1)])
def test_a_softmax_over_the_last_axis_stays(shape: list[int], axis: int) -> None:
    proto = model([helper.make_node("Softmax", ["x"], ["y"], axis=axis)], [], {"x": shape}, {"y": list(shape)})

    assert ops(canonical(proto)) == ["Softmax"]


def test_the_addition_in_front_of_a_normalization_is_written_as_a_sum() -> None:
    constants = [constant("g", np.linspace(1, 2, 6)), constant("b", np.linspace(-1, 1, 6))]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "g", "b"], ["n"]),
        helper.make_node("Add", ["n", "s"], ["y"]),
    ]
    proto = model(nodes, constants, {"x": [2, 5, 6]}, {"y": [2, 5, 6]})
    result = canonical(proto)

    assert ops(result) == ["Relu", "Sum", "LayerNormalization", "Add"]
    assert sqnr(proto, result.model, feed(proto)) == math.inf


def test_the_addition_in_front_of_a_spelled_out_normalization_is_written_as_a_sum() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["s", "m"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    proto = model(nodes, [], {"x": [2, 5, 6]}, {"y": [2, 5, 6]})

    assert ops(canonical(proto)) == ["Relu", "Sum", "ReduceMean", "Sub", "Relu"]
