"""Names that are not UTF-8, or that a terminal would take for orders, are only names."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, save

from onnxsqueeze.cli.main import main

MODELS = Path(__file__).parents[2] / "models"
ODD = os.fsdecode(b"\xff")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    try:
        shutil.copy(MODELS / "mlp.onnx", tmp_path / f"m{ODD}.onnx")
    except OSError:
        pytest.skip("the file system takes no such names")
    shutil.copy(MODELS / "mlp.calib.npz", tmp_path / f"c{ODD}.npz")
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other names")
def test_files_whose_names_are_not_utf_8_go_in_and_out(folder: Path) -> None:
    model, data, output = (
        folder / f"{name}{ODD}{end}" for name, end in (("m", ".onnx"), ("c", ".npz"), ("o", ".onnx"))
    )
    done = run(model, "-p", "int8", "--calib", data, "-o", output, "--report", folder / f"r{ODD}.json",
               "--html", folder / f"h{ODD}.html")  # fmt: skip
    page = run("inspect", output, "--html", folder / f"i{ODD}.html")

    assert done.exit_code == 0, done.stderr
    assert output.stat().st_size < 0.4 * model.stat().st_size
    assert json.loads((folder / f"r{ODD}.json").read_text(encoding="utf-8"))["sqnr_db"] > 25
    assert page.exit_code == 0
    assert "\\udcff" in (folder / f"i{ODD}.html").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other names")
def test_a_recipe_that_cannot_hold_a_name_says_so(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    done = run(folder / f"m{ODD}.onnx", "-p", "clean", "--calib", folder / f"c{ODD}.npz", "--save-recipe", recipe)

    assert done.exit_code == 2
    assert "a recipe cannot hold a name that is not UTF-8" in done.stderr
    assert not recipe.exists()


def test_names_in_a_table_are_text_without_orders_for_the_terminal(tmp_path: Path) -> None:
    name = "a\x1b]0;title\x07\r\nb"
    node = helper.make_node("Relu", ["x"], [name], name="node\x1b[2J")
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [2]) for each in ("x", name))
    save(helper.make_model(helper.make_graph([node], "g", [x], [y])), tmp_path / "odd.onnx")
    text = run("inspect", tmp_path / "odd.onnx", "--csv").output
    rows = list(csv.DictReader(io.StringIO(text)))

    assert len(rows) == 1
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert rows[0]["key"] == r"a\x1b]0;title\x07\r\nb"
    assert rows[0]["name"] == r"node\x1b[2J"
