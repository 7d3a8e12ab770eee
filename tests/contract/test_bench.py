"""A model whose runs take long is measured in few of them, and a recipe remembers that it was."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxsqueeze import squeeze
from onnxsqueeze.contract import bench
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.switchboard import measure
from onnxsqueeze.runtime import timing
from onnxsqueeze.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"


class Runs:
    """How often sessions run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        run = Session.run

        def counted(session: Session, *args: Any) -> dict[str, object]:
            self.count += 1
            return run(session, *args)

        monkeypatch.setattr(Session, "run", counted)


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the processor's clock say that every run takes so many seconds."""
    ticks = itertools.count()
    for module, name in ((time, "process_time"), (time, "perf_counter"), (timing, "_clock")):
        monkeypatch.setattr(module, name, lambda: next(ticks) * seconds)


@pytest.mark.parametrize(
    ("pipeline", "most"),
    [("int8", 60), ("lowrank{ratio=0.5}", 100), ("prune{ratio=0.8}", 100), ("sparsify{ratio=0.5}", 65)],
)
def test_a_slow_model_is_measured_in_few_runs(pipeline: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.load(MODELS / "resnet.calib.npz")
    feeds = [{name: x[name][i : i + 1] for name in x.files} for i in range(16)]
    slow(monkeypatch, 1.0)
    runs = Runs(monkeypatch)
    report = squeeze(MODELS / "resnet.onnx", pipeline, feeds).report

    assert runs.count <= most
    assert report.sqnr_db is not None
    assert report.sqnr_db > 10


def test_the_seconds_of_a_slow_run_stand_in_the_recipe_and_are_not_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow(monkeypatch, 0.3)
    feeds = MODELS / "mlp.calib.npz"
    result = squeeze(MODELS / "mlp.onnx", "lowrank{ratio=0.5}", feeds)
    recorded = result.recipe.steps[-1].latency
    slow(monkeypatch, 0.0)
    again = squeeze(MODELS / "mlp.onnx", result.recipe, feeds)

    assert recorded[0] == pytest.approx(-0.3)
    assert again.recipe.steps[-1].latency == recorded
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_a_fast_model_leaves_nothing_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.2)
    result = squeeze(MODELS / "mlp.onnx", "lowrank{ratio=0.5}", MODELS / "mlp.calib.npz")

    assert result.recipe.steps[-1].latency == ()


def test_the_clock_is_not_asked_where_it_can_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.6)
    graph = load(MODELS / "mlp.onnx")
    found = Bench(graph, [{"input": np.zeros((1, 1, 28, 28), np.float32)}] * 4, 0, lambda *_: None)
    runs = Runs(monkeypatch)

    assert found.latency(graph, 0.97) == 0.97
    assert runs.count == bench.SLOW_FEEDS


def test_variants_that_are_not_measured_get_the_score_of_the_nearest_one() -> None:
    graph = load(MODELS / "resnet.onnx")
    names = [str(node.outputs[0].name) for node in graph.nodes if node.op == "Conv"]
    seen: list[int] = []

    def score(expected: Any, found: Any) -> float:
        seen.append(len(seen))
        return float(len(seen))

    feed = {"input": np.zeros((1, 1, 28, 28), np.float32)}
    found = measure(graph, [{name: lambda graph, key: None} for name in names], [feed], score, most=3)

    assert len(seen) == 3
    assert sorted(set(found)) == [1.0, 2.0, 3.0]  # type: ignore[type-var]
    assert found == sorted(found)  # type: ignore[type-var]
