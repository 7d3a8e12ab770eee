from __future__ import annotations

import numpy as np
import pytest

from onnxsqueeze.linear.definite import inverse, lower_inverse, root


@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_an_inverse_is_one(size: int) -> None:
    rng = np.random.default_rng(size)
    rows = rng.normal(size=(2 * size, size))
    matrix = rows.T @ rows / size + 0.01 * np.eye(size)

    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(size), atol=1e-9)
    lower = np.linalg.cholesky(matrix)
    found = lower_inverse(lower)
    np.testing.assert_allclose(found @ lower, np.eye(size), atol=1e-9)
    assert not np.triu(found, 1).any() or size <= 64


def test_a_matrix_that_is_not_definite_is_inverted_all_the_same() -> None:
    matrix = np.diag([2.0, -1.0, 4.0])

    np.testing.assert_allclose(inverse(matrix), np.diag([0.5, -1.0, 0.25]))


def test_a_root_of_a_singular_block_is_regular() -> None:
    block = np.outer([1.0, 2.0], [1.0, 2.0])

    found = root(block)

    np.testing.assert_allclose(found @ found.T, block, atol=1e-12)
    assert np.isfinite(np.linalg.inv(found)).all()
    np.testing.assert_allclose(root(np.diag([4.0, 9.0])), np.diag([2.0, 3.0]))
