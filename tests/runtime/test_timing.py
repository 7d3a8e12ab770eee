from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxsqueeze.errors import SqueezeError
from onnxsqueeze.runtime import timing
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import CONFIDENCE, Latency, latency


class Clock:
    """A clock that only runs while a session does, for as long as the session says."""

    now = 0.0


class Timed:
    """A session that takes as many milliseconds as ``cost`` says for a feed."""

    def __init__(self, clock: Clock, cost: Callable[[float], float]) -> None:
        self.clock, self.cost = clock, cost

    def run(self, feed: dict[str, np.ndarray]) -> None:
        self.clock.now += self.cost(float(feed["x"])) / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "_clock", lambda: clock.now)
    return clock


def timed(clock: Clock, *costs: Callable[[float], float]) -> Latency:
    sessions = [Timed(clock, cost) for cost in costs]
    return latency(sessions, [{"x": np.float32(size)} for size in (1, 2)], seconds=0.05)  # type: ignore[arg-type]


def test_the_ratio_is_that_of_the_milliseconds_which_are_means_over_the_feeds(clock: Clock) -> None:
    found = timed(clock, lambda size: 2 * size, lambda size: size)

    assert found.milliseconds == pytest.approx((3.0, 1.5))
    assert found.ratio == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_noise_that_only_adds_is_left_out_and_widens_the_interval(clock: Clock) -> None:
    rng = np.random.default_rng(0)
    found = timed(clock, lambda size: size, lambda size: size * (0.9 + 0.5 * rng.exponential()))

    assert found.ratio == pytest.approx(0.9, abs=0.05)
    assert found.low < found.high


def test_with_too_few_rounds_nothing_is_sure(clock: Clock) -> None:
    found = timed(clock, lambda size: 3000, lambda size: 1000)

    assert (found.low, found.high) == (0.0, math.inf)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = sum(low <= 0 <= high for low, high in (timing._interval(rng.normal(size=25).tolist()) for _ in range(4000)))

    assert hits / 4000 >= CONFIDENCE - 0.0015
    assert timing._interval([1.0] * 10) == (0.0, math.inf)
    assert timing._interval(list(map(float, range(11)))) == (0.0, 10.0)


def test_a_profile_that_was_cut_short_says_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What ONNX Runtime leaves behind in a folder that is full."""
    cut = tmp_path / "profile.json"
    cut.write_text('[{"cat": "Session", "na', encoding="utf-8")
    monkeypatch.setattr(Session, "end_profile", lambda self: str(cut))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )

    with pytest.raises(SqueezeError, match="make room there"):
        timing.profile(model, None, [{"x": np.zeros(2, np.float32)}])
