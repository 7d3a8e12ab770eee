"""Recipes: what stands in them, what is refused, and that a run repeats to the byte."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import MODELS, feeds

from onnxsqueeze import Int8, LowRank, Recipe, UsageError, squeeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.recipe import Ingredient
from onnxsqueeze.runtime.timing import Latency

ROOT = Path(__file__).parents[2]
PLAIN = '[[step]]\npass = "lowrank"\n'


def bytes_of(result: Any) -> bytes:
    found: bytes = result.model.SerializeToString(deterministic=True)
    return found


def test_a_saved_recipe_gives_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ROOT / "models/cnn.onnx"
    with np.load(ROOT / "models/cnn.calib.npz") as calibration:
        np.savez(tmp_path / "calib.npz", input=calibration["input"][:24])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxsqueeze.contract.bench.latency", lambda *_: Latency((1.0, 0.7), 0.7, 0.7))
    first = squeeze(model, "int8", "calib.npz", seed=3)
    (tmp_path / "kept").mkdir()
    first.recipe.save("kept/recipe.toml")
    monkeypatch.chdir("/")
    monkeypatch.setattr(
        "onnxsqueeze.contract.bench.latency", lambda *_: Latency((1.0, 9.9), 9.9, 9.9)
    )  # a machine where integers do not pay
    again = squeeze(model, Recipe.load(tmp_path / "kept/recipe.toml"))
    otherwise = squeeze(model, "int8", tmp_path / "calib.npz", seed=3)

    assert bytes_of(again) == bytes_of(first)
    assert bytes_of(otherwise) != bytes_of(first)
    assert again.report.notes == first.report.notes
    assert again.recipe.steps == first.recipe.steps


def test_a_saved_recipe_gives_the_same_bytes_in_another_environment(fresh_venv: Path, tmp_path: Path) -> None:
    model, recipe = ROOT / "models/mlp.onnx", tmp_path / "recipe.toml"
    with np.load(ROOT / "models/mlp.calib.npz") as calibration:
        np.savez(tmp_path / "calib.npz", input=calibration["input"][:32])
    first = squeeze(model, "int8", tmp_path / "calib.npz", output=tmp_path / "first.onnx")
    first.recipe.save(recipe)
    digests = [hashlib.sha256((tmp_path / "first.onnx").read_bytes()).hexdigest()]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for name, how in (("second", ["-p", recipe]), ("third", ["--recipe", recipe, "--save-recipe", "again.toml"])):
        command = [str(fresh_venv / "bin/onnxsqueeze"), str(model), *map(str, how), "-o", f"{name}.onnx"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        digests.append(hashlib.sha256((tmp_path / f"{name}.onnx").read_bytes()).hexdigest())

    assert digests == digests[:1] * 3
    said = [file.read_text(encoding="utf-8").split("\n", 1)[1] for file in (recipe, tmp_path / "again.toml")]
    assert said[0] == said[1]


def test_a_run_that_does_otherwise_than_its_recipe_says_so() -> None:
    model = MODELS["conv_bn_relu"]()
    text = squeeze(model, "int8", "random").recipe.to_toml()
    note = squeeze(
        model, Recipe.parse(text.replace('"stored"', '"static"').replace('"integer"', '"static"'))
    ).report.notes

    assert any("int8 did otherwise than the recipe says at " in each for each in note)


def test_what_is_given_besides_wins_over_the_recipe() -> None:
    recipe = Recipe.parse('seed = 5\nmin-sqnr = 99.0\n[calibration]\nsource = "random"\n[[step]]\npass = "int8"\n')
    found = squeeze(MODELS["conv_bn_relu"](), recipe, min_sqnr=1.0, seed=6).recipe

    assert (found.seed, found.min_sqnr, found.calibration) == (6, 1.0, {"source": "random"})


def test_calibration_data_from_python_have_to_be_given_again() -> None:
    model = MODELS["conv_bn_relu"]()
    recipe = squeeze(model, "int8", feeds(model)).recipe

    assert Recipe.parse(recipe.to_toml()).calibration == {"source": "from python"}
    with pytest.raises(UsageError, match="calibration data from Python: give them"):
        squeeze(model, recipe)
    assert squeeze(model, recipe, feeds(model)).report.notes == ()


def test_overrides_become_passes_of_their_own() -> None:
    recipe = Recipe.parse("""
[[step]]
pass = "lowrank"
ratio = 0.6
exclude = "/stem/*"
[[step.override]]
layers = ["/head/*", "fc"]
skip = true
[[step.override]]
layers = "/neck/*"
ratio = 0.4
[[step]]
pass = "int8"
[[step.override]]
layers = "fc"
skip = true
""")

    assert [each.pass_ for each in recipe.steps] == [
        LowRank(ratio=0.6, exclude=("/stem/*", "/head/*", "fc", "/neck/*")),
        LowRank(ratio=0.4, only=("/neck/*",)),
        Int8(exclude=("fc",)),
    ]


REFUSED = {
    "sede = 1": "no key 'sede'; there are seed, validate, target, threads, batch, min-sqnr, outputs, score, "
    "max-score-drop, calibration, step; did you mean 'seed'?",
    "[calibration]\nsourc = 'x'": "[calibration] no key 'sourc'; there are source, stats, mean, std, scale; "
                                  "did you mean 'source'?",
    "[[step]]\npass = 'lowrnk'": "no pass 'lowrnk'; did you mean 'lowrank'?",
    "[[step]]\nname = 'lowrank'": "step 1 names no pass: write pass = \"lowrank\" or another name",
    PLAIN + "rato = 0.5": "step 1: lowrank: no option 'rato'; it has ratio,",
    PLAIN + "ratio = 'half'": "step 1: lowrank: ratio takes a number or none, not half",
    PLAIN + "ratio = [[1]]": "step 1: the option ratio takes numbers, text, true, false and lists of them",
    PLAIN + "[[step.override]]\nratio = 0.4": "an override says which layers it is for",
    PLAIN + "[[step.override]]\nlayers = 'x'": "an override either has skip = true or gives options",
    "[[step]]\npass = 'int8'\n[[step.override]]\nlayers = 'x'\nmax-drop = 0.1": "int8 runs once, so its overrides",
    "[[step]]\npass = 'clean'\n[[step.override]]\nlayers = 'x'\nskip = true": "step 1: clean: no option 'exclude'",
    "seed = 1.5\n" + PLAIN: "seed takes an integer, not 1.5",
    "seed = -1\n" + PLAIN: "seed is 0 or more, not -1",
    "validate = 'no'\n" + PLAIN: 'validate is "full" or "none", not "no"',
    "min-sqnr = 'a'\n" + PLAIN: 'min-sqnr takes a number of dB, not "a"',
    "calibration = 'x'\n" + PLAIN: "calibration is a table: write [calibration]",
    "seed = 1": "there are no steps: write [[step]]",
    "seed = ": "is not TOML: ",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_a_mistake_in_a_recipe_is_refused_with_the_way_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        Recipe.load(path)

    assert str(error.value).startswith(str(path))
    assert REFUSED[text] in str(error.value)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        Recipe.load(tmp_path / "none.toml")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(only=st.lists(TEXT), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 2**60), chosen=st.dictionaries(TEXT, TEXT))
def test_whatever_is_written_is_read_back(only: list[str], ratio: float, seed: int, chosen: dict[str, str]) -> None:
    step = Ingredient(LowRank(ratio=ratio, only=tuple(only)), (ratio,), chosen)
    recipe = Recipe((step,), {"source": "none"}, min_sqnr=ratio, seed=seed)

    assert Recipe.parse(recipe.to_toml()) == recipe


def failure(*arguments: str) -> str:
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as exit_:
        main(arguments)

    assert exit_.value.code == 2
    return stderr.getvalue()


def test_a_pipeline_and_a_recipe_exclude_each_other() -> None:
    assert "-p and --recipe both say what to do" in failure("model.onnx", "-p", "int8", "--recipe", "recipe.toml")


def test_a_dry_run_has_no_recipe_to_save() -> None:
    message = failure("model.onnx", "-p", "int8", "--dry-run", "--save-recipe", "recipe.toml")

    assert "--save-recipe writes what a run has decided, and --dry-run decides nothing" in message


def test_a_recipe_is_not_saved_over_the_model() -> None:
    assert "--save-recipe model.onnx would overwrite the model" in failure(
        "model.onnx", "-p", "int8", "--save-recipe", "model.onnx"
    )


def test_a_dry_run_prints_the_resolved_pipeline_and_each_plan_and_touches_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(MODELS["conv_bn_relu"](), tmp_path / "conv.onnx")
    monkeypatch.chdir(tmp_path)
    stdout = io.StringIO()
    with redirect_stdout(stdout), pytest.raises(SystemExit) as exit_:
        main(["conv.onnx", "-p", "int8{max-drop=0.1}", "--dry-run"])

    assert exit_.value.code == 0
    assert "pipeline: clean, canonical, int8{max-drop=0.1}\n" in stdout.getvalue()
    assert re.search(r"^ {8}\w+: (stored|dynamic)$", stdout.getvalue(), re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["conv.onnx"]


def test_a_recipe_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("what was there", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match=r"the recipe .*recipe\.toml cannot be written: No space left on device"):
        Recipe((Ingredient(LowRank()),)).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.toml"]
    assert path.read_text(encoding="utf-8") == "what was there"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=" + "[" * 2000 + "]" * 2000, "is nested too deeply"),
        ("seed=" + "9" * 5000, "holds a number of too many digits"),
        ("seed=" + "9" * 30 + "\n[[step]]\npass='clean'", "seed is at most 9223372036854775807"),
        ("min-sqnr=" + "9" * 400 + "\n[[step]]\npass='clean'", "min-sqnr takes a number of dB"),
        ("[[step]]\npass='int8'\n[[step.override]]\nlayers='*'\nskip='no'", 'skip takes true or false, not "no"'),
        ("[[step]]\npass='int8'\n[[step.override]]\nlayers='*'\nskip=1", "skip takes true or false, not 1"),
    ],
)
def test_values_without_bounds_or_of_another_type_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        Recipe.parse(text)
    assert len(str(error.value)) < 300


def test_a_recipe_of_an_editor_that_writes_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[[step]]\npass='clean'", encoding="utf-8-sig")
    assert Recipe.load(tmp_path / "r.toml").pipeline == "clean"


def test_a_file_that_is_too_large_for_a_recipe_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "r.toml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="has more than 16 MiB"):
        Recipe.load(tmp_path / "r.toml")


def test_a_recipe_names_its_target_and_a_file_from_its_own_folder(tmp_path: Path) -> None:
    text = '[[step]]\npass = "int8"\n'
    named, of_file = (Recipe.parse(f"target = {name!r}\n{text}", folder=tmp_path) for name in ("litert", "own/x.toml"))

    assert named.target == "litert" and 'target = "litert"' in named.to_toml()
    assert of_file.target == str(tmp_path / "own" / "x.toml")
    assert 'target = "x.toml"' in of_file.to_toml(tmp_path / "own")
    assert Recipe.parse(text).target is None
