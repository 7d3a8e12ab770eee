"""Quantized models written in floats: each form gives back what its integers stand for, and passes go on from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.session import Session

DIGITS = Path(__file__).parents[3] / "models"
RNG = np.random.default_rng(0)
Array = NDArray[np.generic]
Step = tuple[str, str, str, dict[str, object]]


def db(one: onnx.ModelProto | Path, two: onnx.ModelProto, feed: dict[str, Array]) -> float:
    a, b = (np.asarray(next(iter(Session(each).run(feed).values())), np.float64) for each in (one, two))
    return float(10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30)))


def digits(count: int = 16) -> dict[str, Array]:
    with np.load(DIGITS / "digits.npz") as data:
        return {"input": data["x"][:count, None].astype(np.float32) / np.float32(255)}


def quantized(name: str, pipeline: str) -> onnx.ModelProto:
    calibration = [{"input": digits(64)["input"][i : i + 1]} for i in range(64)]
    return squeeze(DIGITS / f"{name}.onnx", pipeline, calibration).model


def ops(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("name", "pipeline", "close"),
    [("cnn", "int8", 30), ("mlp", "int8", 25), ("mlp", "bits{4}", 20), ("cnn", "bits{weights=4 activations=8}", 25)],
)
def test_what_was_made_is_read_back(name: str, pipeline: str, close: float) -> None:
    few = quantized(name, pipeline)
    found = squeeze(few, "float32{integers}", validate="none").model

    assert not ops(found) & {"QuantizeLinear", "DequantizeLinear", "MatMulNBits", "MatMulInteger"}
    assert db(DIGITS / f"{name}.onnx", found, digits()) > close
    assert db(few, found, digits()) > close


def test_a_second_quantization_goes_on_from_the_first(tmp_path: Path) -> None:
    few = quantized("cnn", "int8")
    with pytest.raises(UsageError, match=r"QuantizeLinear.*float32\{integers\} in front of bits"):
        squeeze(few, "bits{4}")
    feeds = [{"input": digits(32)["input"][i : i + 1]} for i in range(32)]
    found = squeeze(few, "float32{integers},bits{4}", feeds)

    assert found.report.steps[-1].kept
    assert len(found.model.SerializeToString()) < 0.75 * len(few.SerializeToString())
    assert db(DIGITS / "cnn.onnx", found.model, digits()) > 25


def operators(relu: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return a model of QLinear operators, and the float one that it stands for."""
    low, point = (0, 0) if relu else (-1e3, 128)
    scales = {name: np.float32(12 / 255) for name in ("a", "b", "c")} | {"x": np.float32(8 / 255)}
    points = {name: np.uint8(point) for name in ("a", "b", "c")} | {"x": np.uint8(128)}
    w, v = (RNG.integers(-100, 100, shape).astype(np.int8) for shape in ((4, 3, 3, 3), (4, 4, 1, 1)))
    held: dict[str, Array] = {
        "w": w, "v": v, "ws": (RNG.random(4) * 0.003).astype("f"), "vs": np.float32(0.003), "z": np.int8(0),
        "wz": np.zeros(4, np.int8), "wb": RNG.integers(-500, 500, 4).astype(np.int32),
        **{f"{k}s": np.asarray(s) for k, s in scales.items()}, **{f"{k}z": np.asarray(p) for k, p in points.items()},
    }  # fmt: skip
    one: list[Step] = [
        ("QuantizeLinear", "x xs xz", "xq", {}),
        ("QLinearConv", "xq xs xz w ws wz as az wb", "aq", {"pads": [1] * 4}),
        ("QLinearConv", "aq as az v vs z bs bz", "bq", {}),
        ("QLinearAdd", "aq as az bq bs bz cs cz", "cq", {}),
        ("MaxPool", "cq", "pq", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("QLinearGlobalAveragePool", "pq cs cz cs cz", "gq", {"channels_last": 0}),
        ("DequantizeLinear", "gq cs cz", "y", {}),
    ]
    two: list[Step] = [
        ("Conv", "x wf bf", "a0", {"pads": [1] * 4}), ("Clip", "a0 low high", "a", {}),
        ("Conv", "a vf", "b0", {}), ("Clip", "b0 low high", "b", {}),
        ("Add", "a b", "c0", {}), ("Clip", "c0 low high", "c", {}),
        ("MaxPool", "c", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("GlobalAveragePool", "p", "y", {}),
    ]  # fmt: skip
    floats: dict[str, Array] = {
        "wf": w * np.asarray(held["ws"], np.float32).reshape(-1, 1, 1, 1), "vf": v * np.float32(0.003),
        "bf": (held["wb"] * scales["x"] * held["ws"]).astype("f"), "low": np.float32(low), "high": np.float32(1e3),
    }  # fmt: skip
    return _model(one, held), _model(two, floats)


def _model(nodes: list[Step], held: dict[str, Array]) -> onnx.ModelProto:
    made = [
        helper.make_node(op, inputs.split(), [out], domain="com.microsoft" if op in CONTRIB else "", **attrs)  # type: ignore[arg-type]
        for op, inputs, out, attrs in nodes
    ]
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


CONTRIB = ("QLinearAdd", "QLinearGlobalAveragePool")


@pytest.mark.parametrize("relu", [True, False])
def test_operators_on_integers_are_read_with_the_relu_that_their_range_was(relu: bool) -> None:
    few, whole = operators(relu)
    found = squeeze(few, "float32{integers}", validate="none").model
    feed: dict[str, Array] = {"x": RNG.uniform(-3, 3, (1, 3, 8, 8)).astype(np.float32)}

    assert ops(found) <= {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Identity"}
    assert ("Relu" in ops(found)) == relu
    assert db(whole, found, feed) > 100
    assert db(few, found, feed) > 20


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_blocks_of_few_bits_are_read_with_their_zero_points_and_a_ragged_end(bits: int, zeros: bool) -> None:
    k, n, block = 72, 10, 32
    count = -(-k // block)
    codes = RNG.integers(0, 256, (n, count, block * bits // 8)).astype(np.uint8)
    held: dict[str, Array] = {"q": codes, "s": RNG.random((n, count)).astype("f"), "b": np.ones(n, "f")}
    if zeros:
        held["z"] = RNG.integers(0, 256, (n, -(-count * bits // 8))).astype(np.uint8)
    names = ["x", "q", "s", "z" if zeros else "", "", "b"]
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attrs)  # type: ignore[arg-type]
    model = _model([], held)
    model.graph.node.append(node)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, k]))
    found = squeeze(model, "float32{integers}", validate="none").model

    assert ops(found) == {"MatMul", "Add"}
    assert db(model, found, {"x": RNG.standard_normal((3, k)).astype(np.float32)}) > 100


def test_what_has_no_float_form_is_left_with_the_reason() -> None:
    few, _ = operators(relu=True)
    few.graph.node[4].op_type = "Mod"
    del few.graph.node[4].attribute[:]
    few.graph.node[4].input.append("az")
    step = squeeze(few, "float32{integers}", validate="none").report.steps[0]

    assert not step.done
    assert step.skipped[0].reason == "Mod computes on integers"
