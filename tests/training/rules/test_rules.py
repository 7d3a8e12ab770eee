"""Every rule against central differences in float64, on generated shapes, by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from float64_kernels import OPERATORS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from operator_cases import MAKERS, Case, Draw, Searched

from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.gradient import with_gradients
from onnxsqueeze.training.known import measured
from onnxsqueeze.training.rules.table import RULES
from onnxsqueeze.training.tape import Unsupported

Array = NDArray[Any]
DIRECTIONS = 3
STEP = 1e-6
WORST = 1e-5


def loss_of(case: Case, rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of ``Σ r·y`` over all outputs, with random r, and the feed of what it is differentiated by."""
    names: list[str] = ["" if x is None else f"x{i}" for i, x in enumerate(case.inputs)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    nodes = [helper.make_node(case.op, names, outputs, **case.attrs)]
    feed: dict[str, Array] = {names[i]: np.asarray(case.inputs[i]) for i in case.by}
    fixed = {
        n: x for i, (n, x) in enumerate(zip(names, case.inputs, strict=True)) if x is not None and i not in case.by
    }
    forward = model_of(nodes, feed, fixed, outputs)
    answers = run(forward, feed)
    weights = [rng.standard_normal(np.shape(y)) for y in answers]
    parts = []
    for i, (name, weight) in enumerate(zip(outputs, weights, strict=True)):
        fixed[f"r{i}"] = np.asarray(weight)
        nodes.append(helper.make_node("Mul", [name, f"r{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("ReduceSum", [f"m{i}"], [f"s{i}"], keepdims=0))
        parts.append(f"s{i}")
    nodes.append(helper.make_node("Sum", parts, ["loss"]))
    return model_of(nodes, feed, fixed, ["loss"]), feed


def check(case: Case, rng: np.random.Generator) -> None:
    whole, feed = loss_of(case, rng)
    grads = run(with_gradients(whole, measured(whole, feed, run), "loss", list(feed)), feed)[1:]

    for name, grad in zip(feed, grads, strict=True):
        assert grad.shape == feed[name].shape
        for _ in range(DIRECTIONS):
            way = rng.standard_normal(feed[name].shape)
            ahead, behind = (run(whole, {**feed, name: feed[name] + h * way})[0] for h in (STEP, -STEP))
            expected, found = float(ahead - behind) / (2 * STEP), float((grad * way).sum())
            scale = max(abs(expected), float(np.sqrt((grad**2).sum())), 1e-3)
            assert abs(expected - found) <= WORST * scale


def model_of(
    nodes: Any, feed: Mapping[str, Array], fixed: Mapping[str, Array], outputs: Sequence[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feed.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(x, n) for n, x in fixed.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Any]:
    return list(ReferenceEvaluator(model, new_ops=OPERATORS).run(None, dict(feed)))


def single(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float32."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in small.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in small.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = onnx.TensorProto.FLOAT
    return small


def in_runtime(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Any]:
    return list(Session(model, threads=1).run(feed).values())


@pytest.mark.parametrize("op", sorted(set(MAKERS) - {"RMSNormalization"}))
def test_onnx_runtime_gives_the_same_gradient_in_float32(op: str) -> None:
    """Opset 23 has RMSNormalization, which not every ONNX Runtime runs."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        case = MAKERS[op](Draw(rng))
        model, feed = loss_of(case, np.random.default_rng(seed))
        small, small_feed = single(model), {name: x.astype(np.float32) for name, x in feed.items()}
        expected = run(with_gradients(model, measured(model, feed, run), "loss", list(feed)), feed)
        step = with_gradients(small, measured(small, small_feed, in_runtime), "loss", list(feed))
        found = in_runtime(step, small_feed)

        for one, other in zip(expected, found, strict=True):
            assert other.dtype == np.float32
            assert np.abs(one - other).max(initial=0) <= 1e-4 * (1 + np.abs(one).max(initial=0))


@pytest.mark.parametrize("op", MAKERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_gradient_is_the_central_difference(op: str, data: st.DataObject, seed: int) -> None:
    draw = Searched(data, seed)
    check(MAKERS[op](draw), draw.rng)


def test_every_rule_is_held_against_differences() -> None:
    rounding = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}
    assert set(RULES) - set(MAKERS) == rounding, "these are of integers, and have no differences"


def test_an_operator_without_a_rule_is_named() -> None:
    case = Case("Det", [np.eye(3)])
    model, feed = loss_of(case, np.random.default_rng(0))

    with pytest.raises(Unsupported, match="Det"):
        with_gradients(model, measured(model, feed, run), "loss", list(feed))


def test_rounding_hands_gradients_straight_through_where_nothing_is_clipped() -> None:
    x = np.array([0.3, -0.7, 100.0, -100.0], np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["loss"], keepdims=0),
    ]
    fixed = {"s": np.float32(0.25), "z": np.int8(0)}
    model = model_of(nodes, {"x": x}, {name: np.asarray(value) for name, value in fixed.items()}, ["loss"])
    grad = run(with_gradients(model, measured(model, {"x": x}, run), "loss", ["x"]), {"x": x})[1]

    assert grad.tolist() == [1, 1, 0, 0]


def test_a_product_of_integers_has_the_gradients_of_the_floats_that_they_stand_for() -> None:
    """The weight is fed as floats that are cast to integers; the input is quantized by its range."""
    rng = np.random.default_rng(0)
    feed = {
        "x": rng.standard_normal((2, 3, 16)).astype(np.float32),
        "v": rng.integers(-8, 8, (16, 5)).astype(np.float32),
        "t": rng.standard_normal((2, 3, 5)).astype(np.float32),
    }
    fixed = {"s": np.float32(0.25) * np.ones(5, np.float32)}
    loss = [
        helper.make_node("Mul", ["y", "t"], ["each"]),
        helper.make_node("ReduceSum", ["each"], ["loss"], keepdims=0),
    ]
    integers = [
        helper.make_node("Cast", ["v"], ["q"], to=onnx.TensorProto.INT8),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "sa", "za"]),
        helper.make_node("MatMulInteger", ["a", "q", "za"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["sa", "s"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["y"]),
    ]
    floats = [helper.make_node("Mul", ["v", "s"], ["W"]), helper.make_node("MatMul", ["x", "W"], ["y"])]
    found, expected = (
        in_runtime(with_gradients(model, measured(model, feed, in_runtime), "loss", ["x", "v"]), feed)
        for model in (model_of([*nodes, *loss], feed, fixed, ["loss"]) for nodes in (integers, floats))
    )

    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 0.02 * np.abs(other).max()
