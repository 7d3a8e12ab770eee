"""More inputs of those that there are: the teacher answers any input, so that none needs a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mixed"]

Array = NDArray[Any]
SHIFT = 12
"""Images are moved by up to one part in so many of their height and width."""


def mixed(feeds: Sequence[Mapping[str, Array]], times: int, rng: np.random.Generator) -> list[dict[str, Array]]:
    """Return ``times`` as many further feeds as there are: of two feeds x and x′ each, ``λx + (1 − λ)x′``.

    λ is drawn evenly from [0, 1] for each sample (mixup; Zhang et al. 2018, here without labels). Inputs of four axes,
    taken for images (N, C, H, W), are moved a little besides, and what moves in repeats the edge. There are none where
    an input is no float or where shapes differ.
    """
    if len(feeds) < 2 or not all(value.dtype == np.float32 and value.ndim for each in feeds for value in each.values()):
        return []
    found = []
    for _ in range(times):
        for one in feeds:
            other = feeds[int(rng.integers(len(feeds)))]
            if any(one[name].shape != other[name].shape for name in one):
                continue
            share = rng.uniform(size=len(next(iter(one.values())))).astype(np.float32)
            found.append({name: _moved(_mixed(one[name], other[name], share), rng) for name in one})
    return found


def _mixed(one: Array, other: Array, share: NDArray[np.float32]) -> Array:
    if len(one) != len(share):
        return one
    each = share.reshape(-1, *[1] * (one.ndim - 1))
    return np.asarray(each * one + (1 - each) * other, np.float32)


def _moved(images: Array, rng: np.random.Generator) -> Array:
    if images.ndim != 4:
        return images
    most = [size // SHIFT for size in images.shape[2:]]
    wide = np.pad(images, ((0, 0), (0, 0), *((m, m) for m in most)), mode="edge")
    found = np.empty_like(images)
    for i in range(len(images)):
        down, right = (int(rng.integers(2 * m + 1)) for m in most)
        found[i] = wide[i, :, down : down + images.shape[2], right : right + images.shape[3]]
    return found
