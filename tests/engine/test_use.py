from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxsqueeze import Recipe, squeeze
from onnxsqueeze.engine.use import made_for, with_use
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.device import CORES
from onnxsqueeze.targets.profiles import default, names

MODELS = Path(__file__).parents[2] / "models"
STEP = '[[step]]\npass = "int8"\n'
FEEDS = [{"x": np.zeros((4, 8), np.float32)}]


def test_what_is_given_wins_over_the_recipe_and_is_written_with_it() -> None:
    recipe = Recipe.parse(f"threads = 0\nbatch = 8\n{STEP}")
    found = with_use(recipe, None, 2, None)

    assert (recipe.threads, recipe.batch) == (0, 8)
    assert (found.threads, found.batch) == (2, 8)
    assert Recipe.parse(found.to_toml()).threads == 2
    assert Recipe.parse(found.to_toml()).batch == 8


@pytest.mark.parametrize(
    ("threads", "batch", "words"),
    [
        (-1, None, "threads= is a number up to 1024, or 0 for all, not -1"),
        (None, 0, "batch= is a number of samples from 1 to 4096, not 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(threads: int | None, batch: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        with_use(Recipe.parse(STEP), None, threads, batch)


def test_a_plan_goes_by_the_times_of_its_threads_and_of_its_batch() -> None:
    recipe = Recipe.parse(STEP)
    usual, more = made_for(recipe, FEEDS), made_for(replace(recipe, threads=0, batch=8), FEEDS)
    old = default()

    assert usual is None and more is not None
    assert more.times.call == old.times.call / 2  # 8 samples instead of 4 share it
    assert more.work.node == old.work.node / 2
    assert more.times.conv[1][1] == pytest.approx(old.times.conv[1][1] * old.parallel.conv[1])
    assert more.times.carry["Add"][0] == pytest.approx(old.times.carry["Add"][0] * old.parallel.other[0])
    assert (old.use, more.use) == ("one thread", "all threads, 8 samples at once")


def test_shares_of_other_numbers_of_threads_lie_between_those_that_were_measured() -> None:
    four = replace(default().parallel, threads=4, conv=(0.4, 0.7))

    assert four.on(1).conv == (1.0, 1.0)
    assert four.on(2).conv == pytest.approx((0.6, 0.8))
    assert four.on(4).conv == four.on(0).conv == four.on(64).conv == pytest.approx((0.4, 0.7))


def test_the_report_says_what_the_plan_is_for_and_times_one_sample_and_all_threads() -> None:
    report = squeeze(MODELS / "mlp.onnx", "int8", threads=1, batch=2).report

    assert report.target == "ort-x64 1, one thread, 2 samples at once"
    assert {(each.threads, each.batch) for each in report.latencies} >= {(1, 1), (1, 2)}
    assert CORES == 1 or {each.threads for each in report.latencies} == {1, CORES}
    assert all(each.ratio == pytest.approx(each.after / each.before) for each in report.latencies)


def test_the_report_says_what_the_file_is_predicted_to_do_on_every_target() -> None:
    report = squeeze(MODELS / "cnn.onnx", "int8").report  # its convolutions gain most where integers add up in 32 bits
    found = {each.target: each for each in report.elsewhere}

    assert report.elsewhere[0].target == "ort-x64"
    assert set(found) == set(names()) - {"native"}
    assert {name for name, each in found.items() if each.ratio is not None} == {"ort-x64", "ort-x64-avx2", "ort-web"}
    assert 0.3 < found["ort-x64"].ratio < found["ort-x64-avx2"].ratio < 1  # type: ignore[operator]
    assert found["ort-x64"].broken == 0 < found["coreml"].broken


def test_native_says_how_this_machine_is_measured() -> None:
    report = squeeze(MODELS / "mlp.onnx", "clean", target="native").report

    assert [note for note in report.notes if "profile-target" in note]
    assert not [note for note in squeeze(MODELS / "mlp.onnx", "clean").report.notes if "profile-target" in note]
