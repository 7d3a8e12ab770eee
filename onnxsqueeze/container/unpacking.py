"""A container back into its files: blocks are decoded in threads, and come out in order."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from onnxsqueeze.container.decoding import decode
from onnxsqueeze.container.format import Block, Member, scan

__all__ = ["Unpacked"]

LARGE = 1 << 22
"""Bytes of a file from which pages of 2 MiB are asked for."""


class Unpacked:
    """The files of a container, of which nothing but the frame was read yet. Raises ModelError if that is damaged."""

    def __init__(self, data: memoryview, threads: int = 1) -> None:
        self.members, self._blocks = scan(data)
        self._threads = threads

    def chunks(self) -> Iterator[tuple[Member, memoryview]]:
        """Yield the bytes of all files in order, each chunk with its file; a few blocks are in memory at a time."""
        members = iter(self.members)
        member, left = next(members), self.members[0].size
        for block in self._decoded():
            while block:
                while not left:
                    member = next(members)
                    left = member.size
                yield member, block[:left]
                block, left = block[left:], max(left - len(block), 0)

    def read(self) -> dict[str, memoryview]:
        """Return all files in memory, by their names; blocks are decoded where they are to stand.

        Each is a mapping of its own, of which a reader may give parts back to the system.
        """
        found = {each.name: _memory(each.size) for each in self.members}
        work: list[tuple[Block, list[memoryview]]] = []
        rest = deque(data for data in found.values() if data)
        for block in self._blocks:
            room, left = [], block.size
            while left:
                room.append(rest[0][:left])
                rest[0] = rest[0][left:]
                left -= len(room[-1])
                if not rest[0]:
                    rest.popleft()
            work.append((block, room))
        if self._threads <= 1:
            for each in work:
                _into(*each)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                for _ in pool.map(lambda each: _into(*each), work):
                    pass
        return found

    def _decoded(self) -> Iterator[memoryview]:
        if self._threads <= 1:
            yield from map(decode, self._blocks)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            ahead: deque[Future[memoryview]] = deque()
            for block in self._blocks:
                ahead.append(pool.submit(decode, block))
                if len(ahead) > self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def _memory(size: int) -> memoryview:
    if not size:
        return memoryview(b"")
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # there is no choice
            return memoryview(mmap.mmap(-1, size))
        found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # the system's word for it
        raise MemoryError(size) from None
    if size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them; else a page is made 512 times as seldom
            found.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(found)


def _into(block: Block, room: list[memoryview]) -> None:
    """Decode a block into the places, one after the other, that its bytes have in the files."""
    if len(room) == 1:
        decode(block, room[0])
        return
    data = decode(block)
    for place in room:
        place[:] = data[: len(place)]
        data = data[len(place) :]
