"""Ctrl-C at any point of a run: exit code 130, and no file that was not there before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

ROOT = Path(__file__).parents[2]
WIDTH, LAYERS = 3072, 6
"""Weights of 38 MB each, which are quantized one by one while the output is written."""

INTERRUPTED_AT = """
import contextlib, signal, sys
from onnxsqueeze.cli.main import main
from onnxsqueeze.report import terminal

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

@contextlib.contextmanager
def progress(console):
    def update(stage, done, total):
        if stage == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)
    yield update

terminal.progress = progress
main(sys.argv[2:], prog_name="onnxsqueeze")
"""
"""The command line, which gets the signal of Ctrl-C when the stage named first begins."""


HEEDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from onnxsqueeze.cli import main
main.main(sys.argv[1:], prog_name="onnxsqueeze")
"""
"""The command line, which heeds Ctrl-C even if whoever runs the tests ignores it."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_classifier(path: Path) -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [
            numpy_helper.from_array(rng.standard_normal((64, 32)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(32, np.float32), "b"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.savez(path.with_suffix(".calib.npz"), x=rng.standard_normal((32, 64)).astype(np.float32))


def write_big_model(path: Path) -> None:
    """Write a chain of MatMul nodes whose weights are external data, all in one sparse file."""
    size = WIDTH * WIDTH * 4
    names = ["x", *(f"h{i}" for i in range(1, LAYERS)), "y"]
    weights = []
    for i in range(LAYERS):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "big.data"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    with path.with_name("big.data").open("wb") as file:
        file.truncate(LAYERS * size)


@pytest.mark.parametrize("stage", ["loading", "calibrating", "int8", "timing", "saving"])
def test_an_interrupt_at_any_stage_leaves_nothing_behind(stage: str, tmp_path: Path) -> None:
    write_classifier(tmp_path / "model.onnx")
    before = files(tmp_path)

    command = [sys.executable, "-c", INTERRUPTED_AT, stage, "model.onnx", "-p", "int8", "--report", "report.json"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=900, check=False
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "onnxsqueeze: error: interrupted; nothing was written\n"
    assert files(tmp_path) == before


def test_an_interrupt_while_the_output_is_written_leaves_nothing_behind(tmp_path: Path) -> None:
    write_big_model(tmp_path / "big.onnx")
    before = files(tmp_path)

    _end(tmp_path, signal.SIGINT, 130, "interrupted", before)


def test_termination_while_the_output_is_written_leaves_nothing_behind(tmp_path: Path) -> None:
    write_big_model(tmp_path / "big.onnx")
    _end(tmp_path, signal.SIGTERM, 143, "terminated", files(tmp_path))


def _end(tmp_path: Path, number: int, code: int, word: str, before: list[str]) -> None:
    """Squeeze the big model, send a signal as soon as something is written, and look at what is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, "big.onnx", "-p", "int8", "--validate", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        while files(tmp_path) == before and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=900)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (code, "")
    assert stderr == f"onnxsqueeze: error: {word}; nothing was written\n"
    assert files(tmp_path) == before


def test_the_big_model_is_written_when_nobody_interrupts(tmp_path: Path) -> None:
    write_big_model(tmp_path / "big.onnx")

    command = [sys.executable, "-m", "onnxsqueeze", "big.onnx", "-p", "int8", "--validate", "none"]
    subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment(), timeout=900, check=True)
    assert files(tmp_path) == ["big.data", "big.onnx", "big.squeezed.onnx", "big.squeezed.onnx.data"]
