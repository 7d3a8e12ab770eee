"""Profiles of targets: TOML files that inherit from each other, in which every line has a source.

A file has the tables of ``Target``. ``[source.ID]`` says where something is known from: ``text``, ``date`` and
``confidence`` (measured, documented, recalled or predicted). ``[sources]`` says which source stands behind what: by the
key of a line (``"weights.symmetric"``), else of a table inside (``"times.carry"``), else of a section (``weights``).
A line that the file leaves out is that of its ``base``.
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from onnxsqueeze.errors import UsageError
from onnxsqueeze.targets.processor import matches
from onnxsqueeze.targets.target import Line, Target
from onnxsqueeze.toml import known, table_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULT", "default", "find", "names"]

FOLDER = Path(__file__).parent
DEFAULT = "ort-x64"
"""What plans are made for unless something else is asked for."""
NATIVE = "native"
"""The name of the profile that fits this machine best."""
HERE = "this is the machine that the plan is for", "2026-11-30", "recalled"
"""Why the clock counts on it."""
LARGEST = 1 << 20
"""Bytes of a profile."""
DEEPEST = 8
"""Profiles that may stand on one another."""
CONFIDENCE = ("measured", "documented", "predicted", "recalled")
HEAD = {"name": str, "version": int, "summary": str, "runtime": str, "base": str}
BESIDE = ("target", "source", "sources", "processor", "points")
"""Tables that are no sections: ``processor`` says which machines a profile fits, ``points`` what was measured."""


@dataclass(frozen=True)
class _File:
    """One file: what its head says, its own lines by key, and the machines it fits."""

    head: Mapping[str, Any]
    lines: Mapping[str, Line]
    processor: Mapping[str, Any]


def names() -> list[str]:
    """Return the names of the profiles that come with the project."""
    return sorted([path.stem for path in FOLDER.glob("*.toml")] + [NATIVE])


@lru_cache(1)
def default() -> Target:
    """Return the profile that plans are made for unless another is asked for."""
    return find(DEFAULT)


def find(name: str | os.PathLike[str]) -> Target:
    """Return the profile of this name, or in this file. Raises UsageError in one sentence that says what is wrong.

    What is made for this machine may be timed on it: that ``NATIVE`` says so is all that it changes.
    """
    path = _path(os.fspath(name), Path())
    chain = [_read(path)]
    while base := chain[-1].head.get("base", ""):
        if len(chain) == DEEPEST:
            raise UsageError(f"the target {path}: over {DEEPEST} profiles stand on one another: does one name itself?")
        path = _path(base, path.parent)
        chain.append(_read(path))
    found: dict[str, Line] = {}
    for file in reversed(chain):
        found.update(file.lines)
    if os.fspath(name) == NATIVE:
        found["verify.clock"] = Line("verify.clock", "measured", NATIVE, *HERE)
    return _target(chain[0].head, found)


def _path(name: str, folder: Path) -> Path:
    """Return the file of a name; of a path, which counts from the folder of the file that names it."""
    if name == NATIVE:
        return _fitting()
    if name.endswith(".toml"):
        return folder / name
    path = FOLDER / f"{name}.toml"
    if name in names():
        return path
    near = get_close_matches(name, names(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"no target {name!r}; there are {', '.join(names())}, or give a file that ends with .toml{hint}")


def _fitting() -> Path:
    """Return the file of the profile that asks most of the processor of this machine and gets it."""
    scores = [(matches(_read(path).processor), path) for path in sorted(FOLDER.glob("*.toml"))]
    best = max(scores, key=lambda each: each[0])
    return best[1] if best[0] > 0 else FOLDER / f"{DEFAULT}.toml"


# ---------------------------------------------------------------------------------------------------- one file


@lru_cache(64)
def _parsed(path: Path, stamp: tuple[int, int]) -> _File:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the target {path} is not TOML: {error}") from None
    try:
        return _file(table)
    except UsageError as error:
        raise UsageError(f"the target {path}: {error}") from None


def _read(path: Path) -> _File:
    try:
        state = path.stat()
    except OSError as error:
        raise UsageError(f"the target {path} cannot be read: {error.strerror}") from None
    if not path.is_file() or state.st_size > LARGEST:
        raise UsageError(f"the target {path} is no file of a profile: those have at most {LARGEST >> 20} MB")
    return _parsed(path, (state.st_mtime_ns, state.st_size))


def _file(table: Mapping[str, Any]) -> _File:
    known(table, [*_SECTIONS, *BESIDE], "")
    head, sources = table_of(table, "target"), table_of(table, "source")
    known(head, list(HEAD), "[target] ")
    for key, type_ in HEAD.items():
        if type(head.get(key, "" if key == "base" else None)) is not type_:
            raise UsageError(f"[target] {key} takes {'an integer' if type_ is int else 'text'}")
    for name, each in sources.items():
        _source(name, each)
    behind = table_of(table, "sources")
    lines = {}
    for section in _SECTIONS:
        for key, value in _flat(table_of(table, section), section, _SECTIONS[section]):
            lines[key] = _line(key, value, head["name"], behind, sources)
    for key in behind:
        if not any(line == key or line.startswith(key + ".") for line in lines):
            raise UsageError(f"[sources] {key!r} stands behind no line of this file")
    return _File(head, lines, table_of(table, "processor"))


def _source(name: str, each: object) -> None:
    if not isinstance(each, dict) or set(each) != {"text", "date", "confidence"}:
        raise UsageError(f"[source.{name}] has text, date and confidence, and nothing else")
    if not isinstance(each["text"], str) or not isinstance(each["date"], date):
        raise UsageError(f"[source.{name}] text is text, and date a date like 2026-11-30")
    if each["confidence"] not in CONFIDENCE:
        raise UsageError(f"[source.{name}] confidence is one of {', '.join(CONFIDENCE)}, not {each['confidence']!r}")


def _line(key: str, value: object, profile: str, behind: Mapping[str, Any], sources: Mapping[str, Any]) -> Line:
    parts = key.split(".")
    names_ = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    source = next((behind[name] for name in names_ if name in behind), None)
    if source is None:
        raise UsageError(f"{key} has no source: say in [sources] which [source.ID] stands behind it")
    if not isinstance(source, str) or source not in sources:
        raise UsageError(f"[sources] names {source!r} behind {key}, and there is no [source.{source}]")
    told = sources[source]
    return Line(key, value, profile, told["text"], str(told["date"]), told["confidence"])


def _flat(table: Mapping[str, Any], where: str, type_: Any) -> Iterator[tuple[str, object]]:
    """Yield the lines of a section by key, their values as the fields of its dataclass have them."""
    hints = typing.get_type_hints(type_)
    known(table, list(hints), f"[{where}] ")
    for key, value in table.items():
        if typing.get_origin(hints[key]) is Mapping:
            if not isinstance(value, dict):
                raise UsageError(f"{where}.{key} is a table: write [{where}.{key}]")
            inner = typing.get_args(hints[key])[1]
            yield from (
                (f"{where}.{key}.{name}", _value(each, inner, f"{where}.{key}.{name}")) for name, each in value.items()
            )
        else:
            yield f"{where}.{key}", _value(value, hints[key], f"{where}.{key}")


def _value(value: object, type_: Any, where: str) -> Any:
    """Return a value as a field of this type has it; UsageError if it does not fit."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_value(each, arguments[0], where) for each in value)
        if len(value) == len(arguments):
            return tuple(_value(each, inner, where) for each, inner in zip(value, arguments, strict=True))
    if origin is Literal and value in arguments:
        return value
    if type_ is float and type(value) in (int, float) and 0 <= float(typing.cast(float, value)) < float("inf"):
        return float(typing.cast(float, value))
    if type_ in (int, str, bool) and type(value) is type_:
        return value
    raise UsageError(f"{where} takes {_words(type_)}, not {value!r}")


def _words(type_: Any) -> str:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple:
        inner = _words(arguments[0]).removeprefix("a ").removeprefix("an ")
        return (
            f"a list of {inner}"
            if arguments[-1] is Ellipsis
            else f"a list of {len(arguments)}, each {_words(arguments[0])}"
        )
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    assert not isinstance(type_, UnionType)
    return {float: "a number of 0 or more", int: "an integer", str: "text", bool: "true or false"}[type_]


# ---------------------------------------------------------------------------------------------------- all of them

_SECTIONS: Mapping[str, Any] = {
    name: type_ for name, type_ in typing.get_type_hints(Target).items() if is_dataclass(type_)
}
"""The tables of a profile, and the dataclasses that hold them."""


def _target(head: Mapping[str, Any], lines: Mapping[str, Line]) -> Target:
    made: dict[str, Any] = {}
    for section, type_ in _SECTIONS.items():
        values: dict[str, Any] = {}
        for field in fields(type_):
            key = f"{section}.{field.name}"
            inside = {k.removeprefix(key + "."): line.value for k, line in lines.items() if k.startswith(key + ".")}
            if key not in lines and not inside:
                raise UsageError(f"the target {head['name']} has no line {key}, nor has its base: add it, or a base")
            values[field.name] = lines[key].value if key in lines else inside
        made[section] = type_(**values)
    return Target(**{key: head.get(key, "") for key in HEAD}, **made, lines=tuple(lines[key] for key in sorted(lines)))
