from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxsqueeze.techniques.quantization.fewbits import Fit, Grid, block_of, fit, rows_of

Floats = NDArray[np.floating]


def layer(n: int = 48, k: int = 192) -> tuple[Floats, Floats]:
    """Return a weight and the second moments of inputs that vary in few directions."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4 * k, k // 6)) @ rng.standard_normal((k // 6, k))
    inputs += 0.1 * rng.standard_normal(inputs.shape)
    return rng.standard_normal((n, k)).astype(np.float32), inputs.T @ inputs / len(inputs)


def nearest(rows: Floats, bits: int, block: int) -> Fit:
    """Return the weight rounded to nearest, the largest of each block on the largest integer."""
    grid = Grid(bits)
    scales = np.abs(rows).reshape(len(rows), -1, block).max(-1) / grid.high
    q = np.clip(np.rint(rows / np.repeat(scales, block, 1)), grid.low, grid.high)
    return Fit(q.astype(np.int8), scales.astype(np.float32), grid)


def db(rows: Floats, found: Fit, second: Floats | None = None) -> float:
    change = rows - found.weight
    second = np.eye(rows.shape[1]) if second is None else second
    return float(10 * np.log10(np.sum((rows @ second) * rows) / np.sum((change @ second) * change)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_with_data_the_error_is_8_db_under_that_of_rounding_to_nearest(bits: int) -> None:
    rows, second = layer()
    found = fit(rows, Grid(bits), 32, second)

    assert db(rows, found, second) > db(rows, nearest(rows, bits, 32), second) + 8
    assert found.q.min() >= Grid(bits).low
    assert found.q.max() <= Grid(bits).high


def test_scales_of_both_signs_serve_integers_that_cancel_errors() -> None:
    rows, second = layer()
    found = fit(rows, Grid(4), 32, second)

    assert (found.scales < 0).any()
    assert (found.q != 0).reshape(len(rows), -1, 32).any(axis=2).all()
    assert db(rows, found, second) > db(rows, fit(rows, Grid(4), 32, second, signs=False), second)


@pytest.mark.parametrize(("bits", "gain"), [(2, 5), (3, 2), (4, 1), (6, 0.2)])
def test_without_data_searched_scales_beat_the_largest_weights(bits: int, gain: float) -> None:
    rows, _ = layer()

    assert db(rows, fit(rows, Grid(bits), 32)) > db(rows, nearest(rows, bits, 32)) + gain


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 4, 6, 8]), st.sampled_from([8, 32, 96]), st.booleans())
def test_no_weight_is_off_by_more_than_clipping_and_rounding_allow(
    seed: int, bits: int, block: int, signs: bool
) -> None:
    rows = np.random.default_rng(seed).standard_t(3, (5, 96)).astype(np.float32)
    found = fit(rows, Grid(bits), block, signs=signs)
    every = np.repeat(found.scales, block, 1)
    target = np.clip(rows / every, Grid(bits).low, Grid(bits).high)

    assert np.abs(target - found.q).max() <= 0.5 + 1e-4
    assert signs or (found.scales > 0).all()
    if found.steps is None or found.tops is None:
        assert np.array_equal(found.scales.astype(np.float16).astype(np.float32), found.scales)
    else:
        assert np.array_equal(found.steps * found.tops[:, None], found.scales)


def test_weights_of_any_size_are_held() -> None:
    rows = np.concatenate([np.zeros((1, 64)), np.full((1, 64), 1e-30), np.full((1, 64), 3e20), np.eye(64)[:1]])
    found = fit(rows.astype(np.float32), Grid(4), 32)

    np.testing.assert_allclose(found.weight[2:], rows[2:], rtol=0.02, atol=1e-9)
    assert not found.weight[0].any()
    assert np.abs(found.weight[1]).max() < 1e-28


def test_two_levels_of_scales_cost_little_and_are_left_where_they_would_not_hold_a_block() -> None:
    rows, _ = layer(k=320)
    found = fit(rows, Grid(4), 32)
    apart = rows.copy()
    apart[:, :32] *= 1e3
    held = fit(apart, Grid(4), 32)

    assert found.steps is not None
    assert db(rows, found) > db(rows, fit(rows, Grid(4), 32, compact=False)) - 0.05
    assert held.steps is None
    assert db(apart[:, 32:], Fit(held.q[:, 32:], held.scales[:, 1:], held.grid)) > db(rows, found) - 0.1


def test_a_scale_is_not_smaller_than_allowed() -> None:
    rows, second = layer()
    floor = np.where(np.arange(len(rows)) % 2, 1.0, 0.0)[:, None]
    found = fit(rows, Grid(4), rows.shape[1], second, signs=False, floor=floor)

    assert (found.scales[1::2] >= 1).all()
    assert (found.scales[::2] < 1).all()


@pytest.mark.parametrize(("row", "block"), [(576, 32), (27, 27), (147, 21), (64, 32), (48, 24), (1001, 1001), (7, 7)])
def test_blocks_divide_a_row(row: int, block: int) -> None:
    assert block_of(row) == block


@pytest.mark.parametrize(
    ("shape", "op", "transposed", "rows"),
    [
        ((8, 3, 3, 3), "Conv", False, (8, 27)),
        ((10, 20), "MatMul", False, (20, 10)),
        ((10, 20), "Gemm", True, (10, 20)),
        ((6, 40), "", False, (6, 40)),
        ((6, 4), "", False, (1, 24)),
        ((30,), "", False, (1, 30)),
    ],
)
def test_rows_are_outputs(shape: tuple[int, ...], op: str, transposed: bool, rows: tuple[int, int]) -> None:
    assert rows_of(np.zeros(shape, np.float32), op, transposed).shape == rows
