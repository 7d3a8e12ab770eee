from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.techniques.quantization.grids import Affine, activation, fixed, usable, weight_scales

Floats = NDArray[np.floating]


def measured(values: Floats) -> Histogram:
    histogram = Histogram()
    histogram.update(values.astype(np.float32))
    return histogram


def rounded(values: Floats, affine: Affine) -> Floats:
    q = np.clip(np.rint(values / affine.scale) + affine.zero_point, 0, 255)
    return np.asarray((q - affine.zero_point) * affine.scale)


def error(values: Floats, affine: Affine) -> float:
    return float(((values - rounded(values, affine)) ** 2).sum() / (values**2).sum())


KINDS = {
    "normal": lambda rng: rng.normal(size=16000),
    "laplace": lambda rng: rng.laplace(size=16000),
    "heavy": lambda rng: rng.standard_t(3, size=16000),
    "relu": lambda rng: np.maximum(rng.normal(size=16000), 0),
    "shifted": lambda rng: rng.normal(size=16000) - 3,
    "negative": lambda rng: -np.abs(rng.normal(size=16000)),
    "uniform": lambda rng: rng.uniform(-0.2, 1, size=16000),
    "tiny": lambda rng: rng.normal(size=16000) * 1e-20,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_predicted_error_is_the_true_one_and_none_worse_than_minimum_to_maximum(kind: str) -> None:
    values = KINDS[kind](np.random.default_rng(0))
    affine, predicted = activation(measured(values))

    assert error(values, affine) == pytest.approx(predicted, rel=0.15)
    assert error(values, affine) <= 1.02 * error(values, fixed(values.min(), values.max()))


def test_outliers_are_clipped_where_that_pays() -> None:
    values = np.append(np.tile(np.random.default_rng(1).normal(size=16000), 20), 40.0)
    histogram = Histogram()
    for part in np.array_split(values, 20):
        histogram.update(part.astype(np.float32))
    affine, predicted = activation(histogram)

    assert affine.high < 39
    assert error(values, affine) == pytest.approx(predicted, rel=0.15)
    assert predicted < 0.9 * error(values, fixed(values.min(), values.max()))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_a_fixed_range_holds_zero_exactly_and_covers_its_ends_to_a_step(one: float, two: float) -> None:
    low, high = min(one, two), max(one, two)
    affine = fixed(low, high)

    assert 0 <= affine.zero_point <= 255
    assert affine.low <= 0 <= affine.high
    assert affine.low <= low + affine.scale * 0.51
    assert affine.high >= high - affine.scale * 0.51


def test_a_tensor_of_zeros_has_a_scale_and_no_error() -> None:
    affine, predicted = activation(measured(np.zeros(100)))

    assert affine.scale > 0
    assert predicted == 0


def test_masks_and_infinities_are_not_usable() -> None:
    rng = np.random.default_rng(2)
    mask = np.where(rng.random(4000) < 0.3, -10000.0, rng.normal(size=4000))
    infinite = np.where(rng.random(4000) < 0.3, -np.inf, rng.normal(size=4000))

    assert not usable(measured(mask))
    assert not usable(measured(infinite))
    assert usable(measured(rng.normal(size=4000)))
    assert usable(measured(np.maximum(rng.normal(size=4000), 0)))


def test_the_scales_of_a_weight_are_never_worse_than_those_of_its_maximum() -> None:
    rng = np.random.default_rng(3)
    rows = np.stack([rng.normal(size=300), rng.standard_t(2, size=300), rng.uniform(-1, 1, 300), np.zeros(300)])
    rows = rows.astype(np.float32)
    scales = weight_scales(rows)

    def errors(scale: Floats) -> Floats:
        s = scale[:, None]
        return np.asarray(((rows - np.clip(np.rint(rows / s), -127, 127) * s) ** 2).sum(1))

    full = np.maximum(np.abs(rows).max(1) / 127, 1e-30)
    assert (scales > 0).all()
    assert (errors(scales) <= errors(full) * 1.0001).all()


def test_a_weight_is_clipped_where_a_finer_scale_gains_more() -> None:
    row = np.append(np.random.default_rng(0).integers(-100, 101, 2000) * 0.96, 127).astype(np.float32)

    np.testing.assert_allclose(weight_scales(row[None]), [0.96], rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "heavy"])
def test_sampling_a_long_row_does_not_clip_its_largest_weights_by_mistake(kind: str) -> None:
    rows = np.stack([KINDS[kind](np.random.default_rng(seed))[:8000] for seed in range(8)]).astype(np.float32)

    def errors(scale: Floats) -> Floats:
        s = scale[:, None]
        return np.asarray(((rows - np.clip(np.rint(rows / s), -127, 127) * s) ** 2).sum(1))

    assert (errors(weight_scales(rows)) < 1.05 * errors(np.abs(rows).max(1) / 127)).all()


def test_a_row_of_integers_up_to_127_keeps_its_values() -> None:
    row = np.arange(-127, 128, dtype=np.float32)[None]

    np.testing.assert_allclose(weight_scales(row), [1.0])


def test_what_a_gate_closes_is_given_no_room() -> None:
    x = np.random.default_rng(0).normal(-4, 4, 15000)

    def swish(values: Floats) -> Floats:
        return np.asarray(values / (1 + np.exp(-values)))

    gated, predicted = activation(measured(x), swish)
    plain, _ = activation(measured(x))
    errors = [np.mean((swish(rounded(x, affine)) - swish(x)) ** 2) for affine in (gated, plain)]

    assert gated.low > plain.low / 2
    assert errors[0] < 0.75 * errors[1]
    assert 0.5 < predicted / (errors[0] / np.mean(swish(x) ** 2)) < 2


@pytest.mark.parametrize("kind", ["normal", "relu", "shifted"])
def test_a_processor_that_adds_up_otherwise_comes_to_the_same_grid(kind: str) -> None:
    """Kernels of other processors differ in the last bits of sums: extremes by some units in the last place."""
    histogram = measured(KINDS[kind](np.random.default_rng(0)))
    low, high = (float(x * np.float32(1 + 3 * 2.0**-23)) for x in (histogram.low, histogram.high))

    assert activation(replace(histogram, low=low, high=high))[0] == activation(histogram)[0]
