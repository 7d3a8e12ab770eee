"""``palette``: indices of levels in the file, the same answers from what ONNX Runtime looks up when it loads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"


def squeezed(name: str, pipeline: str) -> Result:
    with np.load(MODELS / f"{name}.calib.npz") as calibration:
        feeds = [{"input": calibration["input"][i : i + 8]} for i in range(0, 256, 8)]
    return squeeze(MODELS / f"{name}.onnx", pipeline, feeds)


def accuracy(model: onnx.ModelProto) -> float:
    with np.load(MODELS / "digits.npz") as digits:
        x, y = digits["x"][:, None].astype(np.float32) / np.float32(255), digits["y"]
    logits = np.asarray(Session(model).run({"input": x})["logits"])
    return float((logits.argmax(1) == y).mean())


@pytest.mark.parametrize(("name", "was"), [("mlp", 0.993), ("cnn", 0.995)])
def test_eight_levels_keep_the_digits_in_a_ninth_of_the_bytes_of_weights(name: str, was: float) -> None:
    result = squeezed(name, "palette{bits=3}")
    (step,) = (step for step in result.report.steps if step.spec.startswith("palette"))
    taken, size = (sum(float(str(site.detail[key])) for site in step.done) for key in ("bytes", "float"))

    assert accuracy(result.model) >= was - 0.006
    assert size / taken >= 9


def test_the_file_holds_the_levels_and_nothing_else_of_a_weight() -> None:
    result = squeezed("mlp", "palette{entries=5}")
    tables = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name.endswith("_levels")}

    assert sum(table.shape == (8,) and len(np.unique(table)) == 5 for table in tables.values()) == 2
    assert len(result.model.SerializeToString()) < 948_000 / 9


def model(weight: np.ndarray, op: str) -> onnx.ModelProto:
    shape: dict[str, tuple[str | int, ...]] = {
        "MatMul": ("n", len(weight)),
        "Gemm": ("n", weight.shape[1]),
        "Conv": ("n", 10, 8, 8),
    }
    node = helper.make_node(op, ["x", "w"], ["y"])
    if op == "Gemm":
        node.attribute.append(helper.make_attribute("transB", 1))
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape[op])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("options", ["entries=5 group=16", "bits=2", "bits=4", "bits=4 group=8", "bits=6", "bits=8"])
def test_weights_of_so_many_values_come_back_as_they_are(op: str, opset: int, options: str) -> None:
    rng = np.random.default_rng(0)
    values = np.array([-1.5, -0.25, 0.5, 2.0], np.float32)
    shape = {"MatMul": (24, 640), "Gemm": (640, 24), "Conv": (640, 10, 2, 2)}[op]
    proto = model(values[rng.integers(0, 4, shape)], op)
    proto.opset_import[0].version = opset
    x = rng.normal(size=(3, 24) if op != "Conv" else (3, 10, 8, 8)).astype(np.float32)
    result = squeeze(proto, f"palette{{{options}}}")
    (step,) = (step for step in result.report.steps if step.spec.startswith("palette"))

    assert len(step.done) == 1
    assert max(len(i.raw_data) for i in result.model.graph.initializer) <= np.prod(shape)
    before, after = (Session(each).run({"x": x})["y"] for each in (proto, result.model))
    assert np.abs(np.asarray(before) - np.asarray(after)).max() < 1e-4


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize("bits", [2, 3])
def test_pairs_are_looked_up_where_they_win(op: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    columns = 64 if op != "Conv" else 40
    alike = np.repeat(rng.normal(size=(256, columns // 2)), 2, axis=1) + 0.3 * rng.normal(size=(256, columns))
    weight = alike.T if op == "MatMul" else alike.reshape(256, 10, 2, 2) if op == "Conv" else alike
    inputs = (16, 64) if op != "Conv" else (4, 10, 8, 8)
    feeds = [{"x": rng.normal(size=inputs).astype(np.float32)} for _ in range(32)]
    result = squeeze(model(np.ascontiguousarray(weight, np.float32), op), f"palette{{bits={bits}}}", feeds)
    (step,) = (step for step in result.report.steps if step.spec.startswith("palette"))
    tables = [t for t in result.model.graph.initializer if t.name.endswith("_levels")]

    assert [tuple(table.dims) for table in tables] == [(4**bits, 2)]
    assert float(result.report.sqnr_db or 0) > 5 * bits
    assert step.done[0].detail["bytes"] == 256 * columns * bits // 8 + 8 * 4**bits


def test_levels_that_are_whole_numbers_compute_in_int8(tmp_path: Path) -> None:
    whole, few = squeezed("cnn", "int8"), squeezed("cnn", "palette{bits=3 activations=8}")
    Session(few.model, optimized=tmp_path / "m.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    with np.load(MODELS / "digits.npz") as digits:
        feed = {"input": digits["x"][:200, None].astype(np.float32) / np.float32(255)}
    fused, plain = (np.asarray(Session(few.model, optimize=way).run(feed)["logits"]) for way in ("all", "none"))

    assert len(few.model.SerializeToString()) < 0.5 * len(whole.model.SerializeToString())
    assert (ops.count("QLinearConv"), ops.count("QGemm"), ops.count("DequantizeLinear"), ops.count("Conv")) == (
        4,
        1,
        0,
        1,
    )
    assert np.abs(fused - plain).max() < 0.05 * np.abs(plain).max()
    assert accuracy(few.model) >= 0.985


def test_layers_that_quantize_their_input_have_levels_of_whole_numbers() -> None:
    rng = np.random.default_rng(0)
    proto = model(rng.laplace(size=(256, 256)).astype(np.float32), "MatMul")
    proto.graph.input[0].type.tensor_type.shape.dim.insert(1, onnx.TensorShapeProto.Dimension(dim_value=32))
    feeds = [{"x": rng.normal(size=(1, 32, 256)).astype(np.float32)} for _ in range(16)]
    found, uniform = (squeeze(proto, f"{name} activations=8}}", feeds) for name in ("palette{bits=4", "bits{weights=4"))

    assert "MatMulInteger" in [node.op_type for node in found.model.graph.node]
    assert float(found.report.sqnr_db or 0) > float(uniform.report.sqnr_db or 0) + 1
    assert len(found.model.SerializeToString()) < 256 * 256 * 0.55


def test_what_levels_would_outweigh_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    result = squeeze(model(rng.normal(size=(32, 32)).astype(np.float32), "MatMul"), "palette{bits=8}")
    (step,) = (step for step in result.report.steps if step.spec.startswith("palette"))

    assert not step.done
    assert "levels and indices would take" in step.skipped[0].reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("bits=5", "bits is 2, 3, 4, 6 or 8"),
        ("bits=3 entries=9", "exclude"),
        ("entries=1", "2 to 256"),
        ("group=-1", "at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        squeeze(MODELS / "mlp.onnx", f"palette{{{options}}}")
