from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from linear_models import constant, model
from onnx import TensorProto, helper

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.techniques.quantization.grids import fixed
from onnxsqueeze.techniques.quantization.layers import Layers, weight_slots


def keys(nodes: list[gs.Node]) -> list[str]:
    return [key_of(node) for node in nodes]


def layers(proto: onnx.ModelProto) -> Layers:
    return Layers(View(load(proto)))


def gemm(bias: tuple[int, ...] | None = None, rows: int = 40, **attrs: object) -> Layers:
    constants = [constant("w", np.ones((40, 40)))]
    if bias is not None:
        constants.append(constant("c", np.ones(bias)))
    node = helper.make_node("Gemm", ["x", "w", *(["c"] if bias is not None else [])], ["y"], **attrs)  # type: ignore[arg-type]
    return layers(model([node], constants, {"x": [rows, 40]}, {"y": [rows, 40]}))


@pytest.mark.parametrize("bias", [None, (40,), (1, 40), (1,), (1, 1)])
def test_a_gemm_with_a_bias_per_output_can_run_in_integers(bias: tuple[int, ...] | None) -> None:
    assert keys(gemm(bias).static) == ["y"]


@pytest.mark.parametrize("bias", [(40, 1), (40, 40)])
def test_a_gemm_with_a_bias_per_row_is_quantized_at_run_time(bias: tuple[int, ...]) -> None:
    found = gemm(bias)

    assert found.static == []
    assert keys(found.dynamic) == ["y"]


@pytest.mark.parametrize("attrs", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_with_factors_or_a_transposed_input_is_no_layer(attrs: dict[str, object]) -> None:
    found = gemm((40,), **attrs)  # type: ignore[arg-type]

    assert found.static == found.dynamic == []


@pytest.mark.parametrize(("shape", "form"), [([8, 40], "static"), ([2, 8, 40], "dynamic")])
def test_a_matmul_on_tokens_is_quantized_at_run_time(shape: list[int], form: str) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", np.ones((40, 40)))], {"x": shape}, {"y": ["n"]}
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = layers(proto)

    assert keys(getattr(found, form)) == ["y"]
    assert len(found.static) + len(found.dynamic) == 1


def test_a_small_matrix_is_not_worth_quantizing_at_run_time() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]

    assert layers(model(nodes, [constant("w", np.ones((8, 8)))], {"x": [2, 3, 8]}, {"y": [2, 3, 8]})).dynamic == []


@pytest.mark.parametrize(("bias", "tail"), [((40,), "y"), ((1,), "y"), ((40, 1), "m"), ((8, 40), "m")])
def test_the_add_of_a_vector_belongs_to_the_matmul_in_front_of_it(bias: tuple[int, ...], tail: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    proto = model(
        nodes, [constant("w", np.ones((40, 40))), constant("b", np.ones(bias))], {"x": [8, 40]}, {"y": [8, 40]}
    )
    if bias == (40, 1):
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 40
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 40
    found = layers(proto)

    assert key_of(found.tail(found.static[0])) == tail


def test_a_bias_that_spreads_one_column_over_many_is_no_part_of_the_layer() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    proto = model(nodes, [constant("w", np.ones((40, 1))), constant("b", np.ones(5))], {"x": [8, 40]}, {"y": [8, 5]})
    found = layers(proto)

    assert found.bias_add(found.static[0]) is None


def conv_clip(low: float, high: float) -> Layers:
    constants = [constant("w", np.ones((4, 4, 3, 3))), constant("lo", np.array(low)), constant("hi", np.array(high))]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Clip", ["c", "lo", "hi"], ["y"])]
    return layers(model(nodes, constants, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 6, 6]}))


@pytest.mark.parametrize(("low", "high", "tail"), [(0, 6, "y"), (-1, 1, "y"), (1, 6, "c"), (-6, 0, "c")])
def test_a_clip_around_zero_belongs_to_the_layer(low: float, high: float, tail: str) -> None:
    found = conv_clip(low, high)

    assert key_of(found.tail(found.static[0])) == tail


@pytest.mark.parametrize("high", [3.0, 6.0, 20.0])
def test_the_range_behind_a_clip_ends_within_it(high: float) -> None:
    found = conv_clip(0, 6)
    affine = found.within_clip(found.tail(found.static[0]), fixed(-0.1, high))

    assert affine.zero_point == 0
    assert affine.high <= 6
    assert affine.high == pytest.approx(min(high, 6), rel=0.05)


def around(op: str, **attrs: object) -> Layers:
    """A Conv with this operator behind it."""
    node = helper.make_node(op, ["c", *(["x"] if op in ("Add", "Mul") else [])], ["s"], **attrs)  # type: ignore[arg-type]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), node, helper.make_node("Mul", ["c", "s"], ["y"])]
    if op != "HardSigmoid":
        nodes[-1] = helper.make_node("Identity", ["s"], ["y"])
    proto = model(nodes, [constant("w", np.ones((4, 4, 1, 1)))], {"x": [1, 4, 8, 8]}, {"y": ["n"]})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return layers(proto)


def test_operators_around_layers_may_follow_them() -> None:
    assert keys(around("Add").carried) == ["s"]
    assert keys(around("MaxPool", kernel_shape=[2, 2]).carried) == ["s"]
    assert keys(around("Sigmoid").carried) == ["s"]
    assert around("Tanh").carried == []


@pytest.mark.parametrize(("op", "tail"), [("Add", "r"), ("MaxPool", "s")])
def test_a_relu_belongs_to_an_operator_with_a_scale_of_its_own(op: str, tail: str) -> None:
    graph = around(op, **({"kernel_shape": [2, 2]} if op == "MaxPool" else {})).view.graph
    graph.nodes[-1].op, graph.nodes[-1].outputs[0].name = "Relu", "r"
    found = Layers(View(graph))

    assert keys(found.carried) == ["s"]
    assert key_of(found.tail(found.carried[0])) == tail


def test_a_hardsigmoid_follows_only_as_a_gate_that_rises_from_0_to_1() -> None:
    assert "s" in keys(around("HardSigmoid").carried)
    assert "s" not in keys(around("HardSigmoid", alpha=-0.2).carried)
    assert "s" not in keys(around("HardSigmoid", beta=1.5).carried)


def test_nodes_that_are_not_wanted_are_neither_layers_nor_carried() -> None:
    graph = around("Add").view.graph
    found = Layers(View(graph), lambda node: node.op != "Add")

    assert keys(found.static) == ["c"]
    assert found.carried == []


def test_each_weight_that_stays_has_a_reason() -> None:
    half = onnx.numpy_helper.from_array(np.ones((40, 40), np.float16), "h")
    constants = [constant("w", np.ones((40, 40))), constant("s", np.ones((4, 4))), half]
    names = ["w", "s", "h", "v"]
    nodes = [helper.make_node("MatMul", [f"x{n}", n], [f"y{n}"]) for n in names]
    inputs = [
        helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT16 if n == "h" else TensorProto.FLOAT, [4, 4])
        for n in names
    ]
    inputs.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [40, 40]))
    inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [40, 40]))
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, None) for n in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = layers(proto)

    assert [found.refusal(node, 1) for node in found.view.nodes] == [
        "its weight is also an input, so the caller may override it",
        "its weight has only 16 elements",
        "its weight is float16",
        "its weight is computed at run time",
    ]


def test_the_weights_of_recurrent_layers_tables_and_transposed_convs_are_known() -> None:
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)
    proto = model(
        [lstm],
        [constant("w", np.ones((1, 32, 8))), constant("r", np.ones((1, 32, 8)))],
        {"x": [5, 1, 8]},
        {"y": [5, 1, 1, 8]},
    )
    odd = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [constant("w", np.ones((64, 64)))],
        {"x": [64, 64]},
        {"y": [64, 64]},
    )

    assert weight_slots(load(proto).nodes[0]) == (1, 2)
    assert weight_slots(load(odd).nodes[0]) == (1,)


@pytest.mark.parametrize(("op", "expected"), [("Sigmoid", 2 / (1 + np.exp(-2))), ("HardSigmoid", 2 * 0.9)])
def test_a_tensor_times_its_own_gate_is_known_by_what_it_becomes(op: str, expected: float) -> None:
    found = gated(op)
    gate = found.gate(found.static[0].outputs[0])

    assert gate is not None
    np.testing.assert_allclose(gate(np.array([2.0])), [expected])


def test_a_gated_tensor_that_is_read_elsewhere_too_is_not_taken_for_its_product() -> None:
    found = gated("Sigmoid", helper.make_node("Neg", ["t"], ["z"]))

    assert found.gate(found.static[0].outputs[0]) is None


def gated(op: str, *more: onnx.NodeProto) -> Layers:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["t"]),
        helper.make_node(op, ["t"], ["g"]),
        helper.make_node("Mul", ["g", "t"], ["y"]),
        *more,
    ]
    outputs: dict[str, list[str | int]] = {name: [1, 8, 4, 4] for name in ("y", *(n.output[0] for n in more))}
    return layers(model(nodes, [constant("w", np.ones((8, 8, 1, 1)))], {"x": [1, 8, 4, 4]}, outputs))
