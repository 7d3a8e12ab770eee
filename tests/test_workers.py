"""Calls that are shared out: their order, and what becomes of them when workers die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from onnxsqueeze.errors import UsageError
from onnxsqueeze.workers import Workers

POOL = partial(ProcessPoolExecutor, 2, multiprocessing.get_context("spawn"))


def test_here_calls_are_made_when_they_are_taken_and_those_that_are_dropped_never() -> None:
    made: list[int] = []
    with Workers() as workers:
        for number in range(4):
            workers.put(made.append, number)
        assert made == [] and len(workers) == 4 and not workers.begun and not workers.away
        workers.take()
        workers.take()
        workers.drop()

    assert made == [0, 1] and len(workers) == 0


def _slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_what_ends_first_is_not_taken_first() -> None:
    with ThreadPoolExecutor(2) as threads, Workers(threads, share=len) as workers:
        for seconds in (0.05, 0.0, 0.0):
            workers.put(_slept, seconds)

        assert [workers.take() for _ in range(3)] == [0.05, 0.0, 0.0]
        assert workers.lend(b"four") == 4


def test_what_fails_elsewhere_fails_here_and_the_others_go_on() -> None:
    with ThreadPoolExecutor(2) as threads, Workers(threads) as workers:
        workers.put(int, "no number")
        workers.put(int, "3")
        with pytest.raises(ValueError, match="no number"):
            workers.take()

        assert workers.take() == 3


def test_a_worker_that_dies_is_replaced_and_its_calls_are_made_again(tmp_path: Path) -> None:
    with Workers(POOL) as workers:
        assert workers.folder is not None and Path(workers.lend(b"bytes")).read_bytes() == b"bytes"
        workers.put(os.getpid)
        os.kill(workers.take(), signal.SIGKILL)
        for number in range(6):
            workers.put(pow, number, 2)

        assert [workers.take() for _ in range(6)] == [0, 1, 4, 9, 16, 25]
    assert not workers.folder.exists()


def test_calls_that_kill_their_workers_are_given_up() -> None:
    with Workers(POOL) as workers:
        workers.put(os._exit, 1)
        with pytest.raises(UsageError, match="die again and again"):
            workers.take()
    with POOL() as pool, Workers(pool) as workers:
        workers.put(os._exit, 1)
        with pytest.raises(UsageError, match="start again"):
            workers.take()
