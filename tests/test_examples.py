"""The examples of the docs run, where the packages they need are installed; ``.ci/examples`` installs them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
NEEDS = {
    "onnx_ir_passes.py": ["onnx_ir"],
    "torch_cnn.py": ["torch", "onnxscript"],
    "torch_transformer.py": ["torch", "onnxscript"],
    "yolo_dynamic.py": ["torch"],
    "sklearn_mlp.py": ["sklearn", "skl2onnx"],
    "keras_cnn.py": ["tensorflow", "tf2onnx"],
}


def test_every_example_is_run() -> None:
    decoders = {"osq_decoder.py"}  # no program; tests/container runs it
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NEEDS) | decoders


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_keeps_what_it_promises(name: str, tmp_path: Path) -> None:
    for module in NEEDS[name]:
        pytest.importorskip(module)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    print(done.stdout)  # what they measure; seen with -s

    assert done.returncode == 0, done.stderr
