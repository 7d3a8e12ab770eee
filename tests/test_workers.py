"""Calls that are shared out: their order, and what becomes of them when workers die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onnxsqueeze.errors import UsageError
from onnxsqueeze.workers import Workers


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


def test_what_cannot_be_sent_or_read_is_an_error_and_the_worker_goes_on() -> None:
    with Workers(1) as workers:
        workers.put(os.getpid)
        first = workers.take()
        for argument, problem in ((lambda: 0, "pickle"), (threading.Lock, "cannot be sent"), (_Unread, "not read")):
            workers.put(_call, argument)
            with pytest.raises(Exception, match=problem):
                workers.take()
        workers.put(os.getpid)

        assert workers.take() == first != os.getpid()


def _call(what: Callable[[], object]) -> object:
    return what()


class _Unread:
    """Something that whoever is sent it cannot read."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not read")


def test_workers_that_die_are_replaced_and_their_calls_are_made_again() -> None:
    with Workers(2) as workers:
        assert workers.folder is not None and Path(workers.lend(b"bytes")).read_bytes() == b"bytes"
        for _ in range(3):
            workers.put(os.getpid)
            os.kill(workers.take(), signal.SIGKILL)
            for number in range(6):
                workers.put(pow, number, 2)

            assert [workers.take() for _ in range(6)] == [0, 1, 4, 9, 16, 25]
    assert not workers.folder.exists()


def _killed_once(path: Path, size: int) -> bytes:
    """Die in the midst of a large answer, but the first time only."""
    if not path.exists():
        path.touch()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        size *= 1000
    return bytes(size)


def test_a_worker_that_dies_while_it_answers_takes_nothing_with_it(tmp_path: Path) -> None:
    with Workers(2) as workers:
        workers.put(_killed_once, tmp_path / "died", 1_000_000)
        workers.put(_slept, 0.5)

        assert len(workers.take()) == 1_000_000 and workers.take() == 0.5


def test_calls_that_kill_their_workers_are_given_up_and_others_are_made() -> None:
    with Workers(1) as workers:
        workers.put(os._exit, 1)
        workers.put(abs, -1)
        with pytest.raises(UsageError, match="die again and again"):
            workers.take()
        assert workers.take() == 1
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool, Workers(pool) as workers:
        workers.put(os._exit, 1)
        with pytest.raises(UsageError, match="start again"):
            workers.take()
        with pytest.raises(UsageError, match="start again"):
            workers.put(abs, -1)


def test_a_worker_that_is_interrupted_interrupts() -> None:
    with Workers(1) as workers:
        workers.put(os.getpid)
        process = workers.take()
        workers.put(_slept, 60.0)
        os.kill(process, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            workers.take()


@pytest.mark.parametrize("executor", [0, -1, "two", dict])
def test_what_is_no_executor(executor: Any) -> None:
    with pytest.raises(UsageError, match="number of processes"):
        Workers(executor)
