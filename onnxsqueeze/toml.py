"""Values and tables of TOML: checked when they are read, and as text, which the standard library does not write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

from onnxsqueeze.errors import UsageError

__all__ = ["is_number", "known", "lines", "shown", "table_of", "typed", "written"]


def lines(table: Mapping[str, object]) -> list[str]:
    """Return a line for each key of a table.

    >>> lines({"seed": 7, "odd key": [True, "a"]})
    ['seed = 7', '"odd key" = [true, "a"]']
    """
    return [f"{_key(key)} = {written(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else written(key)


def written(value: object) -> str:
    """Return a value as TOML; a JSON string is a TOML string but for DEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    return repr(value)


def shown(value: object) -> str:
    """Return a value as TOML for an error, cut where it is long."""
    text = written(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def table_of(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table in a table, an empty one if it is not there; UsageError if it is something else."""
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{key} is a table: write [{key}]")
    return cast("Mapping[str, Any]", value)


def typed(table: Mapping[str, Any], key: str, type_: type, words: str) -> Any:
    """Return a value of just this type, None if it is not there; UsageError in ``words`` if it is of another."""
    value = table.get(key)
    if value is not None and type(value) is not type_:
        raise UsageError(f"{key} takes {words}, not {shown(value)}")
    return value


def is_number(value: object) -> bool:
    """Return whether a value is a number that a float can hold, and not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # an integer beyond all floats
        return False


def known(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raise UsageError, which begins with ``where``, for a key that is none of ``names``."""
    for key in table:
        if key not in names:
            near = get_close_matches(key, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{where}no key {key!r}; there are {', '.join(names)}{hint}")
