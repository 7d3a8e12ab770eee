"""How many threads algebra may take: one, so that it neither fights with ONNX Runtime nor depends on the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["one_blas_thread"]

P = ParamSpec("P")
R = TypeVar("R")


def one_blas_thread(call: Callable[P, R]) -> Callable[P, R]:
    """Let BLAS use a single thread while ``call`` runs.

    Its threads wait for each other by spinning, and so do those of ONNX Runtime: on a busy machine each takes the
    processor from the other. With one thread sums are also added up in one order, on any number of cores.
    """

    @wraps(call)
    def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        with threadpool_limits(limits=1, user_api="blas"):
            return call(*args, **kwargs)

    return bounded
