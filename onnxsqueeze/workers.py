"""Calls that are shared out to an executor, whatever stands behind it, and taken back in the order they were given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, TypeAlias

from onnxsqueeze.errors import UsageError

__all__ = ["Executors", "Share", "Workers"]

Executors: TypeAlias = "Executor | int | None"
"""Whatever follows ``concurrent.futures.Executor``, or a number of processes here; None for no other process."""
Share: TypeAlias = "Callable[[bytes], Any] | None"
"""What turns bytes that many calls need into what a worker gets in their place."""


@dataclass(eq=False)
class _Given:
    """A call that was given, and its future if it is under way elsewhere."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Future[Any] | None = None


class Workers:
    """Calls under way in an executor, or made here when they are taken, if there is none.

    A number of processes is taken for that many on this machine, and a new one takes over when one has died. Raises
    UsageError if ``executor`` is neither.
    """

    def __init__(self, executor: Executors = None, share: Share = None) -> None:
        self._processes = executor if isinstance(executor, int) else 0
        self._executor = None if isinstance(executor, int) else executor
        if executor is not None and self._processes < 1 and not hasattr(executor, "submit"):
            raise UsageError(f"executor is a number of processes, from 1, or an Executor, not {executor!r}")
        self._share = share
        self._stack = ExitStack()
        self._given: deque[_Given] = deque()
        self.away = executor is not None
        """Whether calls are made elsewhere."""
        self.folder: Path | None = None
        """What workers of this machine are lent lies here, if they are started here."""
        self._lent = 0

    def __enter__(self) -> Workers:
        if self._processes:
            folder = TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True)
            self.folder = Path(self._stack.enter_context(folder))
            from onnxsqueeze.processes import Processes  # which takes its time, and few runs need it

            self._executor = self._stack.enter_context(Processes(self._processes))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        self._stack.close()

    def __len__(self) -> int:
        return len(self._given)

    def lend(self, data: bytes) -> Any:
        """Return what a worker gets for bytes that many calls need: a path, what ``share`` makes of them, or they."""
        if self.folder is not None:
            self._lent += 1
            path = self.folder / f"lent-{self._lent}"
            path.write_bytes(data)
            return str(path)
        return data if self._share is None else self._share(data)

    def free(self, lent: Any) -> None:
        """Take back what was lent: no call will need it any more."""
        if self.folder is not None:
            Path(lent).unlink()

    def put(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Give a call, which is under way at once if there is an executor."""
        try:
            future = None if self._executor is None else self._executor.submit(call, *arguments)
        except BrokenExecutor as error:
            raise _broken(error) from error
        self._given.append(_Given(call, arguments, future))

    @property
    def begun(self) -> bool:
        """Whether the first call that was not taken back is being made, or was."""
        future = self._given[0].future
        return future is not None and (future.running() or future.done())

    def take(self) -> Any:
        """Return what the first call brings that was not taken back, or raise what it raises.

        Raises UsageError if workers die again and again, or with an executor that was not made here.
        """
        first = self._given.popleft()
        if first.future is None:
            return first.call(*first.arguments)
        try:
            return first.future.result()
        except BrokenExecutor as error:
            raise _broken(error) from error

    def drop(self, position: int | None = None) -> None:
        """Forget a call that would be taken after so many others, or all; what has begun elsewhere ends there."""
        for place in reversed(range(len(self._given)) if position is None else (position,)):
            future = self._given[place].future
            del self._given[place]
            if future is not None:
                future.cancel()


def _broken(error: BrokenExecutor) -> UsageError:
    return UsageError(f"a worker has died, and with it the executor ({error}); start again")
