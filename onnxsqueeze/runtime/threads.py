"""How many threads algebra may take, so that it neither fights with ONNX Runtime nor depends on the machine."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["SESSION_THREADS", "one_blas_thread", "one_thread"]

SESSION_THREADS: ContextVar[int] = ContextVar("SESSION_THREADS", default=0)
"""How many threads a session has that may have as many as there are cores; 0 for these."""

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


def one_thread(call: Callable[P, R]) -> Callable[P, R]:
    """Let BLAS, and each session that may have as many threads as there are cores, use a single one.

    So works who is one of many on a machine.
    """

    @wraps(call)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        token = SESSION_THREADS.set(1)
        try:
            return one_blas_thread(call)(*args, **kwargs)
        finally:
            SESSION_THREADS.reset(token)

    return alone
