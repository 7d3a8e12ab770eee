"""Data as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real

__all__ = ["fields_of", "plain"]


def fields_of(value: object) -> dict[str, object]:
    """Return the fields of a dataclass that take part in its equality; a site's ``work`` is not for the reader."""
    return {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.compare}  # type: ignore[arg-type]


def plain(value: object) -> object:
    """Return ``value`` as JSON values; infinities become "inf" and "-inf", NaN null, dataclasses mappings.

    >>> plain({"sqnr_db": math.inf, "shape": (2, 3)})
    {'sqnr_db': 'inf', 'shape': [2, 3]}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if is_dataclass(value):
        return fields_of(value)
    return str(value)
