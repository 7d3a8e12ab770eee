from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import diff, squeeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.footprint import footprints
from onnxsqueeze.errors import ModelError, ToleranceError, UsageError
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.memory import memory

LINUX = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
SIZE = 1024


def model(layers: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(layers)] + ["y"]
    weights = {f"w{i}": rng.normal(size=(SIZE, SIZE)).astype(np.float32) / 32 for i in range(layers)}
    nodes = [helper.make_node("MatMul", [names[i] if i else "x", f"w{i}"], [names[i + 1]]) for i in range(layers)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, SIZE]) for name in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FEED = {"x": np.ones((8, SIZE), np.float32)}


@LINUX
def test_a_model_takes_its_weights_at_least_and_those_of_more_layers_more() -> None:
    one, four = (memory(load(model(layers)), FEED) for layers in (1, 4))

    assert one is not None and four is not None
    assert one.resident >= 4 * SIZE**2
    assert four.resident - one.resident > 2.5 * 4 * SIZE**2
    assert four.peak >= four.resident and four.peak >= four.loading
    assert four.milliseconds > 0


@LINUX
def test_a_model_that_does_not_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")

    with pytest.raises(ModelError, match="its process failed with"):
        memory(tmp_path / "broken.onnx", FEED)


@LINUX
def test_a_result_that_takes_too_much_is_not_written(tmp_path: Path) -> None:
    feeds = [{"x": np.random.default_rng(i).normal(size=(8, SIZE)).astype(np.float32)} for i in range(4)]
    with pytest.raises(ToleranceError, match=r"over the 1\.00 MB asked for .* nothing was written") as error:
        squeeze(model(1), "int8", feeds, output=tmp_path / "out.onnx", max_memory=1e6)

    assert not (tmp_path / "out.onnx").exists()
    before, after = error.value.report.memory
    assert before.resident > 1e6 < after.resident


@LINUX
def test_diff_says_what_both_models_take(tmp_path: Path) -> None:
    for name, layers in (("one", 1), ("three", 3)):
        onnx.save(model(layers), tmp_path / f"{name}.onnx")
    found = diff(tmp_path / "one.onnx", tmp_path / "three.onnx", memory=True)
    shown = CliRunner().invoke(
        main, ["diff", *(str(tmp_path / f"{name}.onnx") for name in ("one", "three")), "--memory"]
    )

    assert found.memory is not None
    assert found.memory[1].resident - found.memory[0].resident > 1.8 * 4 * SIZE**2
    assert "memory at run time" in shown.stdout and "time to load" in shown.stdout


def test_memory_is_not_measured_without_a_feed_and_no_limit_can_be_checked() -> None:
    graph = load(model(1))

    assert footprints(graph, graph, []) is None
    with pytest.raises(UsageError, match="max_memory= cannot be checked"):
        squeeze(graph, "clean", max_memory=1e6, validate="none")
