"""Chunks of feeds in an executor, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any, cast

from onnxsqueeze.engine.chunks import Task, measure, measure_to, measured_in
from onnxsqueeze.errors import UsageError

__all__ = ["Workers"]

AHEAD = 32
"""Chunks that are under way at once."""
TRIES = 3
"""How often a chunk is measured whose worker has died."""


class Workers:
    """Chunks under way in an executor, or here if there is none.

    An executor that is made here has its workers on this machine, and they write what they measure to files.
    """

    def __init__(
        self,
        executor: Executor | Callable[[], Executor] | None,
        place: Any,
        tasks: Sequence[Task],
        feeds: Any,
        stack: ExitStack,
    ) -> None:
        own = executor is None or isinstance(executor, Executor)
        self._make: Callable[[], Executor] | None = None if own else cast("Callable[[], Executor]", executor)
        self._executor: Executor | None = cast("Executor | None", executor) if own else None
        self._place, self._tasks, self._feeds, self._stack = place, tasks, feeds, stack
        self._folder = None if own else stack.enter_context(TemporaryDirectory(prefix="onnxsqueeze-"))
        self._tries: dict[int, int] = {}

    def results(self, chunks: Sequence[int]) -> Generator[tuple[int, Any], None, None]:
        """Yield the chunks with their statistics, in the order of ``chunks``."""
        if self._make is None and self._executor is None:
            for chunk in chunks:
                yield chunk, measure(self._place, self._tasks[chunk], self._given(chunk))
            return
        waiting, ready = list(chunks), dict[int, Any]()
        under_way: dict[Future[Any], int] = {}
        try:
            for wanted in chunks:
                while wanted not in ready:
                    while waiting and len(under_way) + len(ready) < AHEAD:
                        chunk = waiting.pop(0)
                        under_way[self._submit(chunk)] = chunk
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        chunk = under_way.pop(future)
                        try:
                            ready[chunk] = self._received(chunk, future)
                        except BrokenExecutor as error:
                            lost = [chunk, *under_way.values()]
                            under_way.clear()
                            waiting = sorted([*lost, *waiting])
                            self._again(lost, error)
                            break
                yield wanted, ready.pop(wanted)
        finally:
            for future in under_way:
                future.cancel()

    def _submit(self, chunk: int) -> Future[Any]:
        if self._executor is None:
            assert self._make is not None
            self._executor = self._stack.enter_context(self._make())
        given = self._place, self._tasks[chunk], self._given(chunk)
        if self._folder is None:
            return self._executor.submit(measure, *given)
        return self._executor.submit(measure_to, self._file(chunk), *given)

    def _received(self, chunk: int, future: Future[Any]) -> Any:
        found = future.result()
        return found if self._folder is None else measured_in(self._file(chunk))

    def _file(self, chunk: int) -> str:
        return f"{self._folder}/{chunk}.npz"

    def _given(self, chunk: int) -> list[Any] | None:
        return None if self._feeds is None else [self._feeds[i] for i in self._tasks[chunk].feeds]

    def _again(self, lost: Sequence[int], error: BrokenExecutor) -> None:
        """Prepare to measure chunks again whose worker has died."""
        for chunk in lost:
            self._tries[chunk] = self._tries.get(chunk, 0) + 1
        if self._make is None:
            raise UsageError(
                f"a worker has died, and with it the executor ({error}); start again: it goes on from what was measured"
            ) from error
        if max(self._tries.values()) >= TRIES:
            raise UsageError(f"workers die again and again on these feeds ({error}): give them more memory") from error
        self._executor = None
