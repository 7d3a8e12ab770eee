"""``batches``: calibration data from a torch DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.types import Input, inputs_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["batches"]

Feed = dict[str, NDArray[np.generic]]


def batches(loader: Iterable[Any], model: AnyModel, count: int | None = None) -> Iterator[Feed]:
    """Yield a feed of ``model`` for each batch of a DataLoader, for the first ``count`` ones if that is given.

    A batch is a tensor, a dict of tensors by input name, or a list or tuple whose first elements are the model's
    inputs in order; what comes behind them (labels) is left out. A batch is cut where the model has a fixed batch size.
    Raises FeedError for a batch that has fewer tensors than the model has inputs.
    """
    inputs = inputs_of(encode(load(model), skeleton=True))
    for batch in islice(loader, count):
        yield from _cut({name: _array(value) for name, value in _named(batch, inputs)}, inputs)


def _named(batch: Any, inputs: tuple[Input, ...]) -> list[tuple[str, Any]]:
    names = [wanted.name for wanted in inputs]
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise FeedError(f"the batch has {', '.join(map(str, batch))}, but the model also takes {missing[0]}")
        return [(name, batch[name]) for name in names]
    values = batch if isinstance(batch, (list, tuple)) else [batch]
    if len(values) < len(names):
        raise FeedError(f"a batch of {len(values)} tensors is not enough for the inputs {', '.join(names)}")
    return list(zip(names, values, strict=False))


def _array(value: Any) -> NDArray[np.generic]:
    return np.asarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)


def _cut(feed: Feed, inputs: tuple[Input, ...]) -> Iterator[Feed]:
    """Yield the feed in pieces of the batch size that the model fixes, if all its inputs fix the same."""
    fixed = {wanted.shape[0] if wanted.shape else None for wanted in inputs}
    size = next(iter(fixed)) if len(fixed) == 1 else None
    length = min((len(value) for value in feed.values() if value.ndim), default=0)
    if not isinstance(size, int) or length <= size:
        yield feed
        return
    for start in range(0, length - size + 1, size):
        yield {name: value[start : start + size] for name, value in feed.items()}
