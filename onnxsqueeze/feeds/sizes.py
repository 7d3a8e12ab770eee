"""The sizes at which a model with open axes is looked at: those of data, those that were given, or made-up ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import Input, inputs_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph

__all__ = ["Taken", "Wanted", "taken"]

Wanted = Mapping[str, "int | Sequence[int]"]
"""Sizes of open axes by their names, and shapes of inputs by theirs."""


@dataclass(frozen=True)
class Taken:
    """The shapes of the inputs that costs and times are those of, and where they come from.

    ``source`` names the data, is "given" or "made up", and is empty where the model leaves nothing open.
    """

    shapes: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        whose = {"": "", "given": ", as given", "made up": ", made-up sizes"}.get(self.source, f" of {self.source}")
        return f"for a feed of {', '.join(self.shapes)}{whose}"


def taken(
    graph: Graph, calibration: Any, sizes: Wanted | None = None, *, runs: bool = False, **how: Any
) -> tuple[Sequence[dict[str, NDArray[np.generic]]], Taken | None]:
    """Return the feeds to look at a model on, and what sizes these have; ``how`` goes to ``read``.

    Without ``calibration`` they are random, and none if there can be none; where the model ``runs`` on them FeedError
    says why. Raises UsageError for ``sizes`` that the model does not have.
    """
    inputs = inputs_of(encode(graph, skeleton=True))
    if calibration is not None and sizes:
        raise UsageError("sizes are for a feed that is made up, and calibration data have their own: leave one out")
    wanted = _sized(inputs, sizes or {})
    path = None if graph.file is None else graph.file.path
    try:
        feeds = read_feeds("random" if calibration is None else calibration, wanted, model_path=path, **how)
        feed = feeds[0]
    except (FeedError, TypeError):  # TypeError: an element type that NumPy has not
        if runs or calibration is not None:
            raise
        return (), None
    shapes = tuple(f"{name} {'x'.join(map(str, value.shape)) or 'scalar'}" for name, value in feed.items())
    if not feeds.invented:
        return feeds, Taken(shapes, feeds.source)
    left = any(_open(each) for each in wanted)
    return feeds, Taken(shapes, "made up" if left else "given" if any(_open(each) for each in inputs) else "")


def _open(wanted: Input) -> bool:
    return wanted.shape is None or not all(isinstance(size, int) for size in wanted.shape)


def _sized(inputs: tuple[Input, ...], sizes: Wanted) -> tuple[Input, ...]:
    """Return the inputs with sizes in the place of symbols."""
    symbols = dict.fromkeys(d for each in inputs for d in each.shape or () if isinstance(d, str))
    names = {each.name for each in inputs}
    for name, size in sizes.items():
        if name not in symbols and name not in names:
            has = ", ".join(f"'{each}'" for each in (*symbols, *sorted(names)))
            raise UsageError(f"sizes: the model has no input and no open axis '{name}'; it has {has}")
        values = [size] if isinstance(size, int) else list(size)
        if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise UsageError(f"sizes: '{name}' takes whole numbers from 1 on, not {size!r}")
        if name not in names and len(values) != 1:
            raise UsageError(f"sizes: '{name}' is one axis and takes one number, not {len(values)}")
    found = []
    for each in inputs:
        shape = each.shape
        whole = sizes.get(each.name)
        if whole is not None:
            given = [whole] if isinstance(whole, int) else list(whole)
            fits = shape is None or len(shape) == len(given)
            if not fits or any(isinstance(d, int) and d != v for d, v in zip(shape or (), given, strict=False)):
                raise UsageError(f"sizes: '{each.name}' is {each}, which {'x'.join(map(str, given))} does not fit")
            shape = tuple(given)
        elif shape is not None:
            shape = tuple(_size(sizes[d]) if isinstance(d, str) and d in sizes else d for d in shape)
        found.append(replace(each, shape=shape))
    return tuple(found)


def _size(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]
