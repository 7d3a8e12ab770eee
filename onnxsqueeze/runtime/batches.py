"""Feeds of another batch size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError
from onnxsqueeze.runtime.session import Session

__all__ = ["of_batch", "samples_in"]


def samples_in(feed: Mapping[str, NDArray[np.generic]]) -> int:
    """Return how many samples a feed holds: the first axis that all its arrays share, 1 if they share none."""
    lengths = {value.shape[0] for value in feed.values() if value.ndim}
    return max(next(iter(lengths)), 1) if len(lengths) == 1 else 1


def of_batch(session: Session, feed: Mapping[str, NDArray[np.generic]], count: int) -> dict[str, NDArray[np.generic]]:
    """Return a feed of ``count`` samples, those of ``feed`` again and again; itself if the model does not run on it."""
    lengths = {value.shape[0] for value in feed.values() if value.ndim}
    if len(lengths) != 1 or lengths <= {0, count}:
        return dict(feed)
    chosen = np.arange(count) % next(iter(lengths))
    made = {name: value[chosen] if value.ndim else value for name, value in feed.items()}
    try:
        session.run(made)
    except FeedError:
        return dict(feed)
    return made
