"""Rounding in turn: the error on the inputs is that of plain rounding, weighted by what no later row makes up for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxsqueeze.linear.compensation import feedback, rounded

Floats = NDArray[np.floating]


def moments(size: int) -> Floats:
    x = np.random.default_rng(1).normal(size=(400, size)) @ np.random.default_rng(2).normal(size=(size, size))
    return np.asarray(x.T @ x / 400)


@pytest.mark.parametrize("size", [1, 7, 64, 150])
def test_the_error_is_that_of_each_rounding_times_its_share(size: int) -> None:
    weight = np.random.default_rng(0).normal(size=(size, 5)).astype(np.float32)
    second = moments(size)
    back = feedback(second, damping=0.0)
    found, errors = np.empty_like(weight), np.empty_like(weight)

    def choose(k: int, target: Floats) -> Floats:
        found[back.order[k]] = np.rint(target)
        errors[k] = target - np.rint(target)
        return np.rint(target)

    rounded(weight, back, choose)
    left = weight - found
    made = float(np.trace(left.T @ second @ left))

    unit = np.linalg.det(second) ** (1 / size) / np.exp(np.mean(np.log(back.share)))  # det S = Π D_k
    assert made == pytest.approx(unit * float(back.share @ (errors**2).sum(axis=1)), rel=1e-3)
    assert np.array_equal(found, np.rint(found)) and np.abs(errors).max() <= 0.5


def test_rows_come_in_the_order_of_what_they_weigh() -> None:
    second = np.diag([1.0, 4.0, 2.0])

    assert feedback(second).order.tolist() == [1, 2, 0]
    assert np.allclose(feedback(second).upper, np.eye(3))


def test_rows_that_lie_together_stay_so_and_are_chosen_at_once() -> None:
    weight, second = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), moments(6)
    back = feedback(second, together=2)
    seen: list[tuple[int, tuple[int, ...]]] = []

    def choose(k: int, target: Floats) -> Floats:
        seen.append((k, target.shape))
        return target

    rounded(weight, back, choose, together=2)

    assert (back.order[1::2] == back.order[::2] + 1).all() and (back.order[::2] % 2 == 0).all()
    assert seen == [(0, (2, 5)), (2, (2, 5)), (4, (2, 5))]
