"""A container back into its files: blocks are decoded in threads, and come out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from onnxsqueeze.container.decoding import decode
from onnxsqueeze.container.format import Member, scan

__all__ = ["Unpacked"]


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
        """Return all files in memory, by their names."""
        found = {member.name: bytearray(member.size) for member in self.members}
        at = dict.fromkeys(found, 0)
        for member, chunk in self.chunks():
            found[member.name][at[member.name] : at[member.name] + len(chunk)] = chunk
            at[member.name] += len(chunk)
        return {name: memoryview(data) for name, data in found.items()}

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
