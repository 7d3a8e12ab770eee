"""Palettes: clusters are the best there are, rounding follows inputs, and levels are fitted to what they hold."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxsqueeze.techniques.quantization import palette
from onnxsqueeze.techniques.quantization.kmeans import clusters
from onnxsqueeze.techniques.quantization.palette import fit, in_pairs

Floats = NDArray[np.floating]


def error(values: Floats, mass: Floats, means: Floats) -> float:
    return float(np.sum(mass * np.min((values[:, None] - means) ** 2, axis=1)))


def least(values: Floats, mass: Floats, count: int) -> float:
    """The error of the best of all ways to cut sorted values into runs."""

    def run(start: int, stop: int) -> float:
        part, weight = values[start:stop], mass[start:stop]
        return error(part, weight, np.array([np.average(part, weights=weight)]))

    cuts = combinations(range(1, len(values)), count - 1)
    return min(sum(run(a, b) for a, b in zip((0, *each), (*each, len(values)), strict=True)) for each in cuts)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_clusters_are_the_best_of_all(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values, mass = np.sort(rng.standard_t(3, size=12)) + 100, rng.uniform(0.1, 3, size=12)
    found = clusters(values, mass, count)

    assert len(found) == count
    assert error(values, mass, found) == pytest.approx(least(values, mass, count), rel=1e-6)


def test_there_are_no_more_clusters_than_values() -> None:
    assert clusters(np.array([1.0, 2.0]), np.ones(2), 8).tolist() == [1.0, 2.0]
    assert clusters(np.array([3.0]), np.ones(1), 2).tolist() == [3.0]


def inputs(size: int) -> Floats:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2000, size // 4)) @ rng.normal(size=(size // 4, size)) + 0.1 * rng.normal(size=(2000, size))
    return np.asarray(x.T @ x / 2000)


def output_error(rows: Floats, found: Floats, second: Floats) -> float:
    change = rows - found
    return float(np.sum((change @ second) * change) / np.sum((rows @ second) * rows))


@pytest.mark.parametrize("groups", [1, 4])
def test_indices_follow_the_inputs_and_levels_follow_the_indices(groups: int) -> None:
    rows, second = np.random.default_rng(0).normal(size=(32, 80)).astype(np.float32), inputs(80)
    blind, found = fit(rows, 8, groups), fit(rows, 8, groups, second)
    parts = found.indices.reshape(groups, -1)
    own = np.stack(
        [
            [part[index == level].mean() if (index == level).any() else 0 for level in range(8)]
            for part, index in zip(rows.reshape(groups, -1), parts, strict=True)
        ]
    )
    means = np.take_along_axis(own, parts.astype(np.intp), 1).reshape(rows.shape)

    assert found.levels.shape == (groups, 8) and found.indices.max() == 7
    assert output_error(rows, found.weight, second) < 0.5 * output_error(rows, blind.weight, second)
    assert output_error(rows, found.weight, second) < output_error(rows, means, second)


def test_many_values_are_joined_first_and_that_costs_next_to_nothing() -> None:
    rows = np.random.default_rng(1).standard_t(4, size=(40, 500)).astype(np.float32)
    values = np.sort(rows.reshape(-1)).astype(np.float64)
    exact = clusters(values, np.ones_like(values), 16)
    found = fit(rows, 16).weight

    assert rows.size > palette.BINS
    assert float(((rows - found) ** 2).sum()) < 1.001 * error(values, np.ones_like(values), exact)


def test_equal_weights_have_one_level() -> None:
    found = fit(np.full((4, 8), 0.25, np.float32), 16)

    assert (found.weight == 0.25).all()


def test_pairs_leave_less_error_than_levels_of_as_many_bits() -> None:
    rng, second = np.random.default_rng(0), np.diag(np.linspace(1, 2, 160))
    rows = (np.repeat(rng.normal(size=(64, 80)), 2, axis=1) + 0.4 * rng.normal(size=(64, 160))).astype(np.float32)
    scalar = fit(rows, 4, 1, second)
    pairs = in_pairs(rows, scalar, second)

    assert pairs.indices.shape == (64, 80) and pairs.indices.max() < 16 and pairs.levels.shape == (16, 2)
    assert pairs.error == pytest.approx(output_error(rows, pairs.weight, second), rel=1e-3)
    assert scalar.error == pytest.approx(output_error(rows, scalar.weight, second), rel=1e-3)
    assert pairs.error < 0.55 * scalar.error  # √(1 − ρ²) = 0.51 is what the best transform of a pair brings


def test_pairs_that_occur_come_back_as_they_are() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 2)).astype(np.float32)[rng.integers(0, 4, (32, 40))].reshape(32, 80)
    second = inputs(80)
    pairs = in_pairs(rows, fit(rows, 8, 1, second), second)

    assert np.abs(pairs.weight - rows).max() < 1e-2
