"""What a plan is for: the target, and on how many threads and samples at once it will run there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.batches import samples_in
from onnxsqueeze.targets.profiles import DEFAULT, find
from onnxsqueeze.targets.target import Target

__all__ = ["made_for", "with_use"]

MOST_THREADS, LARGEST_BATCH = 1024, 4096


def with_use(recipe: Recipe, target: str | os.PathLike[str] | None, threads: int | None, batch: int | None) -> Recipe:
    """Return the recipe for this target, so many threads (0: all) and samples at once, where they are given."""
    found = replace(
        recipe,
        target=recipe.target if target is None else os.fspath(target),
        threads=recipe.threads if threads is None else threads,
        batch=recipe.batch if batch is None else batch,
    )
    if not 0 <= found.threads <= MOST_THREADS:
        raise UsageError(f"threads= is a number up to {MOST_THREADS}, or 0 for all, not {found.threads}")
    if found.batch is not None and not 1 <= found.batch <= LARGEST_BATCH:
        raise UsageError(f"batch= is a number of samples from 1 to {LARGEST_BATCH}, not {found.batch}")
    return found


def made_for(recipe: Recipe, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> Target | None:
    """Return the profile that passes go by, None for the default one on one thread and batches as in ``feeds``."""
    if recipe.target is None and recipe.threads == 1 and recipe.batch is None:
        return None
    fed = samples_in(feeds[0]) if len(feeds) else 1
    return find(recipe.target or DEFAULT).used(recipe.threads, recipe.batch, fed)
