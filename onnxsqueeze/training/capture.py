"""Tensors of a model on feeds, from a part of it that computes no more than these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.slices import cut

__all__ = ["KEPT", "captured", "fewer"]

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
T = TypeVar("T")
GOLDEN = (5**0.5 - 1) / 2
KEPT = 1 << 28
"""Bytes of inputs and targets that are kept in memory at a time; of more, evenly spread feeds are left out."""


def captured(model: onnx.ModelProto, folder: Path | None, feeds: Feeds, names: Sequence[str]) -> list[dict[str, Array]]:
    """Return the named tensors of a model on each feed, whose names are the same in all; what is fed is not computed.

    Feeds may have tensors from inside the model besides its inputs.
    """
    session: Session | None = None
    found: list[dict[str, Array]] = []
    for feed in feeds:
        direct = {name: np.asarray(feed[name]) for name in names if name in feed}
        wanted = [name for name in names if name not in direct]
        if session is None and wanted:
            session = Session(_anywhere(model, feed, wanted), folder)
        answers = {} if session is None else session.run({name: feed[name] for name in session.inputs})
        found.append({name: direct[name] if name in direct else np.asarray(answers[name]) for name in names})
    return found


def fewer(feeds: Sequence[T], share: float) -> Sequence[T]:
    """Return a share of the feeds, at least one, evenly spread; of a smaller share all are in a larger one.

    The first of the multiples of the golden ratio in order of their fractions are spread so (Weyl 1916).
    """
    count = max(int(len(feeds) * share), 1)
    return [feeds[i] for i in sorted(sorted(range(len(feeds)), key=lambda i: i * GOLDEN % 1)[:count])]


def _anywhere(model: onnx.ModelProto, feed: Mapping[str, Array], names: Sequence[str]) -> onnx.ModelProto:
    """Return a part of the model whose inputs take feeds of all shapes."""
    part = cut(model, {name: np.asarray(value) for name, value in feed.items()}, names)
    own = {value.name: value for value in model.graph.input}
    for value in part.graph.input:
        if value.name in own:
            value.CopyFrom(own[value.name])
        else:
            kind, rank = value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, [None] * rank))
    return part
