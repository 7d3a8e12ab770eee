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
from typing import Any, TypeAlias, cast

from onnxsqueeze.errors import UsageError

__all__ = ["Executors", "Share", "Workers"]

Executors: TypeAlias = "Executor | Callable[[], Executor] | None"
"""Whatever follows ``concurrent.futures.Executor``, or makes one; None for no other process."""
Share: TypeAlias = "Callable[[bytes], Any] | None"
"""What turns bytes that many calls need into what a worker gets in their place."""

TRIES = 3
"""How often a call is made whose worker has died."""


@dataclass(eq=False)
class _Given:
    """A call that was given, and its future if it is under way elsewhere."""

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: Future[Any] | None = None
    tries: int = 0


class Workers:
    """Calls under way in an executor, or made here when they are taken, if there is none.

    An executor that is made here has its workers on this machine, and a new one takes over when a worker has died.
    Its calls are to write what is large into ``folder``: a process that is killed while it sends much back leaves half
    a message in the pipe of all of them, and whoever reads it waits for ever; a few bytes arrive whole or not at all.
    """

    def __init__(self, executor: Executors = None, share: Share = None) -> None:
        own = executor is None or isinstance(executor, Executor)
        self._make: Callable[[], Executor] | None = None if own else cast("Callable[[], Executor]", executor)
        self._executor: Executor | None = cast("Executor | None", executor) if own else None
        self._share = share
        self._stack = ExitStack()
        self._given: deque[_Given] = deque()
        self.away = executor is not None
        """Whether calls are made elsewhere."""
        self.folder: Path | None = None
        """Where workers of this machine write, if they are made here."""
        self._lent = 0

    def __enter__(self) -> Workers:
        if self._make is not None:
            folder = TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True)
            self.folder = Path(self._stack.enter_context(folder))
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
        given = _Given(call, arguments)
        self._given.append(given)
        self._submit(given)

    @property
    def begun(self) -> bool:
        """Whether the first call that was not taken back is being made, or was."""
        future = self._given[0].future
        return future is not None and (future.running() or future.done())

    def take(self) -> Any:
        """Return what the first call brings that was not taken back, or raise what it raises.

        Raises UsageError if workers die again and again, or with an executor that was not made here.
        """
        first = self._given[0]
        while first.future is not None:
            error = first.future.exception()
            if isinstance(error, BrokenExecutor):
                self._again(error)
                continue
            self._given.popleft()
            return first.future.result()
        self._given.popleft()
        return first.call(*first.arguments)

    def drop(self, position: int | None = None) -> None:
        """Forget a call that would be taken after so many others, or all; what has begun elsewhere ends there."""
        for place in reversed(range(len(self._given)) if position is None else (position,)):
            future = self._given[place].future
            del self._given[place]
            if future is not None:
                future.cancel()

    def _submit(self, given: _Given) -> None:
        if self._executor is None and self._make is not None:
            self._executor = self._stack.enter_context(self._make())
        if self._executor is not None:
            given.future = self._executor.submit(given.call, *given.arguments)

    def _again(self, error: BrokenExecutor) -> None:
        """Make the calls again that were lost with a worker."""
        if self._make is None:
            raise UsageError(f"a worker has died, and with it the executor ({error}); start again") from error
        self._executor = None
        for each in self._given:
            future = each.future
            if future is None or (future.done() and not isinstance(future.exception(), BrokenExecutor)):
                continue
            each.tries += 1
            if each.tries >= TRIES:
                problem = f"workers die again and again on the same work ({error}): give them more memory"
                raise UsageError(problem) from error
            self._submit(each)
