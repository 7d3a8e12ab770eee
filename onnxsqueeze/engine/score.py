"""The user's own score: a function over outputs and labelled feeds, which guards the result beside the SQNR."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from onnxsqueeze.engine.recipe import FROM_PYTHON, Recipe
from onnxsqueeze.engine.run import Run
from onnxsqueeze.errors import ToleranceError, UsageError
from onnxsqueeze.feeds.types import Feeds
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, answer
from onnxsqueeze.measure.output_kinds import parse
from onnxsqueeze.report.run import Report, Scored

__all__ = ["Score", "keeping", "load", "refuse_drop", "scored", "scoring", "with_score"]

Function = Callable[..., Any]
Feed = Mapping[str, Any]
WATCHED = 64
"""Calibration feeds, from the first on, whose score the searches watch; their order is drawn."""


@dataclass(frozen=True)
class Score:
    """A function ``score(outputs, feed) -> float``, the mean over the feeds counting; higher is better.

    ``outputs`` maps names to arrays, and ``feed`` holds the inputs and the labels, which are arrays of the calibration
    data that are no inputs of the model. A function whose second parameter is called ``feeds`` gets the lists of all.
    """

    name: str
    function: Function

    def __call__(self, answers: Answers, feeds: Sequence[Feed]) -> float:
        """Return the score of answers; UsageError if the function fails or returns no number."""
        feeds = feeds[: len(answers)]
        try:
            if list(inspect.signature(self.function).parameters)[1:2] == ["feeds"]:
                return float(self.function(list(answers), list(feeds)))
            values = [float(self.function(dict(a), dict(f))) for a, f in zip(answers, feeds, strict=True)]
        except Exception as error:
            raise UsageError(
                f"the score {self.name} failed with {type(error).__name__}: {error}; it takes (outputs, feed), dicts "
                "of arrays by name, and returns a number"
            ) from error
        return sum(values) / max(len(values), 1)


def load(score: str | Function) -> Score:
    """Return the score that ``module:function`` names, looked for in the working folder too; or a callable.

    Raises UsageError if there is no such module or function.
    """
    if not isinstance(score, str):
        return Score(str(getattr(score, "__name__", "score")), score)
    module, _, name = score.partition(":")
    if not module or not name:
        raise UsageError(f"score: '{score}' names no function; write module:function")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), name, None)
    except ImportError as error:
        raise UsageError(f"score: the module '{module}' cannot be imported ({error}); run it where it lies") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(function):
        raise UsageError(f"score: the module '{module}' has no function '{name}'")
    return Score(score, function)


def refuse_drop(report: Report, most: float) -> None:
    """Raise ToleranceError if the score has fallen by more than ``most``, or could not be taken."""
    if report.score is None:
        problem = "max_score_drop= cannot be checked without feeds and score=: give calibration=; nothing was written"
        raise ToleranceError(problem, report)
    if report.score.drop > most:
        raise ToleranceError(
            f"the score {report.score.name} falls from {report.score.before:.4g} to {report.score.after:.4g}, by more "
            f"than the {most:g} allowed; nothing was written. Use milder options or leave a pass out",
            report,
        )


def with_score(
    recipe: Recipe,
    outputs: str | Mapping[str, str] | None,
    score: str | Callable[..., Any] | None,
    max_score_drop: float | None,
) -> tuple[Recipe, Score | None]:
    """Return the recipe with what is given besides, and the score that it names."""
    name = score if score is None or isinstance(score, str) else FROM_PYTHON
    recipe = replace(
        recipe,
        outputs=recipe.outputs if outputs is None else parse(outputs),
        score=recipe.score if name is None else name,
        max_score_drop=recipe.max_score_drop if max_score_drop is None else max_score_drop,
    )
    if recipe.score == FROM_PYTHON and (score is None or isinstance(score, str)):
        raise UsageError("the recipe was made with a score from Python: give it with score=")
    if recipe.max_score_drop is not None and recipe.score is None:
        raise UsageError("max_score_drop= needs a score to watch: give score=")
    if recipe.max_score_drop is not None and recipe.validate == "none":
        raise UsageError('max_score_drop= needs the comparison that validate="none" leaves out: drop one of them')
    return recipe, None if recipe.score is None else load(recipe.score if name != FROM_PYTHON else score or "")


def scoring(score: Score, held: Feeds, names: tuple[str, ...], count: int) -> Callable[[Answers], float]:
    """Return the score of answers on the held-out feeds with their labels; taps are no business of the user's."""
    labelled = [held.labelled(i) for i in range(count)]

    def scored(answers: Answers) -> float:
        return score([{name: each[name] for name in names} for each in answers], labelled)

    return scored


def keeping(
    score: Score, calib: Feeds, feeds: Sequence[dict[str, Any]], names: tuple[str, ...], original: Graph, most: float
) -> Callable[[Graph], bool]:
    """Return what says whether a graph loses at most ``most`` of the score on the calibration feeds."""
    count = min(len(calib), WATCHED)
    taken = scoring(score, calib, names, count)
    few = [feeds[i] for i in range(count)]
    least = taken(answer(original, None, few)) - most

    def keeps(graph: Graph) -> bool:
        return taken(answer(graph, None, few)) >= least

    return keeps


def scored(run: Run, score: Score | None) -> Scored | None:
    """Return the score of the original and of the result of a run, None if there is none to take."""
    if score is None or run.score is None:
        return None
    return Scored(score.name, run.score(run.reference), run.score(run.previous))
