"""Levels that are whole numbers: better than even steps, small enough to be added in pairs, scales over a floor."""

from __future__ import annotations

import numpy as np
import pytest

from onnxsqueeze.techniques.quantization.fewbits import Grid, fit
from onnxsqueeze.techniques.quantization.whole import MOST, on_grid


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("measured", [False, True])
def test_levels_beat_even_steps_of_as_many_bits(bits: int, measured: bool) -> None:
    rng = np.random.default_rng(bits)
    rows = (rng.laplace(size=(48, 64)) * rng.lognormal(size=(48, 1))).astype(np.float32)
    x = rng.normal(size=(512, 64)) @ rng.normal(size=(64, 64))
    second = x.T @ x / len(x) if measured else np.eye(64)
    found = on_grid(rows, 1 << bits, second if measured else None)
    even = fit(rows, Grid(bits), 64, second if measured else None, signs=False, compact=False)

    def error(change: np.ndarray) -> float:
        rowwise = np.einsum("nk,kl,nl->n", change, second, change) / np.einsum("nk,kl,nl->n", rows, second, rows)
        return float(rowwise.mean())

    assert np.array_equal(found.integers, found.levels[found.indices])
    assert len(found.levels) == 1 << bits
    assert np.abs(found.levels.astype(int)).max() == MOST
    assert error(rows - found.scales * found.integers) < error(rows - even.weight)


def test_scales_keep_their_floor_and_empty_rows_are_empty() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    rows[2] = 0
    floor = np.zeros((6, 1), np.float32)
    floor[4] = 0.05
    found = on_grid(rows, 8, None, floor)

    assert (found.scales > 0).all()
    assert found.scales[4] >= np.float32(0.05)
    change = rows - found.scales * found.integers
    assert np.abs(change[2]).max() < 1e-20
    assert (np.sum(change**2, axis=1)[[0, 1, 3, 5]] < 0.1 * np.sum(rows**2, axis=1)[[0, 1, 3, 5]]).all()
