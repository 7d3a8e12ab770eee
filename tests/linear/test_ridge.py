from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsqueeze.linear.ridge import RIDGES, Fit, lowest
from onnxsqueeze.statistics.paired import Cross


@given(st.integers(0, 1000), st.sampled_from([1e-4, 1e-2, 1.0, 10.0]))
@settings(max_examples=40, deadline=None)
def test_a_fit_never_increases_the_error_on_what_it_was_fitted_to(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 8)).astype(np.float32) + 1
    weight = rng.normal(size=(5, 8))
    y = (x @ (weight + 0.3 * rng.normal(size=weight.shape)).T + rng.normal(size=5)).astype(np.float32)
    cross = Cross()
    cross.add(x[:30], y[:30])
    cross.add(x[30:], y[30:])
    best_bias = cross.y / cross.n - weight @ cross.x / cross.n

    new, bias = Fit(cross, weight).at(ridge)

    assert cross.error(new, bias) <= cross.error(weight, best_bias) + 1e-6
    assert cross.error(weight, best_bias) <= cross.error(weight, np.zeros(5)) + 1e-6


@pytest.mark.parametrize("best", range(len(RIDGES)))
def test_the_lowest_point_of_a_valley_is_found_with_few_looks(best: int) -> None:
    asked: list[float] = []

    def error(ridge: float) -> float:
        asked.append(ridge)
        return abs(RIDGES.index(ridge) - best) + 0.5

    assert lowest(error) == (RIDGES[best], 0.5)
    assert len(asked) == len(set(asked)) <= 5
