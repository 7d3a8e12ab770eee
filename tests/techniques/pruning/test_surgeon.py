from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxsqueeze.techniques.pruning.surgeon import Part, compensate, sweep

Matrix = NDArray[np.float64]


def layer(seed: int, units: int, taps: int, extra: int = 0) -> Part:
    """A layer of 5 outputs whose inputs depend on each other; the last ``extra`` columns are of no unit."""
    rng = np.random.default_rng(seed)
    width = units * taps + extra
    mixing = rng.normal(size=(width, width)) * rng.uniform(0.1, 2, width)
    columns = rng.permutation(units * taps).reshape(units, taps)
    return Part(rng.normal(size=(5, width)), mixing @ mixing.T / width + 0.01 * np.eye(width), columns)


def error(part: Part, weight: Matrix) -> float:
    change = part.weight - weight
    assert part.spread is not None
    return float(np.sum((change @ part.spread) * change))


def without(part: Part, units: list[int]) -> Matrix:
    gone = part.columns[units].reshape(-1)
    kept = np.setdiff1d(np.arange(part.weight.shape[1]), gone)
    weight = np.zeros_like(part.weight)
    assert part.spread is not None
    weight[:, kept] = compensate(part.weight, part.spread, kept)
    return weight


@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([1, 2, 9]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_the_loss_of_a_sweep_is_the_error_that_is_left_after_least_squares(
    seed: int, units: int, taps: int, extra: int
) -> None:
    part = layer(seed, units, taps, extra)

    swept = sweep([part], units)

    assert sorted(swept.order.tolist()) == sorted(set(swept.order.tolist()))
    assert len(swept.order) == units - 1
    for count in range(1, units):
        left = error(part, without(part, swept.order[:count].tolist()))
        np.testing.assert_allclose(swept.loss[count], left, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10**6), st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_the_first_unit_to_go_is_the_one_that_costs_least(seed: int, taps: int) -> None:
    part = layer(seed, 6, taps)

    first = sweep([part], 6).order[0]

    errors = [error(part, without(part, [unit])) for unit in range(6)]
    assert errors[first] == min(errors)


def test_removing_greedily_comes_close_to_the_best_choice_and_beats_the_norm() -> None:
    ratios, norms = [], []
    for seed in range(10):
        part = layer(seed, 8, 2)
        best = min(error(part, without(part, list(gone))) for gone in combinations(range(8), 4))
        by_norm = np.argsort([(part.weight[:, c] ** 2).sum() for c in part.columns])[:4]
        ratios.append(sweep([part], 8).loss[4] / best)
        norms.append(error(part, without(part, by_norm.tolist())) / best)

    assert max(ratios) < 2
    assert np.mean(ratios) < 0.7 * np.mean(norms)


def test_a_unit_counts_with_all_layers_that_read_it() -> None:
    spread = np.eye(3)
    quiet, loud = np.array([[1.0, 2.0, 3.0]]), np.array([[9.0, 1.0, 1.0]])
    columns = np.arange(3)[:, None]
    parts = [Part(quiet, spread, columns), Part(loud, spread, columns, scale=0.1)]

    swept = sweep(parts, 3)

    assert swept.order.tolist() == [1, 0]  # 1 + 8.1, 4 + 0.1, 9 + 0.1
    np.testing.assert_allclose(swept.loss, [0, 4.1, 13.2])


def test_without_a_covariance_the_norm_of_the_columns_decides() -> None:
    weight = np.array([[3.0, 1.0, 2.0]])

    swept = sweep([Part(weight, None, np.arange(3)[:, None])], 3)

    assert swept.order.tolist() == [1, 2]
    np.testing.assert_allclose(swept.loss, [0, 1, 5])


def test_many_units_go_in_batches_whose_loss_is_exact_at_their_ends() -> None:
    part = layer(3, 400, 1)

    swept = sweep([part], 400, least=8)

    assert len(swept.order) == 392
    assert np.all(np.diff(swept.loss) >= -1e-12)
    np.testing.assert_allclose(swept.loss[-1], error(part, without(part, swept.order.tolist())), rtol=1e-5)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_compensating_in_two_steps_is_compensating_at_once(seed: int) -> None:
    part = layer(seed, 9, 1)
    assert part.spread is not None
    first, second = np.array([0, 2, 3, 5, 6, 8]), np.array([0, 3, 8])

    once = compensate(part.weight, part.spread, second)
    inner = compensate(part.weight, part.spread, first)
    twice = compensate(inner, part.spread[np.ix_(first, first)], np.flatnonzero(np.isin(first, second)))

    np.testing.assert_allclose(twice, once, rtol=1e-6, atol=1e-9)
