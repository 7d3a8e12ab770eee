"""How a search begins: with the model and its feeds, here or wherever its pipelines are run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxsqueeze.engine.opening import Opened, open_run
from onnxsqueeze.engine.places import statistics_files
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.engine.score import with_score
from onnxsqueeze.engine.squeeze import asked
from onnxsqueeze.engine.use import with_use
from onnxsqueeze.errors import UsageError

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["opened_for"]


def opened_for(
    model: AnyModel,
    calibration: Any,
    progress: Progress,
    *,
    seed: int | None = None,
    stats: Iterable[str | os.PathLike[str]] = (),
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    outputs: str | Mapping[str, str] | None = None,
    score: str | Callable[..., Any] | None = None,
    max_score_drop: float | None = None,
    target: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
) -> Opened:
    """Return the model and its feeds as a search starts from them; UsageError if there is nothing to measure on."""
    recipe = replace(asked("canonical", calibration, None, None, seed, stats, mean, std, scale), steps=())
    recipe, scorer = with_score(recipe, outputs, score, max_score_drop)
    recipe = with_use(recipe, target, threads, batch)
    known, _ = statistics_files(recipe.calibration.get("stats", ()))  # type: ignore[arg-type]
    progress("loading", 0, 1)
    opened = open_run(model, recipe, calibration, scorer, True, known, progress)
    if not opened.run.reference:
        problem = "a search measures what it tries, and the model runs on nothing that is there: give calibration="
        raise UsageError(problem)
    return opened
