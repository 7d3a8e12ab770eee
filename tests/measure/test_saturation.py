"""What can saturate is named, and what is not named cannot: on processors without VNNI the same sums come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxsqueeze import inspect_model, squeeze
from onnxsqueeze.analysis.diff.diff import diff
from onnxsqueeze.cli.main import main
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.measure.saturation import saturating, warning
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.targets.profiles import find

MODELS = Path(__file__).parents[2] / "models"
Weight = NDArray[Any]


def qdq(op: str, weight: Weight, x: list[int], activation: int = TensorProto.UINT8, **attrs: Any) -> onnx.ModelProto:
    """Return a layer between Q/DQ pairs whose inputs from 0 to 1 reach the largest integer."""
    kind = numpy_helper.from_array(weight).data_type
    reach = 0.01 * float(weight.max()) * (weight.size / 8 if op != "Conv" else weight[0].size)
    zero = 0 if activation == TensorProto.UINT8 else -128
    scalars = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [1 / 255]), helper.make_tensor("z", activation, [], [zero]),
        helper.make_tensor("ws", TensorProto.FLOAT, [], [0.01]), helper.make_tensor("wz", kind, [], [0]),
        helper.make_tensor("ys", TensorProto.FLOAT, [], [reach / 200]), numpy_helper.from_array(weight, "w"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node(op, ["xd", "wd"], ["layer"], **attrs),
        helper.make_node("QuantizeLinear", ["layer", "ys", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "z"], ["y"]),
    ]
    return model(nodes, scalars, x, TensorProto.FLOAT)


def integer(op: str, weight: Weight, x: list[int]) -> onnx.ModelProto:
    return model(
        [helper.make_node(op, ["x", "w"], ["y"])], [numpy_helper.from_array(weight, "w")], x, TensorProto.UINT8
    )


def model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], x: list[int], kind: int) -> onnx.ModelProto:
    out = TensorProto.FLOAT if kind == TensorProto.FLOAT else TensorProto.INT32
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", out, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def full(*shape: int, value: int = 127, dtype: type = np.int8) -> Weight:
    return np.full(shape, value, dtype)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], bool]] = {
    "matmul": (lambda: qdq("MatMul", full(64, 8), [2, 64]), True),
    "matmul of signed activations": (lambda: qdq("MatMul", full(64, 8), [2, 64], TensorProto.INT8), True),
    "matmul of weights at the limit": (lambda: qdq("MatMul", full(64, 8, value=64), [2, 64]), False),
    "matmul of weights one over it": (lambda: qdq("MatMul", full(64, 8, value=65), [2, 64]), True),
    "matmul of unsigned weights": (lambda: qdq("MatMul", full(64, 8, value=255, dtype=np.uint8), [2, 64]), False),
    "transposed gemm": (lambda: qdq("Gemm", full(8, 64), [2, 64], transB=1), True),
    "3x3 convolution": (lambda: qdq("Conv", full(8, 16, 3, 3), [1, 16, 6, 6]), True),
    "1x1 convolution": (lambda: qdq("Conv", full(8, 16, 1, 1), [1, 16, 6, 6]), True),
    "grouped convolution": (lambda: qdq("Conv", full(8, 8, 3, 3), [1, 16, 6, 6], group=2), True),
    "convolution of one channel": (lambda: qdq("Conv", full(8, 1, 3, 3), [1, 1, 6, 6]), True),
    "depthwise convolution": (lambda: qdq("Conv", full(16, 1, 3, 3), [1, 16, 6, 6], group=16), False),
    "integer matmul": (lambda: integer("MatMulInteger", full(64, 8), [2, 64]), True),
    "integer convolution": (lambda: integer("ConvInteger", full(8, 16, 3, 3), [1, 16, 6, 6]), False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_named_if_its_sums_can_saturate(name: str) -> None:
    build, wrong = CASES[name]
    found = saturating(load(build()))

    assert bool(found) == wrong
    assert bool(warning(found)) == wrong


@pytest.mark.parametrize("name", CASES)
def test_a_layer_that_is_not_named_is_right_on_this_processor(name: str) -> None:
    """Under ``.ci/processors`` one that is named is wrong as well."""
    build, wrong = CASES[name]
    proto = build()
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    floats = proto.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    feed = {"x": np.ones(shape, np.float32) if floats else np.full(shape, 255, np.uint8)}

    if floats:
        exact = Session(proto, optimize="none").run(feed)
    else:  # no session has other kernels for integer operators
        answers: Any = ReferenceEvaluator(proto).run(None, feed)
        exact = {"y": answers[0]}
    agree = worst(compare([exact], [Session(proto).run(feed)])) > 60
    assert agree or wrong
    assert agree == (not wrong) or not saturates_here()


def saturates_here() -> bool:
    """Return whether this processor is one that adds up pairs in 16 bits."""
    proto = integer("MatMulInteger", full(64, 1), [1, 64])
    found = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": np.full((1, 64), 255, np.uint8)})
    return bool(found[0].item() != 255 * 127 * 64)


def test_opposite_signs_and_single_weights_cannot_saturate() -> None:
    weight = full(65, 8)
    weight[1::2] *= np.int8(-1)

    assert saturating(load(integer("MatMulInteger", weight, [2, 65]))) == ()


def test_the_worst_pair_is_told() -> None:
    weight = full(64, 8, value=10)
    weight[4:6, 3] = 100, 90
    (found,) = saturating(load(integer("MatMulInteger", weight, [2, 64])))

    assert (found.key, found.op, found.pairs, found.largest) == ("y", "MatMulInteger", 1, 190)
    assert "1 layer" in warning((found,)) and "add up to 190" in warning((found,))


@pytest.mark.parametrize("options", ["int8", "int8{per-tensor}", "int8{activations=int8 symmetric}"])
@pytest.mark.parametrize("name", ["cnn", "dwcnn", "mlp", "resnet"])
def test_what_int8_writes_cannot_saturate_and_sums_are_exact_here(name: str, options: str) -> None:
    result = squeeze(MODELS / f"{name}.onnx", options.replace("}", " max-drop=0.3}") if "{" in options else options)

    assert saturating(result.graph) == ()
    with np.load(MODELS / f"{name}.calib.npz") as data:
        feed = {key: data[key][:4] for key in data.files}
    exact, usual = (Session(result.graph, exact_sums=flag).run(feed) for flag in (True, False))
    assert worst(compare([exact], [usual])) > 80


@pytest.mark.parametrize("exact", [None, False])
def test_a_plan_for_what_adds_up_in_32_bits_is_measured_so_on_every_processor(exact: bool | None) -> None:
    graph = load(qdq("MatMul", full(64, 8), [2, 64]))
    graph.made_for = find("generic-qdq")
    bias = [gs.Constant("b", np.ones(8, np.int32)), gs.Constant("bs", np.array(1, np.float32))]
    graph.layer(op="DequantizeLinear", inputs=bias, outputs=["bias"])
    feed = {"x": np.ones((2, 64), np.float32)}
    usual, plain = (Session(graph, optimize=level, exact_sums=exact).run(feed) for level in ("all", "none"))

    assert (worst(compare([plain], [usual])) > 60) == (exact is None or not saturates_here())


def test_without_data_nothing_saturates_either() -> None:
    graph = squeeze(MODELS / "mlp.onnx", "int8", "none", validate="none").graph

    assert any(node.op == "MatMulInteger" for node in graph.nodes)
    assert saturating(graph) == ()


def test_a_model_that_saturates_is_told_by_inspect_by_diff_and_by_squeeze(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.onnx", tmp_path / "good.onnx"
    onnx.save(qdq("Gemm", full(8, 64), [2, 64], transB=1), bad)
    onnx.save(qdq("Gemm", full(8, 64, value=60), [2, 64], transB=1), good)

    assert [each.key for each in inspect_model(bad).saturating] == ["layer"]
    assert inspect_model(good).saturating == ()
    (said,) = diff(good, bad).warnings
    assert said.startswith(f"{bad}: wrong on x86-64 processors without VNNI: sums of 1 layer")
    assert diff(good, good).warnings == ()
    for command in (["inspect", str(bad)], ["diff", str(good), str(bad)]):
        text = CliRunner().invoke(main, command).stdout
        assert "wrong on x86-64 processors without VNNI" in " ".join(text.split())
    assert any("without VNNI" in note for note in squeeze(bad, "clean").report.notes)
