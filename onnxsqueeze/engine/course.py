"""The way of a graph through the passes of a pipeline: what came of each, so far."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from onnxsqueeze.engine.implied import CLOSING, finds
from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.engine.recipe import Ingredient
from onnxsqueeze.engine.step import run_pass
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.report.run import StepReport

__all__ = ["Course"]

LOG = logging.getLogger("onnxsqueeze")


@dataclass(frozen=True)
class Course:
    """A graph on its way through a pipeline: what was done to it, with what it takes to repeat and to explain that."""

    graph: Graph
    answers: Answers
    """The graph's answers on the held-out feeds, empty where nothing is run."""
    steps: tuple[StepReport, ...] = ()
    made: tuple[Ingredient, ...] = ()
    notes: tuple[str, ...] = ()
    teacher: Graph | None = None
    """The graph before the first pass that has lost anything; None while none has."""

    @classmethod
    def beginning(cls, opened: Opened) -> Course:
        """Return the course of a graph that no pass has seen."""
        return cls(opened.rig.graph, opened.run.reference)

    def after(self, each: Ingredient, implicit: bool, opened: Opened) -> Course:
        """Return the course after one more pass, which may have been rolled back. Raises what ``run_pass`` raises."""
        if implicit and each.pass_.name == CLOSING and not finds(each.pass_, self.graph):
            return self
        run = opened.run
        stage = ", ".join(step.spec for step in self.steps if step.done)
        run.known, run.measured, run.previous = list(each.latency), [], self.answers
        run.teacher = self.teacher or self.graph
        graph, step = run_pass(each.pass_, implicit, self.graph, run, stage)
        _log(step)
        made = Ingredient(each.pass_, tuple(run.measured), {site.key: site.action for site in step.done})
        return replace(
            self,
            graph=graph,
            teacher=self.teacher or (self.graph if step.done and not each.pass_.lossless else None),
            answers=run.previous,
            steps=(*self.steps, step),
            made=(*self.made, made),
            notes=(*self.notes, *_unlike(each, made)),
        )


def _unlike(recipe: Ingredient, made: Ingredient) -> list[str]:
    """Return a note if a pass has done otherwise than its recipe says."""
    old, new = recipe.chosen, made.chosen
    different = [key for key in {**old, **new} if old.get(key) != new.get(key)] if old else []
    if not different:
        return []
    key = different[0]
    return [
        f"{made.pass_.name} did otherwise than the recipe says at {len(different)} places, such as '{key}': "
        f"{new.get(key, 'left alone')} instead of {old.get(key, 'left alone')}; the model, the calibration data or the "
        "versions named in the recipe are others"
    ]


def _log(step: StepReport) -> None:
    if step.kept:
        LOG.info("%s: %d done, %d skipped, %.1f s", step.spec, len(step.done), len(step.skipped), step.seconds)
    else:
        LOG.warning("%s: rolled back, %s", step.spec, step.reason)
