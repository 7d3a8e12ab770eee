from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxsqueeze.targets.pairs import LIMIT, excess, limited_scales, rounded, rows_of, weight_of
from onnxsqueeze.techniques.quantization.grids import weight_scales

Floats = NDArray[np.float32]
shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))
weights = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-2, 2, width=32)))


def error(rows: Floats, scales: Floats) -> Floats:
    lost = rounded(rows, scales) * scales[:, None] - rows
    return np.asarray((lost.astype(np.float64) ** 2).sum(axis=1))


def test_sixteen_bits_hold_two_products_of_neighbours_up_to_the_limit_and_not_beyond() -> None:
    assert 255 * LIMIT <= 2**15 - 1 < 255 * (LIMIT + 1)


@given(weights, st.floats(2**-10, 0.125, width=32))
def test_no_pair_is_over_the_limit_whatever_the_scale(rows: Floats, scale: float) -> None:
    q = rounded(rows, np.full(len(rows), scale, np.float32))

    assert np.abs(q.astype(int)).max() <= 127
    assert (excess(q) <= 0).all()


@given(weights)
def test_weights_that_were_under_the_limit_are_rounded_to_nearest(rows: Floats) -> None:
    scale = max(float(np.abs(rows).max()), 1e-3) / 63

    assert np.array_equal(rounded(rows, np.full(len(rows), scale, np.float32)), np.rint(rows / np.float32(scale)))


@given(weights)
def test_the_scales_are_never_worse_than_those_that_cut_nothing(rows: Floats) -> None:
    plain = np.maximum(np.abs(rows).max(axis=1) / 127, 1e-6).astype(np.float32)
    found = limited_scales(rows, plain)
    doubled = plain * 2  # at which even two largest neighbours fit

    assert (found >= plain).all()
    assert (found <= doubled * (1 + 1e-6)).all()
    one, other = rows[:, : rows.shape[1] // 2 * 2 : 2], rows[:, 1::2]
    reach = np.where(one * other > 0, np.abs(one) + np.abs(other), 0).max(axis=1, initial=0)
    safe = np.maximum(plain, (reach / 127).astype(np.float32))
    assert (error(rows, found) <= error(rows, safe) * (1 + 1e-4) + 1e-12).all()


def test_real_weights_pay_less_for_the_limit_than_for_seven_bits() -> None:
    rows = np.random.default_rng(0).standard_normal((256, 576)).astype(np.float32)
    plain = weight_scales(rows)

    free = float((np.square(np.rint(rows / plain[:, None]) * plain[:, None] - rows)).sum())
    limited, seven = (float(error(rows, s).sum()) for s in (limited_scales(rows, plain), 2 * plain))
    assert 10 * np.log10(limited / free) < 3.0
    assert 10 * np.log10(seven / free) > 5.5


@pytest.mark.parametrize(("op", "transposed"), [("Conv", False), ("MatMul", False), ("Gemm", True)])
def test_rows_become_the_weight_again(op: str, transposed: bool) -> None:
    shape = (6, 4, 3, 5) if op == "Conv" else (6, 4)
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    rows = rows_of(weight, op, transposed)
    assert rows.shape == ((4, 6) if op == "MatMul" else (6, weight.size // 6))
    assert np.array_equal(weight_of(rows, shape, op, transposed), weight)


def test_neighbours_of_a_convolution_are_input_channels_at_the_same_tap() -> None:
    weight = np.zeros((1, 4, 3, 3), np.float32)
    weight[0, 2, 1, 1], weight[0, 3, 1, 1] = 1, 1  # neighbours
    weight[0, 0, 0, 0], weight[0, 0, 0, 1] = 1, 1  # not neighbours

    q = weight_of(rounded(rows_of(weight, "Conv"), np.full(1, 1 / 127, np.float32)), weight.shape, "Conv", False)
    assert (q[0, 2, 1, 1], q[0, 3, 1, 1]) == (64, 64)
    assert (q[0, 0, 0, 0], q[0, 0, 0, 1]) == (127, 127)
