"""``code``: int8 that is small once coded, under one budget of bytes or of error; the answers stay, the shapes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import pack, squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.passes.code import Code
from onnxsqueeze.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Result:
    output = tmp_path_factory.mktemp("code") / "resnet.onnx"
    with np.load(MODELS / "resnet.calib.npz") as calibration:
        feeds = [{"input": calibration["input"][i : i + 4]} for i in range(0, 64, 4)]
    return squeeze(MODELS / "resnet.onnx", "code{max-error=0.1}", feeds, output=output)


def accuracy(model: onnx.ModelProto) -> float:
    with np.load(MODELS / "digits.npz") as digits:
        x, y = digits["x"][:400, None].astype(np.float32) / np.float32(255), digits["y"][:400]
    logits = np.asarray(Session(model).run({"input": x})["logits"])
    return float((logits.argmax(1) == y).mean())


def test_a_network_reads_digits_with_a_fourteenth_of_its_bytes(resnet: Result, tmp_path: Path) -> None:
    assert resnet.report.output is not None
    found = pack(resnet.report.output, tmp_path / "resnet.osq")

    assert found.after < 930_982 / 14
    assert accuracy(resnet.model) > 0.985


def test_what_the_report_says_is_what_pack_makes_of_it(resnet: Result, tmp_path: Path) -> None:
    (step,) = (step for step in resnet.report.steps if step.spec.startswith("code"))
    said = sum(float(str(site.detail["bytes"])) for site in step.done)
    assert resnet.report.output is not None
    coded = pack(resnet.report.output, tmp_path / "resnet.osq").tensors
    made = sum(tensor.coded for tensor in coded if tensor.dtype == "int8")

    assert made == pytest.approx(said, rel=0.15)
    assert any("bits each once they are coded" in note for note in step.notes)


def test_weights_are_int8_with_one_scale_and_are_restored_when_the_model_is_loaded(resnet: Result) -> None:
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in resnet.model.graph.initializer}
    casts = [node for node in resnet.model.graph.node if node.op_type == "Cast"]

    assert casts
    assert all(weights[node.input[0]].dtype == np.int8 for node in casts)
    muls = [node for node in resnet.model.graph.node if node.op_type == "Mul" and node.input[0] in casts[0].output]
    assert [weights[node.input[1]].shape for node in muls] == [()]


def test_a_size_is_kept() -> None:
    with np.load(MODELS / "mlp.calib.npz") as calibration:
        feeds = [{"input": calibration["input"][i : i + 8]} for i in range(0, 64, 8)]
    report = squeeze(MODELS / "mlp.onnx", "code{size=0.05}", feeds).report
    (step,) = (step for step in report.steps if step.spec.startswith("code"))
    coded, count = (sum(float(str(site.detail[name])) for site in step.done) for name in ("bytes", "weights"))

    assert 0.7 * 0.05 < coded / (4 * count) <= 0.05


def test_rows_of_unlike_sizes_get_steps_of_their_own_where_that_was_measured_to_pay() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp2(rng.uniform(-6, 6, 64)).astype(np.float32)  # what an exporter folds into one layer the next undoes
    weights = {"w": rng.normal(size=(64, 64)).astype(np.float32) * sizes[:, None],
               "v": np.ascontiguousarray(rng.normal(size=(64, 64)).astype(np.float32) / sizes)}  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds = [{"x": rng.normal(size=(64, 64)).astype(np.float32)} for _ in range(16)]
    result = squeeze(model, "code{max-error=0.1}", feeds)
    (step,) = (step for step in result.report.steps if step.spec.startswith("code"))
    coded = {site.key: site for site in step.done}

    assert coded["h"].detail["steps"] == 64
    assert sum(float(str(site.detail["bytes"])) for site in step.done) < 2 * 64 * 64 * 4.6 / 8
    assert float(result.report.sqnr_db or 0) > 19


def test_a_bias_behind_a_product_has_few_bits_too() -> None:
    rng = np.random.default_rng(0)
    w, b = (rng.normal(size=size).astype(np.float32) for size in ((64, 64), (64,)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feeds = [{"x": 1 + rng.normal(size=(64, 64)).astype(np.float32)} for _ in range(16)]
    result = squeeze(model, "code{max-error=0.1}", feeds)
    (bias,) = (numpy_helper.to_array(t) for t in result.model.graph.initializer if t.dims == [64])

    assert np.array_equal(bias.view(np.uint32) % 2**13, np.zeros(64))
    assert not np.array_equal(bias, b)
    assert float(result.report.sqnr_db or 0) > 19


def test_tables_and_groups_are_coded_and_shared_weights_are_not() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(200, 32)),
        "depthwise": rng.normal(size=(32, 1, 3, 3)),
        "tied": rng.normal(size=(32, 32)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["g"]),
        helper.make_node("MatMul", ["g", "tied"], ["h"]),
        helper.make_node("MatMul", ["h", "tied"], ["i"]),
        helper.make_node("Transpose", ["i"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("Conv", ["r", "depthwise"], ["y"], group=32, pads=[1, 1, 1, 1]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1, 32, 4, 4]), "shape"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 4, 4])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = squeeze(model, "code{max-error=0.1}", [{"x": np.arange(i, i + 16)} for i in range(8)])
    (step,) = (step for step in result.report.steps if step.spec.startswith("code"))

    assert {site.key for site in step.done} == {"g", "y"}
    assert {skip.key: skip.reason for skip in step.skipped}[
        "h"
    ] == "its weight is shared with another layer, or computed"
    assert float(result.report.sqnr_db or 0) > 15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_error": 0.1, "size": 0.1}, "exclude each other"),
        ({"max_error": 0.0}, "max-error is over 0"),
        ({"size": 1.0}, "size is over 0 and under 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Code(**options)
    text = " ".join(f"{name.replace('_', '-')}={value}" for name, value in options.items())
    with pytest.raises(UsageError, match=words):
        squeeze(MODELS / "mlp.onnx", f"code{{{text}}}")
