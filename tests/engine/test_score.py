"""The user's own score: shown beside the SQNR, and a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import parse

from onnxsqueeze import Recipe, ToleranceError, UsageError, squeeze
from onnxsqueeze.engine.score import load


def model() -> onnx.ModelProto:
    return parse(
        "m (float[N, 24] x) => (float[N, 8] y) <float[24, 64] w1, float[64, 8] w2> "
        "{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"
    )


def feeds(labels: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(4)
    made = [{"x": rng.standard_normal((6, 24)).astype(np.float32)} for _ in range(16)]
    return [{**feed, "label": rng.integers(0, 8, 6)} for feed in made] if labels else made


def right(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
    assert set(outputs) == {"y"}
    return float((outputs["y"].argmax(1) == feed["label"]).mean())


def constant(outputs: list[dict[str, Any]], feeds: list[dict[str, Any]]) -> float:
    assert len(outputs) == len(feeds) in (2, 14)  # held out, or watched by a search
    return 0.5


def norm(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
    return -float(np.abs(outputs["y"] - np.round(outputs["y"], 6)).sum() + np.abs(outputs["y"]).sum())


def test_a_score_is_told_before_and_after_and_for_every_pass() -> None:
    report = squeeze(model(), "sparsify{ratio=0.6}", feeds(), score=right).report

    assert report.score is not None
    assert report.score.name == "right"
    assert 0 <= report.score.before <= 1
    assert report.steps[-1].score == report.score.after


def test_a_score_may_see_all_feeds_at_once() -> None:
    report = squeeze(model(), "sparsify{ratio=0.6}", feeds(), score=constant, max_score_drop=0.0).report

    assert report.score is not None
    assert report.score.drop == 0


@pytest.mark.parametrize("text", ["prune{max-error=0.6}", "sparsify{max-error=0.6}"])
def test_searches_watch_the_score(text: str) -> None:
    kept = {id(feed["x"]): feed for feed in feeds()}
    weights = [onnx.numpy_helper.to_array(each) for each in model().graph.initializer]

    def near(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
        expected = np.maximum(feed["x"] @ weights[0], 0) @ weights[1]
        return 1 - float(((outputs["y"] - expected) ** 2).sum() / (expected**2).sum())

    loose = squeeze(model(), text, list(kept.values()), score=near).report
    tight = squeeze(model(), text, list(kept.values()), score=near, max_score_drop=0.08).report

    assert loose.score is not None and tight.score is not None
    assert loose.score.drop > 0.1
    assert 0 < tight.score.drop < 0.08


def test_a_score_that_falls_too_far_writes_nothing(tmp_path: Path) -> None:
    def worse(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
        return float(calls.append(0) or -len(calls))  # type: ignore[func-returns-value]

    calls: list[int] = []
    out = tmp_path / "out.onnx"
    with pytest.raises(ToleranceError, match="the score worse falls from"):
        squeeze(model(), "int8", feeds(), score=worse, max_score_drop=0.5, output=out)

    assert not out.exists()


def test_a_score_is_found_by_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task.py").write_text("def half(outputs, feed):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    result = squeeze(model(), "int8", feeds(), score="my_task:half", max_score_drop=0.01)

    assert result.report.score is not None
    assert result.report.score.after == 0.5
    assert Recipe.parse(result.recipe.to_toml()).score == "my_task:half"
    assert Recipe.parse(result.recipe.to_toml()).max_score_drop == 0.01


@pytest.mark.parametrize(
    "name, words",
    [
        ("task", "write module:function"),
        ("no_such_module:score", "cannot be imported"),
        ("math:no_such_function", "has no function 'no_such_function'"),
    ],
)
def test_a_score_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(name)


def test_labels_are_refused_without_a_score_and_a_limit_needs_one() -> None:
    with pytest.raises(UsageError, match="no input 'label'"):
        squeeze(model(), "int8", feeds())
    with pytest.raises(UsageError, match="needs a score"):
        squeeze(model(), "int8", feeds(False), max_score_drop=0.1)


def test_labels_of_one_file_are_cut_like_its_samples(tmp_path: Path) -> None:
    data = feeds()
    path = tmp_path / "data.npz"
    np.savez(path, x=np.concatenate([f["x"] for f in data]), label=np.concatenate([f["label"] for f in data]))
    report = squeeze(model(), "int8", str(path), score=right).report

    assert report.score is not None
