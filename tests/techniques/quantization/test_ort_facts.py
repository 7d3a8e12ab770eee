"""What ONNX Runtime's optimizer does with quantized graphs: each fact here is one that int8 relies on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from linear_models import constant
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze.errors import ModelError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.emit.dynamic import dynamic as quantize_input
from onnxsqueeze.techniques.quantization.grids import Affine, fixed

Floats = NDArray[np.floating]
RUNTIME = tuple(map(int, ort.__version__.split(".")[:2]))


class Net:
    """A model under construction: an input ``x``, nodes in order, and the last tensor as the output."""

    def __init__(self, shape: list[int], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def add(self, op: str, *inputs: str, **attrs: object) -> str:
        self.count += 1
        name = f"t{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))  # type: ignore[arg-type]
        return name

    def value(self, value: object) -> str:
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{self.count}"))
        return f"c{self.count}"

    def qdq(self, x: str, scale: float = 0.05, zero: int = 128, shape: tuple[int, ...] = ()) -> str:
        s, z = self.value(np.full(shape, scale, np.float32)), self.value(np.full(shape, zero, np.uint8))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, s, z), s, z)

    def weight(self, *shape: int, axis: int = 0, scale: float = 0.01) -> str:
        q = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.add(
            "DequantizeLinear", self.value(q), self.value(np.full(shape[axis], scale, np.float32)),
            self.value(np.zeros(shape[axis], np.int8)), axis=axis,
        )  # fmt: skip

    def bias(self, size: int, scale: float) -> str:
        q = self.rng.integers(-999, 1000, size).astype(np.int32)
        return self.add(
            "DequantizeLinear", self.value(q), self.value(np.full(size, scale, np.float32)),
            self.value(np.zeros(size, np.int32)), axis=0,
        )  # fmt: skip

    def run_time(self, x: str, *shape: int) -> str:
        """MatMul by an int8 weight of an input that is quantized at run time."""
        w, s = self.value(self.rng.integers(-127, 128, shape).astype(np.int8)), self.value(np.full(shape[1], 0.01, "f"))
        parts = [f"{x}_{part}" for part in ("quantized", "scale", "zero_point")]
        if not any(node.op_type == "DynamicQuantizeLinear" for node in self.nodes):
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], parts))
        product = self.add("Cast", self.add("MatMulInteger", parts[0], w, parts[2]), to=TensorProto.FLOAT)
        return self.add("Mul", product, self.add("Mul", parts[1], s))

    def proto(self, output: str, opset: int = 17) -> onnx.ModelProto:
        one = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        two = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [one], [two], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)

    def x(self) -> Floats:
        return np.random.default_rng(1).normal(size=self.shape).astype(np.float32)


def optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators of the graph as ONNX Runtime runs it, but for Transpose."""
    Session(model, optimized=folder / "optimized.onnx")
    graph = onnx.load(folder / "optimized.onnx").graph
    # integer kernels want channels last, so a Transpose comes before and after them
    return Counter(node.op_type for node in graph.node if node.op_type != "Transpose")


def outputs(net: Net, output: str) -> tuple[Floats, Floats]:
    """The answers with all of ONNX Runtime's optimizations, and with none; no sum saturates on any processor."""
    model, feed = net.proto(output), {"x": net.x()}
    one, two = (Session(model, optimize=level, exact_sums=True).run(feed)[output] for level in ("all", "none"))
    return np.asarray(one, np.float64), np.asarray(two, np.float64)


def steps_apart(net: Net, output: str, scale: float) -> float:
    one, two = outputs(net, output)
    assert np.ptp(two) > 10 * scale
    return float(np.abs(one - two).max() / scale)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_conv_with_a_bias_and_relu_becomes_one_integer_conv(group: int, tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    w, b = net.weight(8, 8 // group, 3, 3), net.bias(8, 0.05 * 0.01)
    y = net.qdq(net.add("Relu", net.add("Conv", net.qdq("x"), w, b, group=group)), 0.1, 0)

    assert optimized(net.proto(y), tmp_path) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert steps_apart(net, y, 0.1) < 1.01


def test_a_relu_is_fused_only_if_the_zero_point_behind_it_is_zero(tmp_path: Path) -> None:
    counts = []
    for zero in (0, 1):
        net = Net([1, 8, 6, 6])
        y = net.qdq(net.add("Relu", net.add("Conv", net.qdq("x"), net.weight(8, 8, 3, 3))), 0.1, zero)
        counts.append(optimized(net.proto(y), tmp_path)["QLinearConv"])

    assert counts == [1, 0]


def test_a_clip_is_fused_only_if_it_covers_the_range_behind_it(tmp_path: Path) -> None:
    counts = []
    for affine in (fixed(0, 6 * (1 - 1e-6)), fixed(0, 12)):
        net = Net([1, 8, 6, 6])
        limits = net.value(np.float32(0)), net.value(np.float32(6))
        conv = net.add("Conv", net.qdq("x"), net.weight(8, 8, 3, 3))
        y = net.qdq(net.add("Clip", conv, *limits), affine.scale, affine.zero_point)
        counts.append(optimized(net.proto(y), tmp_path)["QLinearConv"])

    assert counts == [1, 0]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("tail", ["", "Relu", "Clip"])
@pytest.mark.parametrize("apart", [False, True])
def test_float_weights_between_integers_are_quantized_unless_a_sum_stands_between(
    op: str, tail: str, apart: bool, tmp_path: Path
) -> None:
    net = Net([4, 8] if op == "Gemm" else [1, 8, 6, 6])
    weight = net.value(net.rng.normal(size=(8, 8, *(() if op == "Gemm" else (3, 3)))).astype(np.float32))
    y = net.add(op, net.qdq("x"), weight)
    if tail:
        bounds = [net.value(np.float32(each)) for each in (0, 6)] if tail == "Clip" else []
        y = net.add(tail, y, *bounds)
    ops = optimized(net.proto(net.qdq(net.add("Sum", y) if apart else y, 0.05, 0)), tmp_path)
    weights = [each for each in onnx.load(tmp_path / "optimized.onnx").graph.initializer if np.prod(each.dims) > 60]

    assert ops["QuantizeLinear"] + ops["QLinearConv"] + ops["QGemm"] == 2
    if apart:
        assert {each.data_type for each in weights} == {TensorProto.FLOAT}
    elif RUNTIME >= (1, 32):
        assert {each.data_type for each in weights} == {TensorProto.INT8}


def test_a_conv_without_a_quantized_output_stays_in_float(tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    y = net.add("Conv", net.qdq("x"), net.weight(8, 8, 3, 3))

    assert optimized(net.proto(y), tmp_path)["QLinearConv"] == 0


@pytest.mark.parametrize("opset", [13, 19, 21])
def test_a_conv_becomes_an_integer_conv_in_old_and_new_opsets(opset: int, tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    y = net.qdq(net.add("Conv", net.qdq("x"), net.weight(8, 8, 3, 3), net.bias(8, 0.05 * 0.01)), 0.1)

    assert optimized(net.proto(y, opset), tmp_path)["QLinearConv"] == 1


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ([20], [3], {"pads": [1, 1]}),
        ([5, 5, 5], [3, 3, 3], {}),
        ([9, 9], [3, 3], {"pads": [1, 1, 1, 1]}),
        ([9, 9], [3, 3], {"pads": [0, 1, 2, 1], "strides": [2, 2]}),
        ([9, 9], [3, 3], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
        ([9, 9], [3, 3], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ],
)
def test_an_integer_conv_pads_with_the_zero_point(
    shape: list[int], kernel: list[int], attrs: dict[str, object], group: int, tmp_path: Path
) -> None:
    net = Net([1, 8, *shape])
    w = net.weight(8, 8 // group, *kernel)
    y = net.qdq(net.add("Conv", net.qdq("x", zero=70), w, group=group, **attrs), 0.1)

    assert optimized(net.proto(y), tmp_path)["QLinearConv"] == 1
    assert steps_apart(net, y, 0.1) < 1.01


def test_a_conv_stays_in_float_if_anything_but_one_quantizelinear_reads_it(tmp_path: Path) -> None:
    """Why int8 lets all readers of a tensor, and the caller, have the dequantized one."""
    net = Net([1, 8, 6, 6])
    conv = net.add("Conv", net.qdq("x"), net.weight(8, 8, 1, 1))
    y = net.add("Add", net.qdq(conv, 0.1), net.add("Abs", conv))
    two_readers = optimized(net.proto(y), tmp_path)
    proto = net.proto(net.qdq(conv, 0.1))
    proto.graph.output.append(helper.make_tensor_value_info(conv, TensorProto.FLOAT, None))

    assert two_readers["QLinearConv"] == 0
    assert optimized(proto, tmp_path)["QLinearConv"] == 0


def test_a_normalization_between_a_conv_and_its_quantizelinear_keeps_the_conv_in_float(tmp_path: Path) -> None:
    """Why batch normalizations are folded first."""
    net = Net([1, 8, 6, 6])
    conv = net.add("Conv", net.qdq("x"), net.weight(8, 8, 1, 1))
    given = [net.value(np.full(8, value, np.float32)) for value in (1, 0.1, 0.2, 2)]
    y = net.qdq(net.add("BatchNormalization", conv, *given), 0.1)

    assert optimized(net.proto(y), tmp_path)["QLinearConv"] == 0


def test_an_int8_weight_of_a_float_conv_is_dequantized_in_every_run_unless_cast_and_mul_do_it(tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    dequantized = optimized(net.proto(net.add("Conv", "x", net.weight(8, 8, 3, 3))), tmp_path)
    left = []
    for dtype in (np.int8, np.int16):
        net = Net([1, 8, 6, 6])
        cast = net.add("Cast", net.value(np.ones((8, 72), dtype)), to=TensorProto.FLOAT)
        blocks = net.add("Mul", cast, net.value(np.full((8, 1), 0.01, np.float32)))
        y = net.add("Conv", "x", net.add("Reshape", blocks, net.value(np.array([8, 8, 3, 3]))))
        left.append(set(optimized(net.proto(y), tmp_path)) & {"Cast", "Mul", "Reshape"})

    assert dequantized["DequantizeLinear"] == 1
    assert left == [set(), set()]


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_gemm_is_fused_with_and_without_a_quantized_output(quantized: bool, transposed: bool, tmp_path: Path) -> None:
    net = Net([4, 16])
    shape, axis = ((32, 16), 0) if transposed else ((16, 32), 1)
    w, b = net.weight(*shape, axis=axis), net.bias(32, 0.05 * 0.01)
    y = net.add("Gemm", net.qdq("x"), w, b, transB=int(transposed))
    y = net.qdq(y, 0.1) if quantized else y
    ops = optimized(net.proto(y), tmp_path)

    assert ops == {"QuantizeLinear": 1, "QGemm": 1, **({"DequantizeLinear": 1} if quantized else {})}
    assert steps_apart(net, y, 0.1) < 1.01


@pytest.mark.parametrize("quantized", [True, False])
def test_a_matmul_with_an_int32_bias_behind_it_becomes_one_integer_gemm(quantized: bool, tmp_path: Path) -> None:
    net = Net([4, 16])
    product = net.add("MatMul", net.qdq("x"), net.weight(16, 32, axis=1))
    y = net.add("Add", product, net.bias(32, 0.05 * 0.01))
    y = net.qdq(y, 0.1) if quantized else y
    ops = optimized(net.proto(y), tmp_path)

    assert ops["QGemm"] == 1
    assert ops["MatMul"] + ops["Gemm"] + ops["FusedGemm"] == 0
    assert steps_apart(net, y, 0.1) < 1.01


def test_a_float_bias_behind_a_matmul_without_a_quantized_output_ends_in_float(tmp_path: Path) -> None:
    net = Net([4, 16])
    y = net.add("Add", net.add("MatMul", net.qdq("x"), net.weight(16, 32, axis=1)), net.value(np.ones(32, np.float32)))
    ops = optimized(net.proto(y), tmp_path)

    assert ops["QGemm"] + ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] == 0


def test_a_matmul_alone_is_fused_with_and_without_a_quantized_output(tmp_path: Path) -> None:
    net = Net([4, 16])
    plain = net.add("MatMul", net.qdq("x"), net.weight(16, 32, axis=1))
    ops = optimized(net.proto(plain), tmp_path)
    both = optimized(net.proto(net.qdq(plain)), tmp_path)

    assert ops["MatMulIntegerToFloat"] == 1
    assert both["QLinearMatMul"] == 1


@pytest.mark.skipif(RUNTIME < (1, 27), reason="fused up to ONNX Runtime 1.26")
def test_a_conv_bias_in_another_scale_than_the_product_is_not_fused(tmp_path: Path) -> None:
    counts = []
    for factor in (1.0, 3.0):
        net = Net([1, 8, 6, 6])
        conv = net.add("Conv", net.qdq("x"), net.weight(8, 8, 3, 3), net.bias(8, 0.05 * 0.01 * factor))
        counts.append(optimized(net.proto(net.qdq(conv, 0.1)), tmp_path)["QLinearConv"])

    assert counts == [1, 0]


def test_a_gemm_bias_in_another_scale_is_fused_with_wrong_numbers() -> None:
    """Why int8 writes the bias of a Gemm in the scale of the product, to the bit."""
    gaps = []
    for factor in (1.0, 3.0):
        net = Net([4, 16])
        y = net.add("Gemm", net.qdq("x"), net.weight(16, 32, axis=1), net.bias(32, 0.05 * 0.01 * factor))
        one, two = outputs(net, y)
        gaps.append(float(np.abs(one - two).max()))

    assert gaps[0] < 1e-3
    assert gaps[1] > 0.1


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_relu_behind_a_gemm_is_fused_into_it_with_a_zero_point_of_zero(op: str, tmp_path: Path) -> None:
    counts = []
    for zero in (0, 1):
        net = Net([4, 16])
        w, b = net.weight(16, 32, axis=1), net.bias(32, 0.05 * 0.01)
        x = net.qdq("x")
        y = net.add("Gemm", x, w, b) if op == "Gemm" else net.add("Add", net.add("MatMul", x, w), b)
        y = net.qdq(net.add("Relu", y), 0.1, zero)
        counts.append(optimized(net.proto(y), tmp_path)["QGemm"])

        assert steps_apart(net, y, 0.1) < 1.01
    assert counts == [1, 0]


def test_a_matmul_whose_only_reader_is_a_relu_without_a_quantizelinear_stays_in_float(tmp_path: Path) -> None:
    """Why int8 quantizes what comes out of a Relu behind a MatMul or Gemm even if nothing reads it as integers."""
    counts = []
    for op in ("LeakyRelu", "Relu"):
        net = Net([4, 16])
        y = net.add("Abs", net.add(op, net.add("MatMul", net.qdq("x"), net.weight(16, 32, axis=1))))
        counts.append(optimized(net.proto(y), tmp_path)["MatMulIntegerToFloat"])

    assert counts == [1, 0]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_scales_along_the_axis_that_is_summed_over_are_fused_with_wrong_numbers(op: str) -> None:
    """Why int8 writes the scales of a weight along its outputs."""
    gaps = []
    for axis in (1, 0):
        net = Net([4, 16])
        q = net.value(net.rng.integers(-127, 128, (16, 16)).astype(np.int8))
        scales, zeros = net.value(np.linspace(0.002, 0.02, 16, dtype=np.float32)), net.value(np.zeros(16, np.int8))
        y = net.add(op, net.qdq("x"), net.add("DequantizeLinear", q, scales, zeros, axis=axis))
        one, two = outputs(net, y)
        gaps.append(float(np.abs(one - two).max()))

    assert gaps[0] < 1e-3
    assert gaps[1] > 1


@pytest.mark.skipif(RUNTIME < (1, 28), reason="fused with alpha up to ONNX Runtime 1.27")
@pytest.mark.parametrize("attrs", [{"alpha": 2.0}, {"beta": 0.5}])
def test_a_gemm_with_a_factor_stays_in_float(attrs: dict[str, float], tmp_path: Path) -> None:
    net = Net([4, 16])
    y = net.qdq(net.add("Gemm", net.qdq("x"), net.weight(16, 32, axis=1), net.bias(32, 0.05 * 0.01), **attrs), 0.1)

    assert optimized(net.proto(y), tmp_path)["QGemm"] == 0


def test_scales_of_rank_zero_load_where_those_of_rank_one_need_not() -> None:
    net = Net([1, 8, 6, 6])
    scalar = net.proto(net.qdq(net.add("Add", net.qdq("x"), net.qdq("x")), 0.1))
    net = Net([1, 8, 6, 6])
    vector = net.proto(net.qdq(net.add("Add", net.qdq("x", shape=(1,)), net.qdq("x", shape=(1,))), 0.1, shape=(1,)))

    Session(scalar)
    if RUNTIME >= (1, 32):
        Session(vector)
    else:
        with pytest.raises(ModelError):
            Session(vector)


@pytest.mark.parametrize(
    ("op", "fused"),
    [
        ("Add", "QLinearAdd"),
        ("Mul", "QLinearMul"),
        ("Concat", "QLinearConcat"),
        ("AveragePool", "QLinearAveragePool"),
        ("GlobalAveragePool", "QLinearGlobalAveragePool"),
        ("Sigmoid", "QLinearSigmoid"),
        ("LeakyRelu", "QLinearLeakyRelu"),
    ],
)
def test_operators_with_a_scale_of_their_own_run_in_integers(op: str, fused: str, tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    given: dict[str, dict[str, object]] = {"Concat": {"axis": 1}, "AveragePool": {"kernel_shape": [2, 2]}}
    inputs = [net.qdq("x")]
    if op in ("Add", "Mul", "Concat"):
        inputs.append(net.qdq(net.add("Abs", "x"), 0.04, 100))
    scale, zero = (1 / 255, 0) if op == "Sigmoid" else (0.03, 120)
    y = net.qdq(net.add(op, *inputs, **given.get(op, {})), scale, zero)
    ops = optimized(net.proto(y), tmp_path)

    assert ops[fused] == 1
    assert ops[op] == 0
    assert steps_apart(net, y, scale) < 2.01


@pytest.mark.parametrize(("op", "fused"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul"), ("Concat", "QLinearConcat")])
@pytest.mark.parametrize("clip", [False, True])
def test_a_relu_behind_them_is_what_a_zero_point_of_zero_does(op: str, fused: str, clip: bool, tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    last = net.add(op, net.qdq("x"), net.qdq("x", 0.04, 100), **({"axis": 1} if op == "Concat" else {}))
    last = net.add("Clip", last, net.value(np.float32(0)), net.value(np.float32(6))) if clip else net.add("Relu", last)
    y = net.qdq(last, 0.02, 0)
    ops = optimized(net.proto(y), tmp_path)

    assert ops[fused] == 1
    assert ops["Relu"] + ops["Clip"] + ops[op] == 0
    assert steps_apart(net, y, 0.02) < 2.01


@pytest.mark.parametrize(
    "op", ["Reshape", "Transpose", "MaxPool", "Slice", "DepthToSpace", "Resize", "Squeeze", "Unsqueeze", "Flatten"]
)
def test_operators_that_keep_values_run_on_integers_only_in_one_scale(op: str, tmp_path: Path) -> None:
    float_ops = []
    for second in (0.05, 0.06):
        net = Net([1, 8, 6, 6])
        given: dict[str, dict[str, object]] = {
            "MaxPool": {"kernel_shape": [2, 2]},
            "DepthToSpace": {"blocksize": 2},
            "Transpose": {"perm": [0, 2, 3, 1]},
            "Resize": {"mode": "nearest"},
        }
        more: list[str] = []
        if op == "Reshape":
            more = [net.value(np.array([1, 2, 144]))]
        elif op == "Slice":
            more = [net.value(np.array([v])) for v in (0, 4, 1)]
        elif op in ("Squeeze", "Unsqueeze"):
            more = [net.value(np.array([0]))]
        elif op == "Resize":
            more = ["", net.value(np.array([1, 1, 2, 2], np.float32))]
        # a Conv in front shows whether the data stay integers from there to the operator
        conv = net.qdq(net.add("Conv", net.qdq("x"), net.weight(8, 8, 1, 1)))
        y = net.qdq(net.add(op, conv, *more, **given.get(op, {})), second)
        ops = optimized(net.proto(y), tmp_path)
        float_ops.append(ops["DequantizeLinear"] - 1)

    assert float_ops[0] == 0
    assert float_ops[1] > 0


@pytest.mark.parametrize("reverse", [False, True])
def test_a_product_of_channels_with_a_number_each_runs_in_integers(reverse: bool, tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    x = net.qdq("x")
    pair = [x, net.qdq(net.add("GlobalAveragePool", x), 0.01, 128)]
    y = net.qdq(net.add("Mul", *(reversed(pair) if reverse else pair)), 0.02, 120)

    assert optimized(net.proto(y), tmp_path)["QLinearMul"] == 1
    assert steps_apart(net, y, 0.02) < 1.01


@pytest.mark.parametrize("op", ["Add", "Concat"])
def test_one_float_input_keeps_an_operator_in_float(op: str, tmp_path: Path) -> None:
    fused = []
    for quantized in (True, False):
        net = Net([1, 8, 6, 6])
        other = net.add("Abs", "x")
        inputs = net.qdq("x"), net.qdq(other) if quantized else other
        y = net.qdq(net.add(op, *inputs, **({"axis": 1} if op == "Concat" else {})), 0.1)
        fused.append(optimized(net.proto(y), tmp_path)[f"QLinear{op}"])

    assert fused == [1, 0]


def test_a_float_constant_or_a_missing_quantizelinear_keeps_an_operator_in_float(tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    constant = net.qdq(net.add("Mul", net.qdq("x"), net.value(np.full((1, 8, 1, 1), 1.5, np.float32))), 0.1)
    with_constant = optimized(net.proto(constant), tmp_path)
    net = Net([1, 8, 6, 6])
    unquantized = optimized(net.proto(net.add("Add", net.qdq("x"), net.qdq(net.add("Abs", "x")))), tmp_path)

    assert with_constant["QLinearMul"] == 0
    assert unquantized["QLinearAdd"] == 0


@pytest.mark.parametrize(("second", "read", "left"), [(0.05, 2, 0), (0.06, 2, 1), (0.05, 1, 1)])
def test_a_split_runs_on_integers_in_one_scale_if_all_its_outputs_are_quantized(
    second: float, read: int, left: int, tmp_path: Path
) -> None:
    net = Net([1, 8, 6, 6])
    conv = net.qdq(net.add("Conv", net.qdq("x"), net.weight(8, 8, 1, 1)))
    sizes = net.value(np.array([3, 5]))
    net.nodes.append(helper.make_node("Split", [conv, sizes], ["s1", "s2"], axis=1))
    parts = [net.qdq(part, second) for part in ("s1", "s2")[:read]]
    y = net.qdq(net.add("Concat", *parts, axis=1), second)

    assert min(optimized(net.proto(y), tmp_path)["DequantizeLinear"] - 1, 1) == left


@pytest.mark.skipif(RUNTIME < (1, 27), reason="on integers up to ONNX Runtime 1.26")
def test_a_resize_that_interpolates_stays_in_float(tmp_path: Path) -> None:
    left = []
    for mode in ("nearest", "linear"):
        net = Net([1, 8, 6, 6])
        conv = net.qdq(net.add("Conv", net.qdq("x"), net.weight(8, 8, 1, 1)))
        y = net.qdq(net.add("Resize", conv, "", net.value(np.array([1, 1, 2, 2], np.float32)), mode=mode))
        left.append(optimized(net.proto(y), tmp_path)["DequantizeLinear"] - 1)

    assert left == [0, 1]


AVERAGE = {"kernel_shape": [3, 3], "strides": [2, 2]}


@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": [1] * 4}, {"pads": [1] * 4, "count_include_pad": 1}, {"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"},
        {"ceil_mode": 1, "pads": [1] * 4},
    ],
)  # fmt: skip
def test_an_average_of_integers_is_that_of_floats(attrs: dict[str, object], tmp_path: Path) -> None:
    net = Net([1, 8, 8, 8])
    y = net.qdq(net.add("AveragePool", net.qdq("x", zero=70), **{**AVERAGE, **attrs}), 0.03, 100)

    assert optimized(net.proto(y), tmp_path)["QLinearAveragePool"] == 1
    assert steps_apart(net, y, 0.03) < 1.01


@pytest.mark.skipif(RUNTIME < (1, 29), reason="the same numbers, also in float, up to ONNX Runtime 1.28")
def test_an_average_over_counted_padding_and_a_ceiling_has_wrong_numbers_in_integers() -> None:
    net = Net([1, 8, 8, 8])
    attrs = {**AVERAGE, "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1}
    y = net.qdq(net.add("AveragePool", net.qdq("x", zero=70), **attrs), 0.03, 100)

    assert steps_apart(net, y, 0.03) > 5


@pytest.mark.parametrize("dilation", [1, 2])
def test_an_average_with_dilations_between_integers_does_not_load(dilation: int) -> None:
    net = Net([1, 8, 8, 8])
    y = net.qdq(net.add("AveragePool", net.qdq("x"), kernel_shape=[2, 2], dilations=[dilation] * 2), 0.03, 100)
    proto = net.proto(y, 19)

    Session(proto, optimize="none")
    with pytest.raises(ModelError):
        Session(proto)


def test_two_pairs_in_a_row_become_one_with_other_numbers(tmp_path: Path) -> None:
    """Why int8 writes a HardSigmoid as a pair of two scales only as a gate: merged, it would not saturate."""
    net = Net([1, 8, 6, 6])
    y = net.qdq(net.qdq("x", 0.04, 128), 1 / 255, 0)

    assert optimized(net.proto(y), tmp_path) == {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert steps_apart(net, y, 1 / 255) > 2


def test_one_dequantized_tensor_may_serve_several_convs(tmp_path: Path) -> None:
    net = Net([1, 8, 6, 6])
    x = net.qdq("x")
    one, two = (net.qdq(net.add("Conv", x, net.weight(8, 8, 1, 1)), 0.1) for _ in range(2))
    y = net.qdq(net.add("Add", one, two), 0.1)
    ops = optimized(net.proto(y), tmp_path)

    assert ops == {"QuantizeLinear": 1, "QLinearConv": 2, "QLinearAdd": 1, "DequantizeLinear": 1}


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.5, 0.25)])
def test_a_gate_of_two_scales_survives_with_its_numbers(alpha: float, beta: float, tmp_path: Path) -> None:
    net = Net([1, 8, 12, 12])
    x = net.qdq("x", 0.04, 128)
    gate = net.add("HardSigmoid", x, alpha=alpha, beta=beta)
    y = net.qdq(net.add("Mul", x, gate), 0.03, 20)
    model = net.proto(y)
    graph = load(model)
    node = next(n for n in graph.nodes if n.op == "HardSigmoid")
    qdq.gate(graph, node, Affine(0.04, 128))
    edit.tidy(graph)
    ops = optimized(encode(graph), tmp_path)
    feed = {"x": net.x() * 4}
    exact = np.asarray(Session(model, optimize="none").run(feed)[y])
    one, two = (np.asarray(Session(graph, optimize=level).run(feed)[y]) for level in ("all", "none"))

    assert ops["QLinearMul"] == 1
    assert ops["HardSigmoid"] == ops["Mul"] == 0
    assert np.abs(one - two).max() < 1.01 * 0.03
    assert np.abs(two - exact).max() < 5.12 / 255 + 1.01 * 0.03


def body(nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def stored_nodes(name: str, shape: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["q"], [f"{name}_cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_cast", "s"], [f"{name}_blocks"]),
        helper.make_node("Reshape", [f"{name}_blocks", shape], [f"{name}_w"]),
        helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"]),
    ]


@pytest.mark.parametrize("in_body", [False, True])
def test_a_weight_stored_in_blocks_is_restored_when_the_model_is_loaded(in_body: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.integers(-127, 128, (32, 32)).astype(np.int8), "q"),
        constant("s", rng.random((32, 1))),
        numpy_helper.from_array(np.array([16, 64]), "shape"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    if in_body:
        branches = {f"{b}_branch": body(stored_nodes(b, "shape"), f"{b}_y") for b in ("then", "else")}
        constants.pop()
        nodes = [helper.make_node("If", ["yes"], ["y"], **branches)]
        inputs = [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])]
    else:
        nodes, inputs = stored_nodes("one", "shape"), []
        nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16]), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    Session(model, optimized=tmp_path / "optimized.onnx")
    text = onnx.load(tmp_path / "optimized.onnx")
    every = [*text.graph.node, *(n for node in text.graph.node for a in node.attribute for n in a.g.node)]

    assert {node.op_type for node in every} == ({"If", "MatMul"} if in_body else {"MatMul"})


def test_gathered_rows_of_int8_stay_int8_in_memory(tmp_path: Path) -> None:
    net = Net([3])
    q = net.value(np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8))
    s = net.value(np.ones((64, 1), np.float32))
    index = net.add("Cast", "x", to=TensorProto.INT64)
    rows = net.add("Cast", net.add("Gather", q, index), to=TensorProto.FLOAT)
    y = net.add("Mul", rows, net.add("Gather", s, index))
    optimized(net.proto(y), tmp_path)
    kinds = {tuple(t.dims): t.data_type for t in onnx.load(tmp_path / "optimized.onnx").graph.initializer}

    assert kinds[64, 32] == TensorProto.INT8


def test_layers_that_share_an_input_share_its_run_time_quantization(tmp_path: Path) -> None:
    net = Net([4, 64])
    y = net.add("Sub", net.run_time("x", 64, 32), net.add("Abs", net.run_time("x", 64, 32)))

    assert optimized(net.proto(y), tmp_path) == {
        "DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Abs": 1, "Sub": 1,
    }  # fmt: skip


def test_what_multiplies_a_run_time_quantized_product_leaves_it_one_node(tmp_path: Path) -> None:
    net = Net([4, 64])
    y = net.add("Mul", net.run_time("x", 64, 32), net.add("ReduceMax", "x", axes=[-1]))

    assert optimized(net.proto(y), tmp_path) == {"DynamicQuantizeMatMul": 1, "ReduceMax": 1, "Mul": 1}


def test_run_time_quantization_in_a_body_becomes_one_node(tmp_path: Path) -> None:
    net = Net([4, 64])
    y = net.run_time("x", 64, 32)
    branches = {f"{name}_branch": body(net.nodes, y) for name in ("then", "else")}
    net.nodes = [helper.make_node("If", ["yes"], ["y"], **branches)]
    proto = net.proto("y")
    proto.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    Session(proto, optimized=tmp_path / "optimized.onnx")
    choice = onnx.load(tmp_path / "optimized.onnx").graph.node[0]

    assert [[n.op_type for n in a.g.node] for a in choice.attribute] == [["DynamicQuantizeMatMul"]] * 2


def test_run_time_quantization_by_dequantizelinear_is_not_one_node_with_a_bias(tmp_path: Path) -> None:
    """Why int8 writes MatMulInteger, Cast and Mul."""
    net = Net([4, 64])
    parts = ["quantized", "scale", "zero_point"]
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], parts))
    product = net.add("MatMul", net.add("DequantizeLinear", *parts), net.weight(64, 32, axis=1))
    y = net.add("Add", product, net.value(np.ones(32, np.float32)))
    ops = optimized(net.proto(y), tmp_path)

    assert ops["DynamicQuantizeMatMul"] + ops["MatMulIntegerToFloat"] == 0


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [[4, 64], [2, 5, 64]])
def test_run_time_quantization_becomes_one_node(with_bias: bool, shape: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p" if with_bias else "y"])]
    constants = [constant("w", rng.normal(size=(64, 32)))]
    if with_bias:
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"]))
        constants.append(constant("b", rng.normal(size=32)))
    graph_proto = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    graph = load(helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    quantize_input(graph, graph, graph.nodes[0], None)
    edit.tidy(graph)

    assert optimized(encode(graph), tmp_path) == {"DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize(("op", "fused"), [("Add", 1), ("Sum", 0)])
def test_an_add_in_front_of_a_normalization_is_fused_with_it_and_a_sum_is_not(
    op: str, fused: int, tmp_path: Path
) -> None:
    net = Net([2, 5, 16])
    total = net.add(op, net.add("Relu", "x"), "x")
    y = net.add("LayerNormalization", total, net.value(np.ones(16, np.float32)), net.value(np.zeros(16, np.float32)))
    found = optimized(net.proto(y), tmp_path)

    assert found["SkipLayerNormalization"] == fused
    assert found["LayerNormalization"] == 1 - fused
