"""Containers with something wrong in them through `unpack`, `load` and `session`, each in a process that may die.

    $ python benchmarks/fuzz/containers.py --count 10000

says what became of them. The same seed makes the same container; `--only SEED` runs one again in this process.

* same: the change touched nothing that counts, and the same bytes came out
* other: the change is one that no checksum can see, such as another name of a file; what the container says came out
* refused: exit code 2 or 3, one sentence, no file left behind
* wrong, bug, crash, hang, memory: ours. Memory is more than ROOM and TIMES the bytes that the header has
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import struct
import sys
import zlib
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from run import MEMORY, Worker, told, where

import onnxsqueeze
from onnxsqueeze.container.encoding import NAMES
from onnxsqueeze.container.format import BLOCK, Block, Member, block, header, numbers, scan
from onnxsqueeze.errors import ModelError, SqueezeError, UsageError

ROOM, TIMES = 64 << 20, 8
VARIANTS = 24
"""Containers that are changed: models of all kinds of numbers, with and without data files, by all coders."""
STATES = ("same", "other", "refused", "wrong", "bug", "crash", "hang", "memory")


@cache
def base(variant: int) -> tuple[bytes, dict[str, bytes]]:
    """Return a container of a small model that runs, and the files in it."""
    rng = np.random.default_rng(variant)
    size = int(rng.integers(16, 120))
    integers = np.clip(rng.laplace(0, 6, (size, 64)) * (np.arange(size)[:, None] % 3), -127, 127).astype(np.int8)
    floats = rng.standard_normal((size, 64)).astype(np.float32)
    arrays = {
        "integers": integers, "floats": floats, "halves": floats.astype(np.float16), "nothing": np.zeros(4000, np.int8),
        "few": floats[0, :16][rng.integers(0, 16, (size, 40))], "noise": np.frombuffer(rng.bytes(3000), np.uint8),
        "longs": np.arange(300), "repeats": np.tile(integers[:4].ravel(), 12),
    }  # fmt: skip
    kept = [name for name in arrays if rng.random() < 0.7] or ["integers"]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(arrays[name]), name) for name in kept]
    nodes = [helper.make_node("Identity", [name], [f"{name} out"]) for name in kept]
    outputs = [helper.make_tensor_value_info(f"{t.name} out", t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], outputs, tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with TemporaryDirectory() as folder:
        path, packed = Path(folder, "m.onnx"), Path(folder, "m.osq")
        outside = variant % 3 == 0
        onnx.save(model, path, save_as_external_data=outside, location="sub.data", size_threshold=64)
        try:
            onnxsqueeze.pack(path, packed, coder=NAMES[variant % len(NAMES)], zstd=variant % 5 == 0)
        except UsageError:
            onnxsqueeze.pack(path, packed)  # Zstandard is not installed
        files = {each.name: each.read_bytes() for each in Path(folder).iterdir() if each != packed}
        return packed.read_bytes(), files


@lru_cache(1)
def made(seed: int) -> tuple[bytes, dict[str, bytes]]:
    """Return a changed container, and the files that it had."""
    rng = np.random.default_rng([seed, 7])
    data, files = base(int(rng.integers(VARIANTS)))
    for _ in range(int(rng.integers(1, 3))):
        with contextlib.suppress(ModelError):  # what is damaged already
            members, blocks = scan(memoryview(data))
            data = CHANGES[int(rng.integers(len(CHANGES)))](rng, data, members, blocks)
    return data, files


def _number(rng: np.random.Generator, most: int, old: int) -> int:
    found = (0, 1, old + 1, max(old - 1, 0), 2 * old, most, most // 2, int(rng.integers(0, most, dtype=np.uint64)))
    return min(int(found[int(rng.integers(len(found)))]), most)


def _edited(rng: np.random.Generator, data: bytes) -> bytes:
    """Return bytes with a few changed, put in, or left out."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, kind = int(rng.integers(len(out) + 1)), int(rng.integers(6))
        if kind < 3 and at < len(out):
            out[at] = (out[at] ^ 1 << int(rng.integers(8)), int(rng.integers(256)), 255)[kind]
        elif kind == 3:
            out[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            del out[at : at + int(rng.integers(1, 9))]
        elif kind == 5 and rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def _with(blocks: list[Block], at: int, meta: bytes | None = None, body: bytes | None = None) -> list[Block]:
    """Return the blocks, one of them with another description or body, and sizes that say so."""
    old = blocks[at]
    meta = bytes(old.meta) if meta is None else zlib.compress(meta)
    body = bytes(old.body) if body is None else body
    return [*blocks[:at], Block(old.size, old.crc, memoryview(meta), memoryview(body)), *blocks[at + 1 :]]


def _joined(members: list[Member], blocks: list[Block]) -> bytes:
    return header(members) + b"".join(block(b.size, b.crc, bytes(b.meta), bytes(b.body)) for b in blocks)


def bits(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Change bytes anywhere, which checksums see."""
    return _edited(rng, data)


def cut(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Cut the file short, or let something follow."""
    return data[: int(rng.integers(len(data)))] if rng.random() < 0.7 else data + rng.bytes(int(rng.integers(1, 99)))


def front(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Give the header other sizes and names, with a checksum that fits."""
    found = list(members)
    at, names = (
        int(rng.integers(len(found))),
        ("../x", "/x", "", ".", "..", "a/../../x", "m\0n", "x" * 60000, "C:\\x", "a/b", "m.onnx"),
    )
    kind = int(rng.integers(5))
    if kind == 0:
        found[at] = Member(found[at].name, _number(rng, 2**64 - 1, found[at].size))
    elif kind == 1:
        found[at] = Member(names[int(rng.integers(len(names)))], found[at].size)
    elif kind == 2:
        found.insert(at, Member(names[int(rng.integers(len(names)))], _number(rng, 2**40, 0)))
    elif kind == 3 and len(found) > 1:
        found.pop(at)
    else:  # the front itself, and the checksum over it
        front = header(members)[:-4]
        changed = _edited(rng, front)
        return changed + struct.pack("<I", zlib.crc32(changed)) + data[len(front) + 4 :]
    return header(found) + data[len(header(members)) :]


def frame(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Give a block other sizes."""
    at = int(rng.integers(len(blocks)))
    parts = [block(b.size, b.crc, bytes(b.meta), bytes(b.body)) for b in blocks]
    fields = list(struct.unpack_from("<IIII", parts[at]))
    field = int(rng.integers(4))
    fields[field] = _number(rng, 2**32 - 1, fields[field])
    parts[at] = struct.pack("<IIII", *fields) + parts[at][16:]
    return header(members) + b"".join(parts)


def description(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Change what a block's description says, deflated again."""
    at = int(rng.integers(len(blocks)))
    old = blocks[at].description()
    # where the coder, lanes and sizes stand, where parts stand, or anywhere
    first, last = ((0, 12), (2 * len(old) // 3, len(old)), (0, len(old)))[int(rng.integers(3))]
    changed = old[:first] + _edited(rng, old[first:last]) + old[last:]
    return _joined(members, _with(blocks, at, changed))


def body(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Change coded planes."""
    at = int(rng.integers(len(blocks)))
    return _joined(members, _with(blocks, at, body=_edited(rng, bytes(blocks[at].body))))


def order(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Let blocks change places, come twice, be missing, or come from another container."""
    found, kind = list(blocks), int(rng.integers(4))
    at = int(rng.integers(len(found)))
    if kind == 0:
        found.append(found.pop(at))
    elif kind == 1:
        found.insert(at, found[at])
    elif kind == 2:
        found.pop(at)
    else:
        found[at] = scan(memoryview(base(int(rng.integers(VARIANTS)))[0]))[1][0]
    return _joined(members, found)


def bomb(rng: np.random.Generator, data: bytes, members: list[Member], blocks: list[Block]) -> bytes:
    """Promise little and hold much, or promise much and hold little."""
    first, kind = blocks[0], int(rng.integers(6))
    much = zlib.compress(bytes(int(rng.integers(2**24, 2**27))), 1) if kind < 2 else b""
    if kind == 0:  # a description without end
        return _joined(members, [Block(first.size, first.crc, memoryview(much), first.body), *blocks[1:]])
    if kind == 1:  # deflated planes that are longer than their part
        said = numbers(0, 0, 0, len(much), 0, first.size, 0, 1, 2)
        return _joined(members, _with(blocks, 0, said, much))
    if kind == 2:  # many lanes, tables, parts of one byte
        few = (
            numbers(int(rng.integers(2)), 1 << 20, 256, 0, 0) + bytes(256 * 256),
            numbers(0, 0, 0, 0, 0) + numbers(1, 0, 1, 0) * first.size,
        )
        return _joined(members, _with(blocks, 0, few[int(rng.integers(2))], bytes(1 << 22)))
    if kind == 3:  # blocks of nothing for a model without end
        count = int(rng.integers(1, 5000))
        nothing = block(BLOCK, 0, b"", b"")
        return header([Member("m.onnx", BLOCK * count)]) + nothing * count
    if kind == 4:  # a Zstandard frame that lies about its size
        size = struct.pack("<Q", 2 ** int(rng.integers(20, 62)))
        lie = bytes.fromhex("28b52ffde0") + size + rng.bytes(20)
        said = numbers(0, 0, 0, 0, len(lie), first.size, 0, 1, 3)
        return _joined(members, _with(blocks, 0, said, lie))
    # rows and columns of a plane by the million
    said = numbers(0, 1, 1, 0, 0) + bytes(256) + numbers(first.size, 0, 1, 1, 2, 2) + bytes(4) + numbers(1)
    return _joined(members, _with(blocks, 0, said, bytes(1 << 20)))


CHANGES = (bits, cut, front, frame, description, description, body, order, bomb)


def case(kind: str, seed: int, face: str) -> dict[str, Any]:
    """Return what becomes of a container: its state, words for it, and MiB beyond what the process had."""
    data, files = made(seed)
    allowed = ROOM
    with contextlib.suppress(SqueezeError):  # "memory beyond what the header allows"
        allowed += TIMES * sum(member.size for member in scan(memoryview(data))[0])
    told("crash", "the process died")
    with TemporaryDirectory() as folder:
        inside = Path(folder, "in")
        inside.mkdir()
        path = inside / "m.osq"
        path.write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        try:
            answer = _through(face, path, files)
        except SqueezeError as error:
            fine = error.exit_code in (2, 3) and len(str(error)) < 500
            answer = {"state": "refused" if fine else "bug", "words": str(error)[:300]}
        except Exception as error:
            answer = {"state": "bug", "words": f"{face}: {type(error).__name__}: {error} {where()}"[:300]}
        grown = _memory("VmHWM") - before
        if [each for each in Path(folder).iterdir() if each != inside]:
            answer = {"state": "wrong", "words": f"{face} wrote outside of the folder"}
        elif answer["state"] == "refused" and sorted(inside.iterdir()) != [path]:
            answer = {"state": "wrong", "words": f"{face} left {sorted(inside.iterdir())}"}
        elif grown > allowed:
            answer = {"state": "memory", "words": f"{face}: {grown >> 20} MiB where {allowed >> 20} are enough"}
    return {**answer, "mib": grown / 2**20}


def _through(face: str, path: Path, files: dict[str, bytes]) -> dict[str, Any]:
    if face == "load":
        onnxsqueeze.load(path)
        return {"state": "same", "words": ""}
    if face == "session":
        try:
            onnxsqueeze.session(path)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            return {"state": "other", "words": "ONNX Runtime does not take the model"}
        return {"state": "same", "words": ""}
    from onnxsqueeze.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main(["unpack", str(path), "-o", str(path.with_name("m.onnx"))])
            code: Any = 0
        except SystemExit as error:
            code = error.code
    words = err.getvalue()
    if code:
        fine = (
            code in (2, 3) and words.startswith("onnxsqueeze: error: ") and words.count("\n") == 1 and len(words) < 500
        )
        return {"state": "refused" if fine else "bug", "words": f"{code}: {words}"[:300]}
    found = {each.name: each.read_bytes() for each in path.parent.iterdir() if each != path and each.is_file()}
    return {"state": "same" if found == files else "other", "words": ""}


def _memory(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def main() -> None:
    """Run containers and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--only", type=int, metavar="SEED", help="run one case in this process")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    faces = ("unpack", "load", "session")
    if given.worker:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for line in sys.stdin:
            print(json.dumps(case(*json.loads(line))), flush=True)
        return
    if given.only is not None:
        for face in faces:
            print(face, case("container", given.only, face))
        return
    counts: Counter[tuple[str, str]] = Counter()
    process, most, ours = Worker(__file__), 0.0, 0
    for seed in range(given.first, given.first + given.count):
        for face in faces:
            answer: dict[str, Any] = process.answer("container", seed, face)
            counts[face, answer["state"]] += 1
            most = max(most, answer.get("mib", 0.0))
            if answer["state"] not in ("same", "other", "refused"):
                ours += 1
                print(f"{answer['state']:6} {seed}  {answer['words']}", flush=True)
    process.stop()
    print(
        f"\nseeds {given.first} to {given.first + given.count - 1}, at most {most:.0f} MiB beyond what the process had"
    )
    print(f"{'':10}", *(f"{state:>8}" for state in STATES))
    for face in faces:
        print(f"{face:10}", *(f"{counts[face, state]:8}" for state in STATES))
    sys.exit(bool(ours))


if __name__ == "__main__":
    main()
