"""Pipelines that are really run, each as far as another has not run it before, and measured on feeds of their own."""

from __future__ import annotations

import math
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxsqueeze.engine import registry
from onnxsqueeze.engine.course import Course
from onnxsqueeze.engine.implied import with_implied
from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.engine.options import spec
from onnxsqueeze.engine.order import IMPLIED
from onnxsqueeze.engine.recipe import Ingredient, Recipe
from onnxsqueeze.engine.score import scoring
from onnxsqueeze.errors import SqueezeError
from onnxsqueeze.feeds.types import Feeds
from onnxsqueeze.ir.files import save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.packed import pack
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.answers import Answers
from onnxsqueeze.report.search import Figures
from onnxsqueeze.runtime.batches import of_batch
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency
from onnxsqueeze.search.store import Kept, Store
from onnxsqueeze.workers import Workers

__all__ = ["Call", "Trials"]

COURSES = 1 << 29
"""Bytes of graphs on their way that are held in memory, so that pipelines that begin alike share what they share."""
SECONDS = 0.4
"""Processor time that a ratio of run times may take."""
UNREADABLE = "what was found of it cannot be read"
Call = tuple[Any, ...]
"""What runs pipelines, and what it takes before them; it returns the files of a store with what came out, unless they
are in the store already."""


class Trials:
    """Runs pipelines over one opening and measures what comes out.

    The feeds that were held out are split once more: on every other one plans are chosen, on the rest the choice is
    confirmed. Where only one was held out, it serves for both.
    """

    def __init__(
        self, opened: Opened, store: Store, packed: bool, workers: Workers | None = None, call: Call | None = None
    ) -> None:
        self.opened, self.store, self.packed = opened, store, packed
        self.workers = Workers() if workers is None else workers
        self._call = call or (self.tried,)
        count = len(opened.run.reference)
        both = range(count)
        self.choosing, self.confirming = (both[::2], both[1::2]) if count > 1 else (both, both)
        self._references = [[opened.run.reference[i] for i in part] for part in (self.choosing, self.confirming)]
        self._scores = [self._score(part) for part in (self.choosing, self.confirming)]
        self._session: Session | None = None
        self._courses: OrderedDict[tuple[str, ...], Course] = OrderedDict()
        self._waiting: deque[Sequence[str]] = deque()

    def begin(self, *pipelines: str) -> None:
        """Let pipelines be run, each if those before it have come to something."""
        self._waiting.append(pipelines)
        self.workers.put(*self._call, pipelines)

    def finish(self) -> list[Kept]:
        """Return what is found of the pipelines that were begun first; fewer if one of them comes to nothing."""
        pipelines = self._waiting.popleft()
        self.store.take(self.workers.take())
        found: list[Kept] = []
        for pipeline in pipelines:
            kept = self.store.find(pipeline) or Kept(None, UNREADABLE)
            found.append(self._timed(pipeline, kept))
            if found[-1].found is None:
                break
        return found

    @property
    def begun(self) -> bool:
        """Whether the pipelines that are next to be finished are being run already."""
        return self.workers.begun

    def drop(self, position: int) -> None:
        """Forget pipelines that were begun, which would be finished after so many others."""
        del self._waiting[position]
        self.workers.drop(position)

    def run(self, pipeline: str) -> Kept:
        """Run a pipeline and measure it; what was found is kept."""
        self.begin(pipeline)
        return self.finish()[0]

    def tried(self, pipelines: Sequence[str]) -> Mapping[str, bytes]:
        """Run pipelines until one comes to nothing; all but their latency is measured and kept."""
        for pipeline in pipelines:
            start = time.perf_counter()
            course: Course | None = None
            try:
                course = self.walk(pipeline)
                problem = _nothing(course)
                found, confirmed = (None, None) if problem else self.measured(course)
            except SqueezeError as error:
                found, confirmed, problem = None, None, str(error)
            kept = Kept(found, problem, time.perf_counter() - start, confirmed)
            self.store.keep(pipeline, kept, course if found is not None else None)
            if found is None:
                break
        return {}

    def _timed(self, pipeline: str, kept: Kept) -> Kept:
        """Return what was found with the latency, by the clock of this machine: one model after the other."""
        if kept.found is not None:
            start = time.perf_counter()
            try:
                ratio = self._latency(self.opened.rig.dismounted(self.store.graph(pipeline)))
                kept = replace(kept, found=replace(kept.found, latency=ratio))
            except SqueezeError as error:
                kept = Kept(None, str(error))
            kept = replace(kept, seconds=kept.seconds + time.perf_counter() - start)
            self.store.note(pipeline, kept)
        return kept

    def known(self) -> dict[str, Kept]:
        """Return what earlier searches have measured, by pipeline."""
        return self.store.every(self.packed)

    def course(self, pipeline: str) -> Course:
        """Return the course of a pipeline: the one that was kept, or it is run again."""
        return self.store.course(pipeline) or self.walk(pipeline)

    def recipe(self, pipeline: str) -> Recipe:
        """Return the recipe that repeats a pipeline to the byte."""
        return self.store.kept_recipe(pipeline) or self.store.recipe(self.walk(pipeline))

    def walk(self, pipeline: str) -> Course:
        """Run the passes of a pipeline, from where another one has been that begins alike."""
        opened = self.opened
        steps = with_implied([Ingredient(each) for each in registry.build(pipeline)], opened.original)
        key = tuple(f"{'' if implicit else '!'}{spec(each.pass_)}" for each, implicit in steps)
        course, done = self._prefix(key)
        for number, (each, implicit) in enumerate(steps[done:], done + 1):
            course = course.after(each, implicit, opened)
            self._courses[key[:number]] = course
            while len(self._courses) > 1 and sum(kept.steps[-1].bytes[1] for kept in self._courses.values()) > COURSES:
                self._courses.popitem(last=False)
            self._forget()
        return course

    def _prefix(self, key: tuple[str, ...]) -> tuple[Course, int]:
        """Return the course over as many of the steps as another pipeline has begun with, and how many these are."""
        for done in range(len(key), 0, -1):
            if key[:done] in self._courses:
                self._courses.move_to_end(key[:done])
                return self._courses[key[:done]], done
            if not key[done - 1].startswith("!") or done == len(key):
                continue
            named = ",".join(each[1:] for each in key[:done] if each.startswith("!"))
            course = self.store.course(named)  # another worker may have been there
            if course is not None and tuple(f"{'' if s.implicit else '!'}{s.spec}" for s in course.steps) == key[:done]:
                self._courses[key[:done]] = course
                return course, done
        return Course.beginning(self.opened), 0

    def measured(self, course: Course) -> tuple[Figures, float]:
        """Return the figures of what came out but for its latency, and what it loses on the feeds that confirm."""
        graph = self.opened.rig.dismounted(course.graph)
        size = file_size(graph) / self.opened.before.bytes
        errors, drops = zip(*(self._lost(course.answers, number) for number in (0, 1)), strict=True)
        found = Figures(size, math.nan, errors[0], drops[0], self._packed(graph) if self.packed else None)
        return found, drops[1]

    def _lost(self, answers: Answers, number: int) -> tuple[float, float]:
        part = (self.choosing, self.confirming)[number]
        reference, score = self._references[number], self._scores[number]
        found = [answers[i] for i in part if i < len(answers)]
        error = self.opened.run.ruler.error(reference, found)
        return error, error if score is None else score(reference) - score(found)

    def _score(self, part: range) -> Callable[[Answers], float] | None:
        opened = self.opened
        if opened.run.score is None or opened.scorer is None or not isinstance(opened.held, Feeds):
            return None
        names = tuple(str(t.name) for t in opened.original.outputs)
        return scoring(opened.scorer, opened.held[part.start :: part.step], names, len(part))

    def _latency(self, graph: Graph) -> float:
        opened, threads, batch = self.opened, self.opened.recipe.threads, self.opened.recipe.batch
        if self._session is None:
            self._session = Session(opened.path or opened.original, threads=threads, exact_sums=False)
        feeds: Any = opened.held or opened.run.held
        few = [each if batch is None else of_batch(self._session, each, batch) for each in feeds[:4]]
        pair = [self._session, Session(graph, threads=threads, exact_sums=False)]
        return latency(pair, few, SECONDS, threads=threads).ratio

    def _packed(self, graph: Graph) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save(graph, path)
            return pack(path, path.with_suffix(".osq")).after / self.opened.before.bytes

    def _forget(self) -> None:
        """Drop the statistics of graphs that lossy passes have left: no other pipeline begins with them."""
        stages = self.opened.run.stages
        for stage in [each for each in stages if set(_names(each)) - {*IMPLIED, "float32"}]:
            del stages[stage]


def _names(stage: str) -> list[str]:
    return [step.partition("{")[0] for step in stage.split(", ") if step]


def _nothing(course: Course) -> str:
    """Return why a pipeline is no other than a shorter one, "" if each of its passes has done something."""
    for step in course.steps:
        if step.implicit or step.spec == "canonical":
            continue
        if not step.kept:
            return f"{step.spec} was rolled back: {step.reason}"
        if not step.done:
            return f"{step.spec} finds nothing to do"
    return ""
