"""Integers by rate and distortion: fewer bits than rounding at the same error, fitted to the inputs, within int8."""

from __future__ import annotations

import numpy as np
import pytest

from onnxsqueeze.techniques.coding.quantizer import Integers, fitted, nearest

RNG = np.random.default_rng(0)
WEIGHT = RNG.laplace(size=(96, 64))
MIXED = RNG.normal(size=(64, 8)) @ RNG.normal(size=(8, 64)) + 0.2 * RNG.normal(size=(64, 64))
SECOND = MIXED @ MIXED.T / 64


def error(found: Integers, second: np.ndarray[tuple[int, int], np.dtype[np.float64]] | None = None) -> float:
    change = WEIGHT - found.matrix
    return float(np.sum((change if second is None else change @ second) * change))


def rounded(step: float) -> Integers:
    return Integers(np.rint(WEIGHT / step).astype(np.int8), step)


@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_at_the_error_of_rounding_fewer_bits_are_needed(step: float) -> None:
    plain = rounded(step)
    steps = np.linspace(0.5 * step, step, 30)
    chosen = min((nearest(WEIGHT, each) for each in steps), key=lambda found: abs(error(found) - error(plain)))

    assert error(chosen) == pytest.approx(error(plain), rel=0.1)
    assert chosen.bytes < plain.bytes


def test_zero_is_taken_for_more_than_half_a_step() -> None:
    found = nearest(WEIGHT, 1.0)
    zeros = np.abs(WEIGHT[found.values == 0])

    assert zeros.max() > 0.55
    assert np.mean(found.values == 0) > np.mean(rounded(1.0).values == 0)


def test_errors_cancel_on_the_inputs_that_occur() -> None:
    assert error(fitted(WEIGHT, 0.5, SECOND), SECOND) < 0.7 * error(nearest(WEIGHT, 0.5, np.diag(SECOND)), SECOND)
    assert np.array_equal(fitted(WEIGHT, 0.5, None).values, nearest(WEIGHT, 0.5).values)


def test_columns_that_matter_little_cost_few_bits() -> None:
    importance = np.where(np.arange(64) % 2, 1e-3, 1.0)
    found = nearest(WEIGHT, 0.5, importance)

    assert np.count_nonzero(found.values[:, 1::2]) < 0.5 * np.count_nonzero(found.values[:, ::2])


def test_values_are_int8_where_they_fit_and_int16_where_the_step_is_fine() -> None:
    fine = float(np.abs(WEIGHT).max()) / 1000
    found = fitted(WEIGHT, fine, SECOND)

    assert fitted(WEIGHT, 0.5, SECOND).values.dtype == np.int8
    assert found.values.dtype == np.int16
    assert error(found, SECOND) < 1e-3 * error(fitted(WEIGHT, 0.5, SECOND), SECOND)
    assert found.bytes > nearest(WEIGHT, 0.5).bytes
