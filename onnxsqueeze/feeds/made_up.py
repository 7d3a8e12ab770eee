"""Feeds that are made up where there are none."""

from __future__ import annotations

import math

import numpy as np

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.files import check_size
from onnxsqueeze.feeds.types import KINDS, Feed, Feeds, Input, is_float

__all__ = ["random_feeds"]


def random_feeds(inputs: tuple[Input, ...], seed: int) -> Feeds:
    if seed < 0:
        raise FeedError(f"seed {seed} is negative; give 0 or more")
    shapes = made_up_shapes(inputs)

    def load(index: int) -> tuple[str, Feed]:
        rng, feed = np.random.default_rng((seed, index)), {}
        for wanted, shape in zip(inputs, shapes, strict=True):
            # Integers are mostly tokens, masks and flags: 0 and 1 are safe for all of them.
            drawn = rng.standard_normal(shape) if is_float(wanted.dtype) else rng.integers(0, 2, shape)
            feed[wanted.name] = np.asarray(drawn).astype(wanted.dtype)
        return f"random feed {index}", feed

    left = [  # nobody has said how large these are
        f"{wanted.name} {'x'.join(map(str, shape))}" for wanted, shape in zip(inputs, shapes, strict=True)
        if not all(isinstance(size, int) for size in wanted.shape or ())
    ]  # fmt: skip
    sizes = f", sizes made up: {', '.join(left)}" if left else ""
    return Feeds(f"8 random feeds (seed {seed}{sizes})", inputs, load, range(8), invented=True)


def made_up_shapes(inputs: tuple[Input, ...]) -> list[tuple[int, ...]]:
    """Replace unknown dimensions: a batch by 1, the sides of an image by 64, any other by 16; one symbol, one size."""
    sizes = {wanted.shape[0]: 1 for wanted in inputs if wanted.shape and isinstance(wanted.shape[0], str)}
    shapes = []
    for wanted in inputs:
        dims = wanted.shape
        if dims is None or wanted.dtype.kind == "O":
            raise FeedError(f"input '{wanted.name}' is {wanted}, which cannot be drawn at random; give {KINDS}")
        unknown = [1, *[16] * len(dims)][: len(dims)]
        if len(dims) == 4 and dims[3] in (1, 3, 4):
            unknown = [1, 64, 64, 3]
        elif len(dims) == 4 and dims[1] in (1, 3, 4, None):
            unknown = [1, 3, 64, 64]
        elif len(dims) == 3 and isinstance(dims[0], int) and dims[0] > 1 and isinstance(dims[2], int):
            unknown[1] = 1  # the state of a recurrent layer: [layers, batch, width]
        pairs = zip(dims, unknown, strict=True)
        shape = tuple(sizes.setdefault(d, size) if isinstance(d, str) else d or size for d, size in pairs)
        check_size(math.prod(shape) * wanted.dtype.itemsize, f"input '{wanted.name}'")
        shapes.append(shape)
    return shapes
