from __future__ import annotations

import numpy as np
import pytest

from onnxsqueeze.statistics.shrinkage import shrunk


def sample(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return second moments of a few rows, and the true ones of all."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) * rng.exponential(size=columns)
    x = rng.normal(size=(rows, columns)) @ mixing.T
    return x.T @ x / rows, mixing @ mixing.T


@pytest.mark.parametrize("rows", [4, 18, 50])
def test_few_rows_come_closer_to_the_true_moments(rows: int) -> None:
    before = after = 0.0
    for seed in range(8):
        found, true = sample(rows, 96, seed)
        drawn = shrunk(found, rows)
        before += np.linalg.norm(found - true) ** 2
        after += np.linalg.norm(drawn - true) ** 2
        assert np.linalg.eigvalsh(drawn)[0] > 0
        assert np.trace(drawn) == pytest.approx(np.trace(found))
        np.testing.assert_allclose(drawn, drawn.T)

    assert after < 0.8 * before


def test_many_rows_stay_as_they_are() -> None:
    found, _ = sample(50_000, 32, 0)

    np.testing.assert_allclose(shrunk(found, 50_000), found, rtol=0, atol=1e-3 * np.trace(found) / 32)


def test_a_channel_that_stood_still_may_yet_move() -> None:
    found, _ = sample(8, 16, 0)
    found[3] = found[:, 3] = 0

    assert shrunk(found, 8)[3, 3] > 0.01 * np.trace(found) / 16


def test_one_row_says_nothing_of_how_channels_go_together() -> None:
    x = np.arange(1.0, 5.0)

    np.testing.assert_allclose(shrunk(np.outer(x, x), 1), np.eye(4) * (x @ x) / 4)
    np.testing.assert_array_equal(shrunk(np.zeros((3, 3)), 5), np.zeros((3, 3)))
