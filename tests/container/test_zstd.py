"""Zstandard, the extra: a sentence without it, the same bytes with it, and no more memory than was asked for."""

from __future__ import annotations

import pytest

from onnxsqueeze.container import zstd
from onnxsqueeze.container.encoding import NAMES, Piece, encode
from onnxsqueeze.errors import ModelError, UsageError


@pytest.mark.parametrize(("coder", "with_zstd"), [("rans", True), ("zstd", False)])
def test_without_it_a_sentence_says_what_to_install(
    coder: str, with_zstd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(zstd, "import_module", missing)
    data = bytes(range(10)) * 1000 + b"a name of a tensor" * 9
    with pytest.raises(UsageError, match=r"this needs Zstandard: pip install 'onnxsqueeze\[zstd\]'"):
        encode(memoryview(data), [Piece(10_000, 1, 10), Piece(162)], NAMES.index(coder), with_zstd)
        zstd.decompress(memoryview(b"abc"), 3)


def test_frames_that_lie_are_refused() -> None:
    pytest.importorskip("zstandard")
    frame = zstd.compress(b"abc" * 1000)

    assert bytes(zstd.decompress(memoryview(frame), 3000)) == b"abc" * 1000
    for data, size in ((frame, 2999), (frame, 3001), (frame[:-2], 3000), (b"abcdefgh", 8), (frame[:4], 3000)):
        with pytest.raises(ModelError):
            zstd.decompress(memoryview(data), size)
