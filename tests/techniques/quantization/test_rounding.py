from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxsqueeze.linear.compensation import feedback
from onnxsqueeze.techniques.quantization.rounding import compensated

Floats = NDArray[np.floating]


def correlated(inputs: int, outputs: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """A weight, scales of 3 bits per column, and inputs of which a few directions hold most of the size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2000, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs))
    x += 0.1 * rng.normal(size=x.shape)
    weight = rng.normal(size=(inputs, outputs)).astype(np.float32)
    return weight, (np.abs(weight).max(0) / 127).astype(np.float32), x


def error(weight: Floats, scales: Floats, q: Floats | NDArray[np.int8], x: Floats) -> float:
    return float(((x @ (weight - q * scales)) ** 2).sum() / ((x @ weight) ** 2).sum())


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 3), (100, 20), (300, 7)])
def test_errors_cancel_on_inputs_that_go_together(inputs: int, outputs: int) -> None:
    weight, scales, x = correlated(inputs, outputs)
    q = compensated(weight, scales, feedback(x.T @ x / len(x)))
    nearest = np.rint(weight / scales)

    assert q.dtype == np.int8
    assert error(weight, scales, q, x) < 0.5 * error(weight, scales, nearest, x)


def test_inputs_that_are_independent_leave_plain_rounding() -> None:
    weight, scales, _ = correlated(50, 10)
    q = compensated(weight, scales, feedback(np.diag(np.linspace(1, 3, 50))))

    np.testing.assert_array_equal(q, np.rint(weight / scales))


@pytest.mark.parametrize("second", ["zero", "one row", "huge"])
def test_degenerate_inputs_give_integers_in_range_near_the_weight(second: str) -> None:
    weight, scales, x = correlated(64, 10)
    x = {"zero": x * 0, "one row": x[:1], "huge": x[:3] * 1e12}[second]
    q = compensated(weight, scales, feedback(x.T @ x))

    assert np.abs(q.astype(int)).max() <= 127
    assert np.abs(weight - q * scales).max() < 20 * scales.max()


def test_an_input_that_is_never_seen_changes_no_other_weight() -> None:
    weight, scales, x = correlated(40, 10)
    weight[5] = 0
    x[:, 5] = 0
    whole = compensated(weight, scales, feedback(x.T @ x))
    rest = np.arange(40) != 5
    mean = np.trace(x.T @ x) / 40
    second = (x.T @ x)[np.ix_(rest, rest)]
    without = compensated(weight[rest], scales, feedback(second + 0.01 * (mean - np.trace(second) / 39) * np.eye(39)))

    assert not whole[5].any()
    np.testing.assert_array_equal(whole[rest], without)


def test_weights_that_are_zero_make_up_for_nothing() -> None:
    """With the smallest scale they could only be ±127·2⁻¹⁰⁰, whose products are subnormal, which is slow."""
    weight, _, x = correlated(60, 8)
    weight[10:30] = 0
    scales = np.maximum(np.abs(weight).max(1, keepdims=True) / 127, 2.0**-100).astype(np.float32)
    q = compensated(weight, np.broadcast_to(scales, weight.shape), feedback(x.T @ x / len(x)))

    assert not q[10:30].any()
    assert error(weight, scales, q, x) < 1e-3


def test_a_scale_may_be_negative() -> None:
    weight, scales, x = correlated(40, 6)
    back = feedback(x.T @ x / len(x))

    np.testing.assert_array_equal(compensated(weight, -scales, back), -compensated(weight, scales, back))
