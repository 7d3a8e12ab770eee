"""Costs, times and shapes of a model with open axes are those of sizes that are said, and can be chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.diff.diff import diff
from onnxsqueeze.analysis.inspection.inspect import inspect_model
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.sensitivity import sensitivity
from onnxsqueeze.errors import UsageError
from onnxsqueeze.feeds.sizes import Taken, taken
from onnxsqueeze.ir.decode import decode


def detector() -> onnx.ModelProto:
    """Two convolutions of stride 2 on an image of any size, and a mean over it."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((8, 3, 3, 3), (16, 8, 3, 3))]
    conv: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["a"], **conv),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], **conv),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16, 1, 1])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
        value_info=[
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 8, "floor(height/2)", "floor(width/2)"])
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def macs(side: int) -> int:
    return (side // 2) ** 2 * 8 * 27 + (side // 4) ** 2 * 16 * 72


def test_sizes_that_were_made_up_say_so() -> None:
    found = inspect_model(detector())

    assert found.taken == Taken(("image 1x3x64x64",), "made up")
    assert str(found.taken) == "for a feed of image 1x3x64x64, made-up sizes"
    assert found.cost.macs == macs(64)


@pytest.mark.parametrize(
    "sizes",
    [{"height": 320, "width": 320, "n": 1}, {"image": (1, 3, 320, 320)}, {"height": (320,), "width": 320, "n": 1}],
)
def test_sizes_are_taken_by_the_names_of_axes_and_of_inputs(sizes: dict[str, int]) -> None:
    found = inspect_model(detector(), sizes=sizes)

    assert found.taken == Taken(("image 1x3x320x320",), "given")
    assert found.cost.macs == macs(320)
    assert {layer.key: layer.outputs for layer in found.layers} == {
        "a": ("1x8x160x160",), "b": ("1x8x160x160",), "c": ("1x16x80x80",), "y": ("1x16x1x1",),
    }  # fmt: skip


def test_what_is_left_open_is_made_up_and_told() -> None:
    assert inspect_model(detector(), sizes={"height": 128}).taken == Taken(("image 1x3x128x64",), "made up")


def test_sizes_of_data_are_those_of_the_first_feed() -> None:
    found = inspect_model(detector(), calibration=[{"image": np.zeros((1, 3, 96, 96), np.float32)}])

    assert found.taken is not None
    assert found.taken.shapes == ("image 1x3x96x96",)
    assert found.taken.source not in ("", "given", "made up")
    assert found.cost.macs == macs(96)


def test_a_model_that_leaves_nothing_open_needs_no_word() -> None:
    model = detector()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 32, 32), strict=True):
        dim.dim_value = size

    found = inspect_model(model)
    assert found.taken == Taken(("image 1x3x32x32",), "")
    assert all(layer.formulas == () for layer in found.layers)


def test_what_the_model_says_of_shapes_is_kept_beside_the_numbers() -> None:
    layers = {layer.key: layer for layer in inspect_model(detector()).layers}

    assert layers["a"].outputs == ("1x8x32x32",)
    assert layers["a"].formulas == ("nx8xfloor(height/2)xfloor(width/2)",)
    assert layers["c"].formulas == ("nx16x?x?",)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"depth": 3}, "no input and no open axis 'depth'; it has 'n', 'height', 'width', 'image'"),
        ({"height": 0}, "'height' takes whole numbers from 1 on, not 0"),
        ({"height": (3, 4)}, "'height' is one axis and takes one number, not 2"),
        ({"image": (1, 4, 8, 8)}, r"'image' is float32\[n, 3, height, width\], which 1x4x8x8 does not fit"),
        ({"image": (1, 3, 8)}, "1x3x8 does not fit"),
    ],
)
def test_sizes_that_the_model_does_not_have_are_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inspect_model(detector(), sizes=sizes)


def test_sizes_and_data_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="leave one out"):
        taken(decode(detector()), "random", {"height": 3})


def test_the_command_line_takes_sizes_and_says_which_it_took(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    onnx.save(detector(), path)
    plain = CliRunner().invoke(main, ["inspect", str(path)])
    given = CliRunner().invoke(main, ["inspect", str(path), "--size", "height=320", "--size", "image=1x3x320x320"])
    as_json = CliRunner().invoke(main, ["inspect", str(path), "--size", "image=2x3x64x64", "--json"])
    wrong = CliRunner().invoke(main, ["inspect", str(path), "--size", "height"])
    page = tmp_path / "page.html"
    CliRunner().invoke(main, ["inspect", str(path), "--html", str(page)])

    assert "for a feed of image 1x3x64x64, made-up sizes; --size NAME=SIZE or --calib takes others" in _line(
        plain.output
    )
    assert "image 1x3x320x320, as given" in _line(given.output)
    assert json.loads(as_json.output)["cost"]["macs"] == 2 * macs(64)
    assert wrong.exit_code == 2
    assert "write NAME=SIZE, such as height=320" in wrong.stderr
    assert "<summary>1x8x32x32</summary>nx8xfloor(height/2)" in page.read_text(encoding="utf-8")
    assert "made-up sizes" in page.read_text(encoding="utf-8")


def test_report_and_difference_say_the_sizes_that_were_made_up() -> None:
    model = detector()
    report = squeeze(model, "clean", "random").report

    assert report.calibration == "8 random feeds (seed 0, sizes made up: image 1x3x64x64)"
    assert diff(model, model).totals.taken == Taken(("image 1x3x64x64",), "made up")
    assert diff(model, model, "random").totals.taken == Taken(("image 1x3x64x64",), "made up")
    assert sensitivity(model, "lowrank", "random").feeds.endswith(
        "of 8 random feeds (seed 0, sizes made up: image 1x3x64x64)"
    )


def _line(text: str) -> str:
    return " ".join(text.split())
