"""The wire form of a model, cut at the raw data of its initializers: that is mapped and streamed, never parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxsqueeze.ir.protos import varint

__all__ = ["CUT", "Malformed", "Truncated", "cut", "fields", "splice"]

CUT = 1024
"""Raw data of fewer bytes stays where it is."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_FEW = 64  # a tensor of more fields is not one with raw data
Field = tuple[int, int, int, int]
"""Number (0 if it has no length), start of the tag, start of the content, end."""


class Malformed(ValueError):
    """Bytes that are not the wire form of a message."""


class Truncated(Malformed):
    """The beginning of a model; the argument is how many bytes are missing at least."""


def cut(data: memoryview) -> tuple[bytes, dict[int, memoryview]]:
    """Return the model ``data`` with empty big initializers, and the raw data of each by its index.

    The order of fields is kept, so that putting the raw data back gives ``data`` again. Raises Malformed.
    """
    graphs = [field for field in fields(data, 0, len(data), model=True) if field[0] == _GRAPH]
    if not graphs:
        return bytes(data), {}
    _, start, inside, end = graphs[0]  # protobuf appends what further parts of it hold
    payloads: dict[int, memoryview] = {}
    parts: list[bytes | memoryview] = []
    done = inside
    index = -1
    for number, tag, content, stop in fields(data, inside, end):
        if number != _INITIALIZER:
            continue
        index += 1
        found = _raw_data(data, content, stop) if stop - content > CUT else None
        if found is None or found[3] - found[2] < CUT:
            continue
        _, raw_tag, raw, raw_end = found
        payloads[index] = data[raw:raw_end]
        tensor = b"".join((data[content:raw_tag], b"\x4a\x00", data[raw_end:stop]))
        parts += [data[done:tag], b"\x2a", varint(len(tensor)), tensor]
        done = stop
    parts.append(data[done:end])
    graph = b"".join(parts)
    return b"".join((data[:start], b"\x3a", varint(len(graph)), graph, data[end:])), payloads


def splice(model: bytes, sizes: Mapping[int, int]) -> Iterator[bytes | int]:
    """Yield the bytes of ``model`` in pieces, and an initializer's index where ``sizes[index]`` raw bytes belong.

    Those initializers must have an empty ``raw_data``; the lengths around it are corrected.
    """
    view = memoryview(model)
    _, start, inside, end = next(field for field in fields(view, 0, len(view)) if field[0] == _GRAPH)
    pieces: list[bytes | int] = []
    length = 0
    done = inside
    index = -1
    for number, tag, content, stop in fields(view, inside, end):
        if number != _INITIALIZER:
            continue
        index += 1
        if index not in sizes:
            continue
        found = _raw_data(view, content, stop)
        if found is None:
            raise Malformed(f"initializer {index} has no empty raw data")
        raw_tag, raw_end = found[1], found[3]
        head = b"".join((view[content:raw_tag], b"\x4a", varint(sizes[index])))
        before = b"".join((view[done:tag], b"\x2a", varint(len(head) + sizes[index] + stop - raw_end), head))
        pieces += [before, index]
        length += len(before) + sizes[index]
        done = raw_end
    length += end - done
    yield b"".join((view[:start], b"\x3a", varint(length)))
    yield from pieces
    yield bytes(view[done:])


def _raw_data(data: memoryview, start: int, end: int) -> Field | None:
    """Return the ``raw_data`` field of a tensor, the last of several."""
    found = None
    for count, field in enumerate(fields(data, start, end)):
        if count > _FEW:
            return None
        if field[0] == _RAW_DATA:
            found = field
    return found


def fields(data: memoryview, start: int, end: int, model: bool = False) -> Iterator[Field]:
    """Yield the fields of the message between ``start`` and ``end``; Truncated if a ``model`` ends inside one."""
    position = start
    while position < end:
        tag = position
        key, position = _read(data, position, end)
        number, kind = key >> 3, key & 7
        content, position = _skip(data, kind, position, end)
        depth = int(kind == 3)
        while depth:
            key, position = _read(data, position, end)
            _, position = _skip(data, key & 7, position, end)
            depth += {3: 1, 4: -1}.get(key & 7, 0)
        if position > end:
            if model and number in _MODEL_FIELDS and data[0] == 8:  # field 1, the IR version, comes first
                raise Truncated(position - end)
            raise Malformed("a field ends after its message")
        yield number if kind == 2 else 0, tag, content, position


def _skip(data: memoryview, kind: int, position: int, end: int) -> tuple[int, int]:
    """Return where the content of a field begins and ends; it may end after ``end``.

    A group is a field of kind 3 without content, any fields, and a field of kind 4 without content.
    """
    if kind == 2:
        length, position = _read(data, position, end)
        return position, position + length
    if kind == 0:
        return position, _read(data, position, end)[1]
    if kind in (1, 5):
        return position, position + (8 if kind == 1 else 4)
    if kind in (3, 4):
        return position, position
    raise Malformed(f"wire type {kind}")


def _read(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise Malformed("a number without end")
