"""Values and tables as TOML text, which the standard library reads and does not write."""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["lines", "written"]


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
