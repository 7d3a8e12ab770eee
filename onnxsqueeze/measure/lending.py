"""Switchboards that workers open, to measure on: each with one thread."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import onnx

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.ir.files import load, serialized
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.measure.switches import Feeds, Switchboard
from onnxsqueeze.runtime.threads import one_thread
from onnxsqueeze.workers import Workers

__all__ = ["Lent", "alone"]

AHEAD = 8
"""Switchboards that are under way at once."""


class Lent:
    """A switchboard as workers are told of it: what ``Switchboard.of`` takes, with what scores its answers."""

    def __init__(
        self,
        opened: tuple[Graph, Sequence[str], Sequence[str], Feeds, int | None],
        score: Callable[[Answers, Answers], float],
        workers: Workers,
    ) -> None:
        graph, switches, outputs, feeds, samples = opened
        self._workers, self._model, self.switches = workers, workers.lend(serialized(graph)), switches
        self._rest = switches, outputs, [dict(feed) for feed in feeds], samples
        self._score, self._key = score, uuid.uuid4().hex

    def put(self, groups: Sequence[Collection[int]]) -> None:
        """Let a worker score the answers with each group of variants switched on; None if the graph does not run."""
        self._workers.put(_errors, self._key, self._model, self._rest, self._score, [tuple(each) for each in groups])

    def scores(self, groups: Sequence[Collection[int]]) -> Iterator[float]:
        """Yield the score of each group by whoever is free; UnmeasuredError if the graph does not run there."""
        for group in groups:
            self.put([group])
        for _ in groups:
            found = self._workers.take()
            if found is None:
                raise UnmeasuredError("a switchboard that runs here does not run in a worker")
            yield found[0]

    def free(self) -> None:
        """Take back what was lent."""
        self._workers.free(self._model)


def alone(boards: Iterable[Lent], workers: Workers) -> Iterator[list[float] | None]:
    """Yield for each switchboard the scores of its variants, each switched on alone; None if it does not run."""
    coming, under_way = iter(boards), deque[Lent]()
    try:
        while True:
            for board in islice(coming, AHEAD - len(under_way)):
                board.put([(number,) for number in range(len(board.switches))])
                under_way.append(board)
            if not under_way:
                return
            found = workers.take()
            under_way.popleft().free()
            yield found
    finally:
        workers.drop()


_STATE = threading.local()


@one_thread
def _errors(
    key: str,
    model: Any,
    rest: tuple[Sequence[str], Sequence[str], Feeds, int | None],
    score: Callable[[Answers, Answers], float],
    groups: Sequence[Collection[int]],
) -> list[float] | None:
    """Return the scores of answers; a worker keeps the switchboard that it has last opened."""
    if getattr(_STATE, "key", None) != key:
        _STATE.key = _STATE.board = None
        graph = load(onnx.load_from_string(model) if isinstance(model, bytes) else model)
        try:
            _STATE.board = Switchboard.of(graph, *rest)
        except UnmeasuredError:
            return None
        _STATE.key = key
    board: Switchboard = _STATE.board
    return [score(board.expected, board.answers(group)) for group in groups]
