"""Stored weights that slow a model down are found by the clock and stay in float."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxsqueeze import squeeze
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.techniques.quantization import speed

MODELS = Path(__file__).parents[3] / "models"


def told(plan: list[Any], slow: set[str]) -> tuple[list[Any], int]:
    """Return what becomes of a plan whose ``slow`` sites take twice the time, and how often the clock was asked."""
    asked = []

    def latency(chosen: set[str], limit: float, seconds: float) -> float:
        asked.append(chosen)
        return 2.0 if chosen & slow else limit

    bench: Any = SimpleNamespace(latency=latency, variant=lambda apply, sites: {site.key for site in sites})
    return speed.unslowed(plan, bench), len(asked)


@pytest.fixture
def plan() -> list[Any]:
    return [*(Site(f"layer{i}", "stored", work=None) for i in range(16)), Skip("other", "has no weight")]


def test_a_plan_that_is_as_fast_as_it_was_is_asked_for_once(plan: list[Any]) -> None:
    assert told(plan, set()) == (plan, 1)


def test_the_one_weight_that_slows_the_model_is_left_in_float(plan: list[Any]) -> None:
    found, asked = told(plan, {"layer5"})

    assert [entry.key for entry in found if isinstance(entry, Skip)] == ["layer5", "other"]
    assert found[5] == Skip("layer5", speed.SLOWS)
    assert asked == 1 + 2 * 4


def test_a_search_that_takes_too_long_ends_with_groups(plan: list[Any]) -> None:
    found, asked = told(plan, {entry.key for entry in plan})

    assert all(isinstance(entry, Skip) for entry in found)
    assert asked <= speed.TRIALS + 1


def test_int8_asks_the_clock_about_a_plan_that_only_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def latency(self: Bench, graph: Graph, limit: float = 1.0, seconds: float = 0.5) -> float:
        limits.append(limit)
        return 1.5

    monkeypatch.setattr(Bench, "latency", latency)
    report = squeeze(MODELS / "mlp.onnx", "int8{arithmetic=false}", MODELS / "mlp.calib.npz").report

    assert set(limits) == {speed.LIMIT}
    assert report.steps[-1].done == ()
    assert [skip.reason for skip in report.steps[-1].skipped].count(speed.SLOWS) >= 2
