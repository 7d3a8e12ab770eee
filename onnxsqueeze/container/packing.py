"""Files into a container, block by block: memory holds one block, however large the files are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnxsqueeze.container.encoding import Piece, encode
from onnxsqueeze.container.format import Member, header

__all__ = ["Source", "packed"]

TARGET = 1 << 22
"""Raw bytes of a block, unless a single row is longer."""
HARD = 1 << 24


@dataclass(frozen=True)
class Source:
    """A file to pack: its name in the container, its bytes, and the pieces that they are cut into, in order."""

    name: str
    data: memoryview
    pieces: Sequence[Piece]


def packed(
    sources: Sequence[Source], coder: int = 0, with_zstd: bool = False, sizes: dict[int, float] | None = None
) -> Iterator[bytes]:
    """Yield the container of these files, the model first; ``sizes`` gets about the bytes of each tensor in it."""
    yield header([Member(source.name, len(source.data)) for source in sources])
    for data, pieces in _blocks(sources):
        block, shares = encode(data, pieces, coder, with_zstd)
        for piece, share in zip(pieces, shares, strict=True):
            if sizes is not None:
                sizes[piece.tensor] = sizes.get(piece.tensor, 0.0) + share
        yield block


def _blocks(sources: Sequence[Source]) -> Iterator[tuple[memoryview, list[Piece]]]:
    """Yield the bytes of every block with its pieces; a block may hold parts of two files."""
    held: list[memoryview] = []
    pieces: list[Piece] = []
    size = 0
    for source in sources:
        at = 0
        for piece in source.pieces:
            for part in _cut(piece):
                if size and size + part.size > TARGET:
                    yield _joined(held), pieces
                    held, pieces, size = [], [], 0
                held.append(source.data[at : at + part.size])
                pieces.append(part)
                at += part.size
                size += part.size
    if size:
        yield _joined(held), pieces


def _joined(held: list[memoryview]) -> memoryview:
    return held[0] if len(held) == 1 else memoryview(b"".join(held))


def _cut(piece: Piece) -> Iterator[Piece]:
    """Yield the piece in parts that fit into a block, cut between rows unless a row is too long."""
    if piece.size <= TARGET:
        yield piece
        return
    width = max(piece.width, 1)
    row = piece.columns * width
    if row > HARD:
        piece, row = replace(piece, columns=1), width
    step = max(TARGET // row, 1) * row
    for at in range(0, piece.size, step):
        yield replace(piece, size=min(step, piece.size - at))
