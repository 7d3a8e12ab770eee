"""Containers: every byte comes back, by three decoders; sizes are near the entropy; damage is a sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxsqueeze.container import contexts, encoding, format, huffman, others, planes, rans, tables
from onnxsqueeze.container.decoding import decode
from onnxsqueeze.container.encoding import Piece
from onnxsqueeze.container.format import Block, Member, Numbers
from onnxsqueeze.container.packing import TARGET, Source, packed
from onnxsqueeze.container.unpacking import Unpacked
from onnxsqueeze.errors import ModelError, SqueezeError

ROOT = Path(__file__).parents[2]
Bytes = NDArray[np.uint8]


def laplace(shape: tuple[int, ...], scale: float, seed: int = 0) -> NDArray[np.int8]:
    found = np.random.default_rng(seed).laplace(0, scale, shape)
    return np.asarray(np.clip(np.rint(found), -127, 127), np.int8)


def weights() -> list[tuple[NDArray[Any], Piece]]:
    """Arrays of all kinds, each as the piece that it is."""
    rng = np.random.default_rng(1)
    rows = laplace((96, 200), 5) * (np.arange(96)[:, None] % 3)
    floats = rng.standard_normal((120, 64)).astype(np.float32)
    clustered = rng.standard_normal(16).astype(np.float32)[rng.integers(0, 16, (50, 40))]
    packed4 = (rng.integers(0, 256, (80, 60)) & rng.integers(0, 256, (80, 60))).astype(np.uint8)
    text = np.frombuffer(b"a name of a tensor, " * 60, np.uint8)
    every: list[tuple[NDArray[Any], Piece]] = [
        (text, Piece(text.nbytes)),
        (rows.astype(np.int8), Piece(rows.size, 1, 200)),
        (floats, Piece(floats.nbytes, 4, 64, floating=True)),
        (floats.astype(np.float16), Piece(floats.size * 2, 2, 64, floating=True)),
        (floats.astype(np.float64), Piece(floats.size * 8, 8, 64, floating=True)),
        (clustered, Piece(clustered.nbytes, 4, 40, floating=True)),
        (packed4, Piece(packed4.size, 1, 60, packed=True)),
        (np.arange(300, dtype=np.int64), Piece(2400, 8, 300)),
        (np.zeros(5000, np.int8), Piece(5000, 1, 5000)),
        (np.frombuffer(rng.bytes(5000), np.uint8), Piece(5000, 1, 50)),
        (np.full(70, 7, np.int8), Piece(70, 1, 70)),
    ]
    return [(array, Piece(**{**vars(piece), "tensor": i})) for i, (array, piece) in enumerate(every)]


def container(coder: int = 0, with_zstd: bool = False) -> tuple[bytes, bytes]:
    """Return a container of all kinds of pieces in two files, and the first file."""
    every = weights()
    first = b"".join(array.tobytes() for array, _ in every)
    second = every[1][0].tobytes()
    sources = [Source("m.onnx", memoryview(first), [p for _, p in every])]
    sources += [Source("data/w.bin", memoryview(second), [every[1][1]]), Source("empty", memoryview(b""), [])]
    return b"".join(packed(sources, coder, with_zstd)), first


def other_decoder() -> Callable[[bytes], dict[str, bytes]]:
    spec = importlib.util.spec_from_file_location("osq_decoder", ROOT / "docs/examples/osq_decoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[bytes], dict[str, bytes]] = module.unpack
    return found


@pytest.mark.parametrize("coder", [0, 1, 2])
def test_every_kind_of_number_comes_back_by_both_decoders(coder: int) -> None:
    data, first = container(coder)
    found = Unpacked(memoryview(data), threads=2).read()

    assert list(found) == ["m.onnx", "data/w.bin", "empty"]
    assert bytes(found["m.onnx"]) == first
    assert {name: bytes(each) for name, each in found.items()} == other_decoder()(data)
    assert data == container(coder)[0]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("coder", [0, 1, 2])
def test_the_decoder_for_browsers_gives_the_same(coder: int, tmp_path: Path) -> None:
    data, first = container(coder)
    (tmp_path / "m.osq").write_bytes(data)
    shutil.copy(ROOT / "docs/examples/osq.js", tmp_path / "osq.mjs")
    (tmp_path / "run.mjs").write_text(
        'import {unpack} from "./osq.mjs"; import fs from "fs";'
        'const files = await unpack(new Uint8Array(fs.readFileSync("m.osq"))); let i = 0;'
        "for (const [name, data] of files) fs.writeFileSync(`${i++}.bin`, data);"
        "console.log(JSON.stringify([...files.keys()]));"
    )
    ran = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert json.loads(ran.stdout) == ["m.onnx", "data/w.bin", "empty"]
    assert (tmp_path / "0.bin").read_bytes() == first
    assert (tmp_path / "1.bin").read_bytes() == weights()[1][0].tobytes()


@pytest.mark.parametrize("coder", [rans, huffman])
@pytest.mark.parametrize("scale", [0.2, 2.0, 20.0])
def test_symbols_take_their_entropy(coder: Any, scale: float) -> None:
    symbols = laplace((200_000,), scale).view(np.uint8)
    counts = np.bincount(symbols, minlength=256)
    codes = coder.table(counts)[None]
    none = np.zeros(len(symbols), np.uint8)
    data = coder.encode(symbols, none, codes, 32)
    share = counts[counts > 0] / len(symbols)
    entropy = -float(np.sum(share * np.log2(share)))
    bits = 8 * len(data) / len(symbols)

    assert np.array_equal(coder.decode(memoryview(data), None, codes, 32, len(symbols)), symbols)
    assert entropy <= bits < (1.004 * entropy + 0.01 if coder is rans else entropy + 1)
    assert bits == pytest.approx(float(counts @ coder.lengths(codes[0])) / len(symbols), abs=0.02)


@given(st.lists(st.integers(0, 10**6), min_size=256, max_size=256).filter(any))
def test_tables_are_whole(counts: list[int]) -> None:
    array = np.array(counts)
    share = tables.frequencies(tables.code(array))

    assert share.sum() == tables.SLOTS
    assert ((share > 0) == (array > 0)).all()
    assert len(tables.slots(share)) == tables.SLOTS
    lengths = huffman.table(array).astype(int)
    assert sum(2.0 ** -(each - 1) for each in lengths if each) == 1


@given(st.integers(1, 40), st.sampled_from([(0, 1), (1, 1), (2, 2), (2, 4), (3, 2), (3, 4), (3, 8)]), st.randoms())
def test_planes_join_to_what_was_split(count: int, kind: tuple[int, int], random: Any) -> None:
    data = bytes(random.randrange(256) for _ in range(count * kind[1]))
    out = bytearray(len(data))
    planes.join(planes.split(memoryview(data), *kind), *kind, None, memoryview(out))

    assert bytes(out) == data


def test_rows_and_columns_that_differ_get_classes_and_alike_ones_none() -> None:
    alike = laplace((256, 256), 3).view(np.uint8)
    differ = (laplace((256, 256), 3) // np.where(np.arange(256) % 2, 1, 3)[:, None]).astype(np.int8).view(np.uint8)

    assert contexts.classes(alike.reshape(-1), (256, 256)).counts.shape == (1, 1, 256)
    assert contexts.classes(differ.reshape(-1), (256, 256)).counts.shape[0] > 1
    assert contexts.classes(np.ascontiguousarray(differ.T).reshape(-1), (256, 256)).counts.shape[1] > 1


def test_planes_of_one_spread_share_a_table() -> None:
    many = [laplace((64, 64), 4, seed) for seed in range(8)]
    pieces = [Piece(each.size, 1, 64) for each in many]
    data, shares = encoding.encode(memoryview(b"".join(each.tobytes() for each in many)), pieces)
    _, blocks = format.scan(memoryview(format.header([Member("m", 8 * 4096)]) + data))
    reader = Numbers(blocks[0].description())

    assert [reader.next(1000) for _ in range(3)][2] == 1
    assert sum(shares) == pytest.approx(len(data), rel=0.02)


def test_large_files_are_cut_into_blocks_between_rows() -> None:
    large = laplace((6000, 1000), 2)
    other = np.zeros(100, np.uint8)
    sources = [Source("m", memoryview(large.tobytes()), [Piece(large.size, 1, 1000)])]
    sources.append(Source("n", memoryview(other.tobytes()), [Piece(100)]))
    unpacked = Unpacked(memoryview(b"".join(packed(sources))), threads=3)
    sizes = [block.size for block in unpacked._blocks]

    assert sizes[0] == TARGET // 1000 * 1000
    assert sum(sizes) == 6_000_100
    assert unpacked.read()["m"] == large.tobytes()


def test_repetitions_are_found() -> None:
    row = np.frombuffer(np.random.default_rng(0).bytes(500), np.int8)
    data, _ = encoding.encode(memoryview(np.tile(row, 100).tobytes()), [Piece(50_000, 1, 500)])

    assert len(data) < 2000


def test_the_coder_of_zlib_writes_huffman_codes_for_numbers_and_repetitions_for_text() -> None:
    numbers, text = laplace((400, 1000), 3), b"a name of a tensor, " * 100
    pieces = [Piece(len(text)), Piece(numbers.size, 1, 1000), Piece(len(text))]
    data = text + numbers.tobytes() + text
    sizes = {}
    for coder in range(3):
        made, shares = encoding.encode(memoryview(data), pieces, coder)
        sizes[coder] = len(made)
        assert sum(shares) == pytest.approx(len(made), abs=500)
        assert bytes(only_block(made)) == data

    assert 1.0 < sizes[2] / sizes[0] < 1.025
    assert sizes[2] < 1.01 * sizes[1]


def only_block(made: bytes) -> memoryview:
    size, crc, meta, body = struct.unpack_from("<IIII", made)
    return decode(Block(size, crc, memoryview(made)[16 : 16 + meta], memoryview(made)[-body:]))


@pytest.mark.parametrize(("coder", "with_zstd"), [(0, True), (1, True), (2, True), (3, False), (3, True)])
def test_zstd_comes_back_by_both_decoders(coder: int, with_zstd: bool) -> None:
    pytest.importorskip("zstandard")
    data, first = container(coder, with_zstd)

    assert bytes(Unpacked(memoryview(data)).read()["m.onnx"]) == first == other_decoder()(data)["m.onnx"]
    assert data != container(coder)[0] or coder == 3


def test_others_are_told() -> None:
    name, size = next(others.others(memoryview(bytes(10_000))))

    assert (name, size < 100) == ("gzip -9", True)


@pytest.mark.parametrize("coder", [0, 2])
def test_damage_is_an_error_and_nothing_else(coder: int) -> None:
    """Flips, cuts and overwrites anywhere; the checksum finds what the frame does not."""
    data, _ = container(coder)
    rng = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(data)
        kind = rng.integers(0, 3)
        at = int(rng.integers(0, len(damaged)))
        if kind == 0:
            damaged[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del damaged[at:]
        else:
            damaged[at : at + 4] = rng.bytes(4)
        if bytes(damaged) == data:
            continue
        with pytest.raises(ModelError):
            Unpacked(memoryview(bytes(damaged))).read()


def test_descriptions_that_were_made_to_harm_are_refused() -> None:
    """The description is deflated, so that flips rarely reach it: here it is damaged and deflated again."""
    data, _ = container()
    _, blocks = format.scan(memoryview(data))
    block = blocks[0]
    meta = block.description()
    rng = np.random.default_rng(4)
    for _ in range(400):
        damaged = bytearray(meta)
        for _ in range(int(rng.integers(1, 4))):
            spot = int(rng.integers(0, 8)) if rng.random() < 0.3 else int(rng.integers(0, len(damaged)))
            damaged[spot] = int(rng.integers(0, 256))
        harmful = Block(block.size, block.crc, memoryview(zlib.compress(bytes(damaged))), block.body)
        try:
            assert bytes(decode(harmful)) == bytes(decode(block))
        except SqueezeError:  # a description may ask for Zstandard, which may be missing
            continue
    bomb = Block(100, 0, memoryview(zlib.compress(bytes(1 << 22))), block.body)
    with pytest.raises(ModelError, match="description of a block is damaged"):
        decode(bomb)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2**62)))
def test_numbers_come_back(values: list[int]) -> None:
    reader = Numbers(format.numbers(*values))

    assert [reader.next(2**62) for _ in values] == values
    with pytest.raises(ModelError):
        reader.next(2**62)


@pytest.mark.parametrize(
    ("members", "words"),
    [([Member("a", 10), Member("a", 10)], "two files of one name"), ([Member("a", 1 << 60)], "cut short")],
)
def test_headers_that_lie_are_refused(members: list[Member], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Unpacked(memoryview(format.header(members)))
