"""What a worker does: one chunk of feeds through one model, with one thread."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import onnx

from onnxsqueeze.engine.versions import versions
from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import Feed, Feeds, Input
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.threads import one_thread
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Need
from onnxsqueeze.statistics.sweep import Part, collect
from onnxsqueeze.workers import Workers

__all__ = ["AHEAD", "Task", "digest", "measure", "results"]

AHEAD = 32
"""Chunks that are under way at once."""


@dataclass(frozen=True)
class Task:
    """What is measured on the feeds of numbers ``feeds`` of the calibration part, which has ``total``.

    ``source`` is where a worker reads the data, with ``how``; None if it is handed the feeds. ``key`` is the digest of
    the run, by which a worker knows the model again.
    """

    key: str
    needs: tuple[Need, ...]
    source: str | None
    how: tuple[tuple[str, Any], ...]
    inputs: tuple[Input, ...]
    seed: int
    total: int
    feeds: range = range(0)

    def keyed(self, key: str) -> Task:
        return replace(self, key=key)

    def over(self, feeds: range) -> Task:
        return replace(self, feeds=feeds)


def digest(model: Path, task: Task, calib: Feeds, chunk: int) -> str:
    """Return a digest of all that decides the numbers: model, needs, seed, versions, how many feeds, and the first."""
    found = hashlib.sha256(model.read_bytes())
    found.update(repr((task.needs, task.how, task.seed, task.total, chunk, versions())).encode())
    for name, value in sorted(calib[0].items()):
        found.update(f"{name} {value.dtype} {value.shape}".encode())
        found.update(repr(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes())
    return found.hexdigest()


@one_thread
def measure(model: Any, task: Task, feeds: Sequence[Feed] | None) -> Statistics:
    """Return the statistics of one chunk. ``model`` is the path of the model or its bytes.

    Raises FeedError that names the feed which the model refuses.
    """
    graph = _opened(task.key, model)
    chunk = _Chunk(_read(task) if feeds is None else feeds, task.feeds if feeds is None else range(len(feeds)))
    part = Part(task.feeds.start, task.total, threads=1)
    try:
        return collect(graph, task.needs, chunk, seed=task.seed, part=part)
    except FeedError as error:
        where = chunk.where()
        raise error if where in str(error) else FeedError(f"{where}: {error}") from error


def results(
    workers: Workers, place: Any, tasks: Sequence[Task], feeds: Sequence[Feed] | None, chunks: Sequence[int]
) -> Generator[tuple[int, Statistics], None, None]:
    """Yield ``chunks`` with their statistics, in order; ``feeds`` are those that workers cannot read for themselves."""
    left = deque(chunks)
    for chunk in chunks:
        while left and len(workers) < AHEAD:
            number = left.popleft()
            given = None if feeds is None else [feeds[i] for i in tasks[number].feeds]
            workers.put(measure, place, tasks[number], given)
        yield chunk, workers.take()


class _Chunk(Sequence[Feed]):
    """The feeds of a chunk; it remembers which was read last, to name it."""

    def __init__(self, data: Sequence[Feed], numbers: range) -> None:
        self.data, self.numbers, self.last = data, numbers, numbers.start

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | Sequence[Feed]:
        if isinstance(index, slice):
            return _Chunk(self.data, self.numbers[index])
        self.last = self.numbers[index]
        return self.data[self.last]

    def __iter__(self) -> Iterator[Feed]:
        return (self[index] for index in range(len(self)))

    def where(self) -> str:
        """Say which feed was read last."""
        data = self.data
        return data.load(data.order[self.last])[0] if isinstance(data, Feeds) else f"feed {self.last} of the chunk"


_MODELS: dict[str, Graph] = {}
_DATA: dict[str, Feeds] = {}


def _opened(key: str, model: Any) -> Graph:
    """Return the model; a worker keeps the last one."""
    found = _MODELS.get(key)
    if found is None:
        _MODELS.clear()
        _MODELS[key] = found = load(onnx.load_from_string(model)) if isinstance(model, bytes) else load(model)
    return found


def _read(task: Task) -> Feeds:
    """Return the calibration part of the data; a worker keeps what it last has opened."""
    found = _DATA.get(task.key)
    if found is None:
        _DATA.clear()
        _DATA[task.key] = found = read_feeds(task.source, task.inputs, seed=task.seed, **dict(task.how)).split()[0]
    return found
