"""Bounds on shares, and limits that keep to them."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxsqueeze.techniques.exits.bound import missing, threshold, upper_bound


@given(st.integers(1, 200), st.data())
def test_the_bound_is_where_so_few_are_seen_in_one_of_twenty(trials: int, data: st.DataObject) -> None:
    seen = data.draw(st.integers(0, trials - 1))
    p = upper_bound(seen, trials)

    chance = sum(comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(seen + 1))
    assert chance == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.1])
def test_so_many_are_missing(limit: float) -> None:
    enough = missing(0, limit)

    assert upper_bound(0, enough) <= limit < upper_bound(0, enough - 1)
    assert missing(enough, limit) == 0


def test_the_limit_holds_its_bound_in_nineteen_of_twenty_draws() -> None:
    rng = np.random.default_rng(0)
    exceeded = 0
    for _ in range(400):
        sure = rng.uniform(0, 1, 1000)
        wrong = rng.uniform(0, 1, 1000) < 0.1 * (1 - sure)  # P(wrong, sure >= t) = 0.05·(1 − t)²
        limit = threshold(sure, wrong, np.linspace(0, 1, 41).tolist(), 0.02)
        exceeded += limit is not None and 0.05 * (1 - limit) ** 2 > 0.02
    assert 0 < exceeded <= 30  # 5 % of 400 are 20, with a deviation of 4.4


def test_no_limit_where_the_surest_are_wrong() -> None:
    sure = np.linspace(0, 1, 500)

    assert threshold(sure, sure > 0.9, [0.5, 0.9, 0.99], 0.01) is None
