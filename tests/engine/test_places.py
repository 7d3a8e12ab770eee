"""Where a run writes: refused before any work if an input or another output is there, or nothing can be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.places import refuse_places
from onnxsqueeze.engine.squeeze import squeeze
from onnxsqueeze.errors import FeedError, ModelError, UsageError

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its calibration data in three forms, a recipe and statistics."""
    shutil.copy(MODELS / "mlp.onnx", tmp_path / "m.onnx")
    rows = np.load(MODELS / "mlp.calib.npz")["input"][:8]
    np.savez(tmp_path / "c.npz", input=rows)
    np.save(tmp_path / "c.npy", rows)
    (tmp_path / "feeds").mkdir()
    np.savez(tmp_path / "feeds/0.npz", input=rows)
    (tmp_path / "r.toml").write_text('seed = 3\n[calibration]\nsource = "c.npz"\n[[step]]\npass = "clean"\n')
    (tmp_path / "link").symlink_to("c.npz")
    os.link(tmp_path / "c.npz", tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arguments: str) -> Result:
    return CliRunner().invoke(main, arguments.split(), prog_name="onnxsqueeze")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("m.onnx -p clean -o m.onnx", "--output m.onnx would overwrite the model"),
        ("m.onnx -p clean --calib c.npz -o c.npz", "--output c.npz would overwrite the calibration data"),
        ("m.onnx -p clean --calib c.npz --report link", "--report link would overwrite the calibration data"),
        ("m.onnx -p clean --calib c.npz --html hard", "--html hard would overwrite the calibration data"),
        ("m.onnx -p clean --calib feeds --report feeds/0.npz", "would overwrite the calibration data"),
        ("m.onnx -p r.toml --report c.npz", "--report c.npz would overwrite the calibration data"),
        ("m.onnx -p r.toml -o r.toml", "--output r.toml would overwrite the recipe"),
        ("m.onnx --recipe r.toml --save-recipe r.toml", "--save-recipe r.toml would overwrite the recipe"),
        ("m.onnx -p clean --save-recipe x --report x", "--save-recipe x would overwrite the report"),
        ("m.onnx -p clean --save-recipe x --html ./x", "--save-recipe x would overwrite the page"),
        ("m.onnx -p int8 --calib c.npz --stats x -o x", "--stats x would overwrite the squeezed model"),
        ("m.onnx -p clean -o y --report y.data", "--report y.data would overwrite the data of the squeezed"),
        ("m.onnx -p clean --report none/x", "--report none/x: there is no folder none"),
        ("m.onnx -p clean --stats none/x", "--stats none/x: there is no folder none"),
        ("m.onnx -p clean --save-recipe feeds", "--save-recipe feeds is a folder"),
        ("inspect m.onnx --calib c.npz --html c.npz", "--html c.npz would overwrite the calibration data"),
        ("diff m.onnx m.onnx --html m.onnx", "--html m.onnx would overwrite the model"),
        ("sensitivity m.onnx -p lowrank --calib feeds --html feeds/0.npz", "would overwrite the calibration data"),
    ],
)
def test_an_output_in_the_place_of_something_else_is_refused(folder: Path, arguments: str, words: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run(arguments)

    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert words in result.stderr
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_library_refuses_too(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"output= c\.npz would overwrite the calibration data"):
        squeeze("m.onnx", "clean", "c.npz", output="c.npz")


def test_external_data_of_the_model_is_an_input(folder: Path) -> None:
    import onnx

    model = onnx.load("m.onnx")
    onnx.save(model, "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UsageError, match=r"--report weights\.bin would overwrite the model"):
        refuse_places({"--report": "weights.bin"}, {"the model": "big.onnx"})


def test_devices_may_take_several_outputs(folder: Path) -> None:
    refuse_places({"--report": os.devnull, "--html": os.devnull}, {"the model": "m.onnx"})


def test_a_link_that_leads_to_itself_is_refused(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="--report loop is a link that leads to itself"):
        refuse_places({"--report": "loop"}, {"the model": "m.onnx"})


@pytest.mark.skipif(os.name == "nt", reason="no pipes among files")
@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("p.onnx", "p.onnx -p clean"),
        ("p.npz", "m.onnx -p clean --calib p.npz"),
        ("p.npy", "m.onnx -p clean --calib p.npy"),
        ("feeds/1.npz", "m.onnx -p clean --calib feeds"),
        ("images/a.png", "m.onnx -p clean --calib images"),
        ("set/test_data_set_0/input_0.pb", "m.onnx -p clean --calib set"),
        ("p.npz", "m.onnx -p int8 --calib c.npz --stats p.npz"),
        ("p.toml", "m.onnx -p p.toml"),
    ],
)
def test_a_pipe_is_never_waited_for(folder: Path, where: str, arguments: str) -> None:
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / where)
    result = run(arguments)

    assert result.exit_code in (FeedError.exit_code, ModelError.exit_code)
    # images are refused before one is opened, since this model takes none
    assert "not a regular file" in result.stderr or "holds images" in result.stderr
    assert result.stderr.count("\n") == 1
