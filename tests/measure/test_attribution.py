from __future__ import annotations

from collections.abc import Collection
from math import inf, isinf
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.measure.attribution import effects
from onnxsqueeze.measure.switches import Switchboard


class Board:
    """Variants that each change one element of the answer: errors add up, and together they do ``gain`` times that."""

    def __init__(self, errors: list[float], gain: float = 1.0) -> None:
        self.errors, self.gain = errors, gain
        self.asked: list[list[int]] = []
        self.expected = self._answer([])

    def _answer(self, on: Collection[int]) -> Answers:
        y = np.ones(len(self.errors))
        gain = self.gain if len(on) == len(self.errors) else 1.0
        for i in on:
            y[i] = 1 + np.sqrt(gain * self.errors[i] * len(y)) if self.errors[i] < inf else np.nan
        return [{"y": y}]

    def answers(self, on: Collection[int]) -> Answers:
        self.asked.append(list(on))
        return self._answer(on)


def energy(expected: Answers, answers: Answers) -> float:
    """Return ‖Δy‖² / ‖y‖², by which the board makes its errors; infinity where there is NaN."""
    y, other = (np.asarray(each[0]["y"]) for each in (expected, answers))
    return float(((other - y) ** 2).sum() / (y**2).sum()) if np.isfinite(other).all() else inf


def found(board: Board, runs: int, own: list[float] | None = None) -> list[float]:
    names = [f"t{i}" for i in range(len(board.errors))]
    values = own or [1.0] * len(names)
    own_errors = dict(zip(names, values, strict=True))
    result = effects(cast("Switchboard", board), names, own_errors, runs, lambda *step: None, energy)

    assert sorted(result) == sorted(names)
    return [result[name] for name in names]


ERRORS = [1e-4, 3e-3, 2e-2, 5e-5, 4e-4, 1e-3, 7e-3, 2e-4]
errors = st.lists(st.floats(1e-6, 1e-1), min_size=1, max_size=40)


def test_with_enough_runs_every_error_is_found() -> None:
    assert found(Board(ERRORS), 40) == pytest.approx(ERRORS)


def test_what_does_next_to_nothing_is_not_taken_apart() -> None:
    board = Board([1e-9] * 8 + [1e-2, 2e-2, 1e-9, 1e-9])
    values = found(board, 9, [1.0] * 12)

    assert values[8:10] == pytest.approx([1e-2, 2e-2], rel=1e-3)
    assert not any(each in ([0], [0, 1], [2]) for each in board.asked)


@given(errors, st.integers(1, 30))
def test_the_errors_add_up_to_what_all_do_together(values: list[float], runs: int) -> None:
    assert sum(found(Board(values), runs)) == pytest.approx(sum(values), rel=1e-4)


@given(errors, st.integers(1, 30))
def test_it_runs_no_more_often_than_asked_but_for_one(values: list[float], runs: int) -> None:
    board = Board(values)
    found(board, runs)

    assert len(board.asked) <= runs + 1


@given(st.integers(20, 100), st.data())
def test_the_tensor_that_outweighs_all_others_is_found_with_few_runs(count: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, count - 1))
    values = [1e-6] * count
    values[place] = 0.1
    result = found(Board(values), 16)

    assert result[place] == pytest.approx(0.1, rel=0.1)
    assert sum(result) - result[place] < 0.01


def test_within_a_group_the_error_is_shared_out_by_their_own_errors() -> None:
    values = found(Board([1e-2, 1e-2, 1e-2, 1e-2]), 1, [1.0, 2.0, 3.0, 4.0])

    assert values == pytest.approx([0.004, 0.008, 0.012, 0.016])


def test_variants_without_an_error_of_their_own_share_alike() -> None:
    assert found(Board([1e-2, 3e-2]), 1, [0.0, 0.0]) == pytest.approx([2e-2, 2e-2])


@pytest.mark.parametrize("gain", [0.25, 4.0])
def test_errors_are_scaled_to_what_all_do_together(gain: float) -> None:
    assert found(Board(ERRORS, gain), 40) == pytest.approx([gain * e for e in ERRORS])


def test_nothing_that_does_anything_is_all_zero() -> None:
    assert found(Board([0.0] * 5), 16) == [0.0] * 5


@pytest.mark.parametrize("runs", [1, 4, 16, 40])
def test_an_infinite_error_hides_no_other_one(runs: int) -> None:
    values = list(ERRORS)
    values[5] = inf
    result = found(Board(values), runs)

    assert isinf(result[5])
    assert not any(np.isnan(result))
    if runs == 40:
        assert result[:5] + result[6:] == pytest.approx(ERRORS[:5] + ERRORS[6:])


def test_an_error_that_is_only_infinite_alone_leaves_numbers() -> None:
    class Masked(Board):
        def _answer(self, on: Collection[int]) -> Answers:
            return super()._answer([i for i in on if self.errors[i] < inf or len(on) == 1])

    result = found(Masked([1e-3, inf, 2e-3]), 16)

    assert not any(np.isnan(result))
    assert result[1] == max(result)


def test_progress_counts_the_runs() -> None:
    seen: list[tuple[str, int, int]] = []
    effects(
        cast("Switchboard", Board(ERRORS)),
        list("abcdefgh"),
        dict.fromkeys("abcdefgh", 1.0),
        10,
        lambda *s: seen.append(s),
    )

    assert {(name, total) for name, _, total in seen} == {("measuring layers", 10)}
    assert [done for _, done, _ in seen] == list(range(1, 11))
