"""What int8 writes is what runs: ONNX Runtime's optimizer may fuse it, and must not change its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxsqueeze import squeeze
from onnxsqueeze.runtime import Session
from onnxsqueeze.validate import compare, worst

MODELS = Path(__file__).parents[1] / "models"
Feeds = list[dict[str, NDArray[np.float32]]]


def quantized(name: str) -> onnx.ModelProto:
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        feeds = [{"input": arrays["input"][i : i + 8]} for i in range(0, 96, 8)]
    return squeeze(MODELS / f"{name}.onnx", "int8", feeds, validate="none").model


def digits(count: int = 256) -> Feeds:
    with np.load(MODELS / "digits.npz") as arrays:
        x = arrays["x"][:count, None].astype(np.float32) / np.float32(255)
    return [{"input": part} for part in np.split(x, count // 32)]


@pytest.mark.parametrize("name", ["mlp", "cnn", "dwcnn", "resnet"])
def test_a_shipped_model_gives_the_same_answers_with_optimizations_off_and_on(name: str, tmp_path: Path) -> None:
    model, feeds = quantized(name), digits()
    off, on = (Session(model, optimize=level, optimized=tmp_path / level) for level in ("none", "all"))
    fused = {node.op_type for node in onnx.load(tmp_path / "all").graph.node}
    apart = worst(compare([off.run(feed) for feed in feeds], [on.run(feed) for feed in feeds]))

    assert fused & {"QLinearConv", "QGemm"}  # so that there is something to compare
    assert apart >= 45  # 58 dB and more were measured
