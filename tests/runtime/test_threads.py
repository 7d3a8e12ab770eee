from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnxsqueeze.runtime.threads import one_blas_thread


def threads() -> set[int]:
    return {int(each["num_threads"]) for each in threadpool_info() if each["user_api"] == "blas"}


def test_blas_has_one_thread_while_the_function_runs_and_its_own_again_behind() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    with threadpool_limits(limits=2, user_api="blas"):
        before = threads()
        assert one_blas_thread(threads)() == {1}
        assert threads() == before


def test_an_error_gives_the_threads_back() -> None:
    @one_blas_thread
    def fail(what: str) -> None:
        raise ValueError(what)

    before = threads()
    with pytest.raises(ValueError, match="as it must"):
        fail("as it must")
    assert threads() == before
