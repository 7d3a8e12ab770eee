"""Searches by several workers come to what they come to with one. No test looks at a clock."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
import small_models
from click.testing import CliRunner

from onnxsqueeze import UsageError
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.result import Result
from onnxsqueeze.runtime.timing import Latency
from onnxsqueeze.search import hunt
from onnxsqueeze.search.auto import auto
from onnxsqueeze.search.family import family
from onnxsqueeze.search.space import Candidate

FEW = [
    *(Candidate("", 1.0, numbers) for numbers in ("float", "half", "6 bits", "4 bits")),
    *(Candidate("lowrank", ratio, numbers) for ratio in (0.689, 0.368) for numbers in ("float", "4 bits")),
]
"""Pipelines without one that looks at the clock for itself."""


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models take the same time, and time stand still."""
    for module in ("search.trials", "engine.latencies", "contract.bench"):
        monkeypatch.setattr(f"onnxsqueeze.{module}.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.setattr("onnxsqueeze.search.hunt.time.perf_counter", lambda: 0.0)
    monkeypatch.setattr("onnxsqueeze.search.hunt.ENOUGH", dict.fromkeys((60.0, 300.0, 1200.0), 0.8))
    monkeypatch.setattr("onnxsqueeze.search.hunt.PATIENCE", 1)


@pytest.fixture
def model() -> onnx.ModelProto:
    return small_models.mlp()


def outcome(found: Result) -> tuple[Any, ...]:
    """Return all that a search has come to."""
    search = found.report.search
    assert search is not None
    tries = [(each.pipeline, each.predicted, each.measured, each.confirmed, each.problem) for each in search.tries]
    return tries, [each.recipe for each in search.tries], search.chosen, found.recipe, found.model.SerializeToString()


def test_two_workers_come_to_the_same_as_none(model: onnx.ModelProto) -> None:
    feeds = small_models.feeds(model, 24)
    alone = outcome(auto(model, "auto{size=0.3}", feeds, effort="quick"))
    with ThreadPoolExecutor(2) as executor:
        assert outcome(auto(model, "auto{size=0.3}", feeds, effort="quick", executor=executor)) == alone

    assert len(alone[0]) > 6


def test_workers_open_the_model_as_the_search_has(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, labels for a score, the packed size, and statistics that are to be written."""
    monkeypatch.setattr(hunt, "candidates", lambda data, packed: FEW)
    feeds = [{**feed, "label": feed["x"].sum(1)} for feed in small_models.feeds(model, 40)]
    onnx.save(model, tmp_path / "m.onnx")
    found = []
    for executor in (None, ThreadPoolExecutor(2)):
        (tmp_path / "s.npz").unlink(missing_ok=True)
        given: dict[str, Any] = {"score": first, "executor": executor, "stats": [tmp_path / "s.npz"]}
        found.append(outcome(auto(tmp_path / "m.onnx", "auto{packed=0.5}", feeds, **given)))
        assert (tmp_path / "s.npz").exists()

    assert found[0] == found[1]


def test_a_family_by_two_workers_has_the_same_bytes(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunt, "candidates", lambda data, packed: FEW)
    feeds = small_models.feeds(model, 40)
    family(model, tmp_path / "one", 2, feeds, by="size")
    with ThreadPoolExecutor(2) as executor:
        family(model, tmp_path / "two", 2, feeds, by="size", executor=executor)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())

    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:
        if name != "manifest.json":  # which says how long it took
            assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_search_goes_on_when_a_worker_is_killed(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunt, "candidates", lambda data, packed: FEW)
    feeds = small_models.feeds(model, 40)
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("try 5") and not killed:
            killed.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    shared = auto(model, "auto{size=0.5}", feeds, executor=2, progress=kill, cache=tmp_path)
    alone = auto(model, "auto{size=0.5}", feeds)
    again = auto(model, "auto{size=0.5}", feeds, cache=tmp_path).report.search
    two, one = ({each[0]: each[2] for each in outcome(found)[0]} for found in (shared, alone))

    assert killed
    assert two == one
    assert shared.model.SerializeToString() == alone.model.SerializeToString()
    assert again is not None and all(each.remembered for each in again.tries)


def first(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
    """Score answers by one of them."""
    return 1.0 - float(abs(outputs["y"].ravel()[0] - feed["label"].ravel()[0] * 0.1))


def test_what_cannot_be_sent_and_options_that_do_not_go_together(model: onnx.ModelProto, tmp_path: Path) -> None:
    feeds = small_models.feeds(model, 16)
    with pytest.raises(UsageError, match=r"score= cannot be sent to workers"), ThreadPoolExecutor(1) as executor:
        auto(model, "auto", feeds, score=lambda outputs, feed: 1.0, executor=executor)
    onnx.save(model, tmp_path / "m.onnx")
    both = ["--workers", "2", "--dask", "local"]
    for command in ([], ["family"]):
        failed = CliRunner().invoke(main, [*command, str(tmp_path / "m.onnx"), "--calib", "random", *both])
        assert failed.exit_code == 2 and "give one" in failed.output
