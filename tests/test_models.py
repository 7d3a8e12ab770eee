from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

FOLDER = Path(__file__).parents[1] / "models"
OPSETS = {"mlp": 12, "cnn": 17, "resnet": 17, "dwcnn": 17}
FLOORS = {"mlp": 99.0, "cnn": 99.2, "resnet": 99.3, "dwcnn": 99.4}  # percent of digits.npz, 0.3 under what was measured
OPERATORS = {
    "mlp": {"Gemm": 3, "BatchNormalization": 2, "Relu": 2},
    "cnn": {"Conv": 5, "BatchNormalization": 5, "Relu": 5, "MaxPool": 3, "Gemm": 1},
    "resnet": {"Conv": 11, "BatchNormalization": 11, "Add": 4, "GlobalAveragePool": 1, "Gemm": 1},
    "dwcnn": {"Conv": 18, "BatchNormalization": 14, "Clip": 5, "HardSwish": 5, "HardSigmoid": 2, "Add": 2, "Gemm": 1},
}
each_model = pytest.mark.parametrize("name", list(OPSETS))


def load(name: str) -> onnx.ModelProto:
    return onnx.load(FOLDER / f"{name}.onnx")


def run(name: str, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": inputs})[0])


def read_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as digits:
        return digits["x"], digits["y"]


def read_calibration(name: str) -> dict[str, npt.NDArray[np.float32]]:
    with np.load(FOLDER / f"{name}.calib.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def print_accuracy(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER / "accuracy.py", *paths], capture_output=True, text=True, timeout=900, check=False
    )


@each_model
def test_each_model_is_a_valid_file_of_its_opset(name: str) -> None:
    model = load(name)

    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSETS[name])]


@each_model
def test_each_model_has_one_image_input_and_one_output_of_ten_logits_with_a_free_batch(name: str) -> None:
    graph = load(name).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }

    assert shapes == {"input": ["batch", 1, 28, 28], "logits": ["batch", 10]}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


@each_model
def test_each_model_holds_the_operators_it_is_there_for(name: str) -> None:
    operators = [node.op_type for node in load(name).graph.node]

    assert {operator: operators.count(operator) for operator in OPERATORS[name]} == OPERATORS[name]


@each_model
def test_every_batch_normalization_is_in_inference_mode_right_after_a_convolution_or_gemm(name: str) -> None:
    graph = load(name).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    modes = [attribute.i for node in norms for attribute in node.attribute if attribute.name == "training_mode"]

    assert norms
    assert {producers[node.input[0]] for node in norms} <= {"Conv", "Gemm"}
    assert {len(node.output) for node in norms} == {1}
    assert not any(modes)


def test_dwcnn_has_a_depthwise_convolution_in_each_of_its_four_blocks() -> None:
    graph = load("dwcnn").graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    groups = {
        node.input[1]: attribute.i
        for node in graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    }

    assert len(groups) == 4
    assert all(shapes[weight] == [group, 1, 3, 3] for weight, group in groups.items())


@each_model
def test_each_model_classifies_the_test_digits(name: str) -> None:
    x, y = read_digits()
    logits = run(name, x[:, None].astype(np.float32) / np.float32(255))

    assert 100 * (logits.argmax(1) == y).mean() >= FLOORS[name]


@each_model
def test_a_digit_gets_the_same_logits_alone_and_in_a_batch(name: str) -> None:
    inputs = read_calibration(name)["input"][:7]

    np.testing.assert_allclose(run(name, inputs)[3:4], run(name, inputs[3:4]), rtol=1e-4, atol=1e-4)


def test_the_test_digits_are_a_thousand_labelled_images_of_all_ten_classes() -> None:
    x, y = read_digits()

    assert (x.dtype.name, x.shape) == ("uint8", (1000, 28, 28))
    assert (y.dtype.name, y.shape) == ("uint8", (1000,))
    assert np.bincount(y, minlength=10).min() >= 50
    assert len(np.bincount(y)) == 10


@each_model
def test_each_calibration_file_holds_256_inputs_under_the_name_of_the_model_input(name: str) -> None:
    arrays = read_calibration(name)

    assert list(arrays) == [load(name).graph.input[0].name]
    assert (arrays["input"].dtype.name, arrays["input"].shape) == ("float32", (256, 1, 28, 28))
    assert (arrays["input"].min(), arrays["input"].max()) == (0, 1)


@each_model
def test_no_calibration_input_is_a_test_digit(name: str) -> None:
    pixels = np.rint(read_calibration(name)["input"][:, 0] * 255).astype(np.uint8)
    calibration = {image.tobytes() for image in pixels}
    test = {image.tobytes() for image in read_digits()[0]}

    assert (len(calibration), len(test)) == (256, 1000)
    assert not calibration & test


def test_the_models_and_their_data_stay_under_four_megabytes() -> None:
    names = ["digits.npz", *(f"{name}{end}" for name in OPSETS for end in (".onnx", ".calib.npz"))]

    assert sum((FOLDER / name).stat().st_size for name in names) < 4_000_000


def test_accuracy_compares_each_model_with_the_first() -> None:
    result = print_accuracy(FOLDER / "mlp.onnx", FOLDER / "dwcnn.onnx")
    header, first, second = (line.split() for line in result.stdout.splitlines())

    assert header == ["model", "accuracy", "points", "MB", "ratio", "ms", "ratio"]
    assert (first[3], first[5], first[7]) == ("+0.0", "1.00", "1.00")
    assert float(second[3]) == pytest.approx(float(second[1]) - float(first[1]), abs=0.01)
    assert float(second[5]) == pytest.approx(float(second[4]) / float(first[4]), abs=0.01)
    assert float(second[7]) > 1


def test_accuracy_names_a_model_that_does_not_exist(tmp_path: Path) -> None:
    result = print_accuracy(tmp_path / "absent.onnx")

    assert result.returncode == 2
    assert result.stderr.strip().endswith(f"there is no file {tmp_path / 'absent.onnx'}")
