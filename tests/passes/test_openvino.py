"""The files that int8 writes mean the same to OpenVINO's CPU plugin; skipped where it is not installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxsqueeze import squeeze
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.runtime.session import Session

openvino = pytest.importorskip("openvino", reason="openvino is not installed: .ci/openvino runs these tests with it")
pytestmark = pytest.mark.openvino

MODELS = Path(__file__).parents[2] / "models"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""By default OpenVINO computes in bfloat16 what is left in float, on processors that have it."""
Answers = list[dict[str, object]]
Feeds = list[dict[str, NDArray[np.float32]]]


@cache
def quantized(name: str, calibrated: bool) -> onnx.ModelProto:
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        feeds = [{"input": arrays["input"][i : i + 8]} for i in range(0, 96, 8)]
    proto = onnx.load(MODELS / f"{name}.onnx")  # by its path, the feeds beside it would be found
    return squeeze(proto, "int8", feeds if calibrated else None, validate="none").model


@cache
def digits() -> Feeds:
    with np.load(MODELS / "digits.npz") as arrays:
        x = arrays["x"][:512, None].astype(np.float32) / np.float32(255)
    return [{"input": part} for part in np.split(x, 16)]


def answers(model: onnx.ModelProto | Path) -> Answers:
    session = Session(model)
    return [session.run(feed) for feed in digits()]


def in_openvino(model: onnx.ModelProto, folder: Path) -> Answers:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    compiled = openvino.Core().compile_model(path, "CPU", EXACT)
    return [{output.any_name: np.array(value) for output, value in compiled(feed).items()} for feed in digits()]


def sqnr(expected: Answers, found: Answers) -> float:
    return worst(compare(expected, found))


@pytest.mark.parametrize(
    ("name", "calibrated", "least"),
    [
        ("mlp", True, 60),  # 147 dB were measured
        ("mlp", False, 60),  # 133, quantized at run time
        ("cnn", True, 60),  # 80
        ("cnn", False, 60),  # 90, weights that are only stored in int8
        ("dwcnn", True, 30),  # 36: a residual Add is fused with the Conv before it, without the rounding between them
        ("resnet", True, 33),  # 39: the same
    ],
)
def test_openvino_gives_the_answers_of_onnx_runtime(name: str, calibrated: bool, least: float, tmp_path: Path) -> None:
    model = quantized(name, calibrated)

    assert sqnr(answers(model), in_openvino(model, tmp_path)) >= least


@pytest.mark.parametrize("name", ["mlp", "cnn", "dwcnn", "resnet"])
def test_a_model_in_openvino_is_as_close_to_the_float_model_as_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    model, expected = quantized(name, True), answers(MODELS / f"{name}.onnx")

    assert sqnr(expected, in_openvino(model, tmp_path)) >= sqnr(expected, answers(model)) - 2
