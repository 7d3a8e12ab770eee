from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxsqueeze.techniques.sparsity.sparsifier import Sparsifier, masked

Matrix = NDArray[np.float64]


def problem(rows: int = 24, columns: int = 48, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Return a weight and the covariance of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns // 3))
    spread = mixing @ mixing.T + 0.2 * np.eye(columns)
    return rng.normal(size=(rows, columns)) * rng.gamma(1, size=columns), spread


def error(weight: Matrix, other: Matrix, spread: Matrix) -> float:
    change = weight - other
    return float(np.trace(change @ spread @ change.T) / np.trace(weight @ spread @ weight.T))


def best(weight: Matrix, spread: Matrix, mask: NDArray[np.bool_]) -> Matrix:
    """Return the least-squares weight on a mask, row by row."""
    found = np.zeros_like(weight)
    for i, row in enumerate(mask):
        kept = np.flatnonzero(row)
        found[i, kept] = np.linalg.solve(spread[np.ix_(kept, kept)], spread[kept] @ weight[i])
    return found


def surgeon(weight: Matrix, spread: Matrix, share: float) -> Matrix:
    """Return what optimal brain surgery leaves, column by column, with the mask of ``w² / [H⁻¹]_kk`` in its course."""
    upper = np.linalg.cholesky(np.linalg.inv(spread)).T
    left, scores = weight.copy(), (weight / np.diag(upper)) ** 2
    mask = scores > np.quantile(scores, 1 - share)
    for k in range(weight.shape[1]):
        lost = np.where(mask[:, k], 0, left[:, k]) / upper[k, k]
        left[:, k:] -= np.outer(lost, upper[k, k:])
    return np.where(mask, left, 0)


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3, 0.1])
def test_the_share_is_kept_and_the_fit_beats_guess_surgery_and_magnitude(share: float) -> None:
    weight, spread = problem()
    made = Sparsifier(weight, spread)
    fit, guess, largest = made.fit(share), made.guess(share), Sparsifier(weight).fit(share)

    assert [np.count_nonzero(each) for each in (fit, guess, largest)] == [round(share * weight.size)] * 3
    assert error(weight, fit, spread) < error(weight, guess, spread) < error(weight, largest, spread)
    assert error(weight, fit, spread) < error(weight, surgeon(weight, spread, share), spread)


def test_what_is_kept_is_the_least_squares_weight_on_its_mask() -> None:
    weight, spread = problem()
    fit = Sparsifier(weight, spread).fit(0.5)

    assert error(weight, fit, spread) <= 1.02 * error(weight, best(weight, spread, fit != 0), spread)


def test_without_a_covariance_the_largest_elements_stay_as_they_are() -> None:
    weight, _ = problem()
    sparse = Sparsifier(weight).fit(0.25)

    assert np.array_equal(sparse[sparse != 0], weight[sparse != 0])
    assert np.abs(weight[sparse == 0]).max() <= np.abs(sparse[sparse != 0]).min()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("fitted", [True, False])
def test_a_pattern_holds_between_neighbours(pattern: tuple[int, int], fitted: bool) -> None:
    weight, spread = problem()
    order = np.random.default_rng(1).permutation(weight.shape[1])
    sparse = Sparsifier(weight, spread if fitted else None, order.tolist()).fit(0.0, pattern)
    counts = np.count_nonzero(sparse[:, order].reshape(len(weight), -1, pattern[1]), axis=-1)

    assert set(counts.ravel().tolist()) == {pattern[0]}


def test_a_mask_of_everything_gives_back_the_solution() -> None:
    weight, spread = problem(4, 8)
    found = masked(weight @ spread, spread, np.ones(weight.shape, bool), np.zeros_like(weight), steps=40)

    assert np.allclose(found, weight)


def test_a_column_that_is_never_seen_and_a_row_of_zeros_do_no_harm() -> None:
    weight, spread = problem()
    spread[3], spread[:, 3] = 0, 0
    spread[3, 3], weight[5] = 1e-12, 0
    found = Sparsifier(weight, spread).fit(0.5)

    assert np.isfinite(found).all()
    assert not found[5].any()
