"""Worker processes of this machine, each behind a pipe of its own: one that dies takes nothing with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from onnxsqueeze.errors import UsageError

__all__ = ["Processes"]

T = TypeVar("T")

TRIES = 3
"""How often a call is made whose worker has died."""
INTERRUPTED = 130
"""The exit code of a worker that was interrupted."""
PATIENCE = 5.0
"""Seconds in which a worker ends that has nothing more to do."""


class Processes(ThreadPoolExecutor):
    """An executor of processes that are started when they are needed, and again when one has died.

    Python's ProcessPoolExecutor lets all workers read and write the same two pipes: one that is killed in the midst of
    a message stops the others, and one that is started while another's death is dealt with is waited for without end.
    Here a thread waits for each process, alone at the other end of its pipe.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, thread_name_prefix="onnxsqueeze-worker")
        self._free: list[_Worker] = []

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Give a call; its future raises UsageError if workers die of it again and again."""
        return super().submit(self._made, call, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, each when its call is done."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._free:
            worker.end()
        self._free.clear()

    def _made(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call in a process that is free."""
        for _ in range(TRIES):
            try:
                worker = self._free.pop()
            except IndexError:
                worker = _Worker()
            try:
                worker.pipe.send((call, args, kwargs))
                done, found = worker.pipe.recv()
            except (EOFError, OSError):  # it has died
                worker.end()
                if worker.process.exitcode == INTERRUPTED:
                    raise KeyboardInterrupt from None
                continue
            except BaseException:  # what cannot be sent or read, which leaves the pipe as it was
                self._free.append(worker)
                raise
            self._free.append(worker)
            if done:
                return found
            raise found
        raise UsageError("workers die again and again on the same work: give them more memory, or take fewer workers")


class _Worker:
    """A process, and this end of its pipe."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the pipe

    def end(self) -> None:
        self.pipe.close()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection) -> None:
    """Make the calls that come, until the pipe ends."""
    # An interrupt, which all processes of a terminal get, ends a worker without a word: the command has one.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    while True:
        try:
            call, args, kwargs = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # what cannot be read here
            answer: tuple[bool, Any] = False, error
        else:
            try:
                answer = True, call(*args, **kwargs)
            except Exception as error:  # whatever the call raises is raised there
                answer = False, error
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception as error:  # what cannot be sent
            pipe.send((False, RuntimeError(f"a worker's answer cannot be sent: {error}")))
