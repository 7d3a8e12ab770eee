"""What int8 writes is what runs: ONNX Runtime's optimizer may fuse it, and must not change its answers."""

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

MODELS = Path(__file__).parents[2] / "models"
Feeds = list[dict[str, NDArray[np.generic]]]
each_model = pytest.mark.parametrize("name", ["mlp", "cnn", "dwcnn", "resnet"])


@cache
def quantized(name: str) -> onnx.ModelProto:
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        feeds = [{"input": arrays["input"][i : i + 8]} for i in range(0, 96, 8)]
    return squeeze(MODELS / f"{name}.onnx", "int8", feeds, validate="none").model


def digits(count: int = 256) -> Feeds:
    with np.load(MODELS / "digits.npz") as arrays:
        x = arrays["x"][:count, None].astype(np.float32) / np.float32(255)
    return [{"input": part} for part in np.split(x, count // 32)]


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The same model that answers with these uint8 tensors."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, None) for n in names)
    return made


def cut(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model cut at every tensor of integers, which is made as ``*_made`` and given as an input to its readers."""
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    made = with_outputs(model, [f"{name}_made" for name in names])
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            node.output[0] += "_made"
    made.graph.input.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, None) for n in names)
    return made, names


def is_fused(optimized: Path) -> bool:
    """Whether there is anything to compare."""
    return any(node.op_type in ("QLinearConv", "QGemm") for node in onnx.load(optimized).graph.node)


@each_model
def test_a_model_gives_the_same_answers_with_optimizations_off_and_on(name: str, tmp_path: Path) -> None:
    model, feeds = quantized(name), digits()
    off, on = (Session(model, optimize=level, optimized=tmp_path / level) for level in ("none", "all"))
    apart = worst(compare([off.run(feed) for feed in feeds], [on.run(feed) for feed in feeds]))

    assert is_fused(tmp_path / "all")
    assert apart >= 45  # 58 dB and more were measured


@each_model
def test_each_fused_part_on_the_same_integers_is_off_by_a_rounding_at_most(name: str, tmp_path: Path) -> None:
    """Where differences add up from layer to layer, this still tells rounding from a wrong kernel."""
    model, feed = quantized(name), digits(32)[0]
    parts, names = cut(model)
    expected = Session(with_outputs(model, names), optimize="none").run(feed)
    session = Session(parts, optimized=tmp_path / "parts")
    found = session.run({**feed, **expected})  # type: ignore[dict-item]
    steps = {n: np.abs(np.asarray(found[f"{n}_made"], np.int32) - np.asarray(expected[n], np.int32)) for n in names}

    assert is_fused(tmp_path / "parts")
    assert max(int(step.max()) for step in steps.values()) <= 1
    assert max(float((step > 0).mean()) for step in steps.values()) < 0.001
