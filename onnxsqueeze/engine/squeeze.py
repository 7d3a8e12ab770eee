"""``squeeze``: the straight line from a model to a smaller one and a report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxsqueeze.analysis.check import breaches, words
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine import promises, registry
from onnxsqueeze.engine.course import Course
from onnxsqueeze.engine.elsewhere import elsewhere, native_note
from onnxsqueeze.engine.footprint import footprints, refuse_memory
from onnxsqueeze.engine.implied import with_implied
from onnxsqueeze.engine.latencies import latencies
from onnxsqueeze.engine.opening import Opened, open_run
from onnxsqueeze.engine.order import refuse_order
from onnxsqueeze.engine.places import refuse_places, statistics_files
from onnxsqueeze.engine.recipe import FROM_PYTHON, Ingredient, Recipe
from onnxsqueeze.engine.reference import held_words
from onnxsqueeze.engine.result import Result
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.engine.score import refuse_drop, scored, with_score
from onnxsqueeze.engine.use import with_use
from onnxsqueeze.errors import ToleranceError, UsageError
from onnxsqueeze.ir.files import save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.cost import cost
from onnxsqueeze.report.run import Report
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.statistics.store import save_statistics
from onnxsqueeze.workers import Executors, Share, Workers

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["asked", "closed", "squeeze"]

UNCOUNTED = "the multiply-accumulates of a feed are unknown: neither inference nor a run gives all shapes of its layers"
LOG = logging.getLogger("onnxsqueeze")
LOG.addHandler(logging.NullHandler())


@one_blas_thread
def squeeze(
    model: AnyModel,
    pipeline: str | Pass | Sequence[str | Pass] | Recipe,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    validate: str | None = None,
    seed: int | None = None,
    dry_run: bool = False,
    stats: Iterable[str | os.PathLike[str]] = (),
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    progress: Progress | None = None,
    outputs: str | Mapping[str, str] | None = None,
    score: str | Callable[..., Any] | None = None,
    max_score_drop: float | None = None,
    target: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    memory: bool = False,
    max_memory: float | None = None,
    executor: Executors = None,
    share: Share = None,
) -> Result:
    """Run the passes of ``pipeline`` over ``model`` and return the squeezed graph with its report.

    ``model`` is a path, a ModelProto, an onnx_ir.Model, torch's ONNXProgram or a graph of ``load``; none of them is
    changed, and what came in memory stays there up to 2 GB. ``calibration`` is whatever ``onnxsqueeze.feeds.read``
    takes: a path, an iterable of feeds (dicts of arrays by input name) or "random"; without it, data beside the model
    is used if there is any. ``output`` is written only if everything went well and no output of the model is further
    from the original than ``min_sqnr`` dB. ``validate="none"`` (else "full") runs nothing: no comparison, no
    roll-back, no timing. ``dry_run`` plans and applies in memory and writes no model. Statistics are read from those
    files of ``stats`` that exist, and written to the one that does not. ``progress`` is called with (stage, done,
    total); a total of 0 is not known. A Recipe in the place of the pipeline brings calibration, ``min_sqnr``,
    ``validate`` and ``seed`` (else 0) as well; what is given here wins over it.

    ``outputs`` says what outputs are where that is not found (``"boxes:rows, logits:scores"`` or a mapping): values,
    scores, labels or rows. ``score`` is ``"module:function"`` or a callable ``score(outputs, feed) -> float``, higher
    being better, in which ``feed`` holds the labels too: arrays of the calibration data that are no inputs. With
    ``max_score_drop`` (0.005 is half a point of a share) nothing is written if more is lost on held-out feeds.

    ``target`` is what the model is to run on: the name of a profile (``onnxsqueeze targets`` lists them) or a file
    with one. The plan follows its rules and times, and the report says what breaks them. ``threads`` (1 unless told, 0
    for all) and ``batch`` say on how many threads and samples at once. ``memory`` measures what both models take at run
    time, each in processes of its own; above ``max_memory`` bytes nothing is written. ``executor`` and ``share`` are
    those of ``calibrate``: what passes measure layer by layer is shared out to workers, and the same comes out.

    Raises UsageError, ModelError, PassError, or ToleranceError, which carries the report.
    """
    start = time.perf_counter()
    progress = progress or _silent
    recipe = asked(pipeline, calibration, min_sqnr, validate, seed, stats, mean, std, scale)
    recipe = with_use(recipe, target, threads, batch)
    recipe, scorer = with_score(recipe, outputs, score, max_score_drop)
    if recipe.validate not in ("full", "none"):
        raise UsageError(f"validate is 'full' or 'none', not '{recipe.validate}'")
    if recipe.min_sqnr is not None and recipe.validate == "none":
        raise UsageError('min_sqnr= needs the comparison that validate="none" leaves out: drop one of them')
    chosen = [each.pass_ for each in recipe.steps]
    for pass_ in chosen:
        promises.declared(pass_)
    refuse_order(chosen)
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    files: Any = recipe.calibration.get("stats", ())
    known, unwritten = statistics_files(files)
    written = {"output=": None if dry_run else output}
    refuse_places(written, {"the model": model}, calibration=recipe.calibration.get("source"), stats=files)
    progress("loading", 0, 1)
    LOG.info("squeezing %s with %s", path or "a model in memory", recipe.pipeline)
    check = recipe.validate == "full" and not dry_run
    opened = open_run(model, recipe, calibration, scorer, check, known, progress)
    course = Course.beginning(opened)
    with Workers(executor, share) as opened.run.workers:
        for each, implicit in with_implied(recipe.steps, opened.original):
            course = course.after(each, implicit, opened)
    if unwritten is not None:
        save_statistics(unwritten, opened.run.stages)
    report, graph = closed(opened, course, progress, dry_run=dry_run, memory=memory or max_memory is not None)
    report = replace(report, seconds=time.perf_counter() - start)
    if recipe.min_sqnr is not None and opened.run.check:
        _refuse_deviation(report, recipe.min_sqnr)
    if recipe.max_score_drop is not None and opened.run.check:
        refuse_drop(report, recipe.max_score_drop)
    refuse_memory(report, max_memory)
    if output is not None and not dry_run:
        progress("saving", 0, 1)
        after = replace(report.after, bytes=save(graph, output))
        report = replace(report, output=str(output), after=after, seconds=time.perf_counter() - start)
        LOG.info("wrote %s", output)
    return Result(graph, report, replace(opened.recipe, steps=course.made), opened.original)


def asked(
    pipeline: str | Pass | Sequence[str | Pass] | Recipe,
    calibration: Any,
    min_sqnr: float | None,
    validate: str | None,
    seed: int | None,
    stats: Iterable[str | os.PathLike[str]],
    mean: Any,
    std: Any,
    scale: float | None,
) -> Recipe:
    """Return what is to be done: a recipe, or the pipeline as one, under what is given besides."""
    if isinstance(pipeline, Recipe):
        recipe = pipeline
    else:
        recipe = Recipe(tuple(Ingredient(each) for each in registry.build(pipeline)))
    how = {"mean": mean, "std": std, "scale": scale, "stats": [os.fspath(each) for each in stats] or None}
    if calibration is not None:
        is_text = isinstance(calibration, (str, os.PathLike))
        how["source"] = os.fspath(calibration) if is_text else FROM_PYTHON
    given = {key: getattr(value, "tolist", lambda v=value: v)() for key, value in how.items() if value is not None}
    old = {} if calibration is not None else recipe.calibration
    return replace(
        recipe,
        calibration={**old, **given},
        min_sqnr=recipe.min_sqnr if min_sqnr is None else min_sqnr,
        validate=recipe.validate if validate is None else validate,
        seed=recipe.seed if seed is None else seed,
    )


def _refuse_deviation(report: Report, min_sqnr: float) -> None:
    if report.sqnr_db is None:
        problem = "min_sqnr= cannot be checked without feeds: give calibration=; nothing was written"
        raise ToleranceError(problem, report)
    if report.sqnr_db < min_sqnr:
        raise ToleranceError(
            f"the result is at {report.sqnr_db:.1f} dB SQNR, under the {min_sqnr:g} dB asked for; nothing was written. "
            "Use milder options or leave a pass out",
            report,
        )


def _silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def closed(
    opened: Opened, course: Course, progress: Progress, *, dry_run: bool = False, memory: bool = False
) -> tuple[Report, Graph]:
    """Return the report of a course that is at its end, without its time, and the graph as the user gets it."""
    graph = opened.rig.dismounted(course.graph)
    run, held = opened.run, opened.held
    run.previous = course.answers
    whole = opened.path or opened.original
    same = not any(step.kept and step.done for step in course.steps)
    timed = [whole] if same else [whole, graph]
    times = latencies(timed, held if len(held) else run.held, opened.recipe, progress) if run.reference else None
    report = Report(
        model="<memory>" if opened.path is None else str(opened.path),
        output=None,
        pipeline=", ".join(step.spec for step in course.steps),
        calibration=opened.data.source if opened.data else "statistics from a file" if opened.known else "none",
        held_out=held_words(run, opened.data),
        before=opened.before,
        after=cost(graph, file_size(graph), opened.feed),
        latency_ms=None if times is None else times[0].both,
        latency_ratio=None if times is None else times[0].ratio,
        latencies=() if times is None else times[1:],
        deviations=run.ruler.compare(run.reference, run.previous),
        steps=course.steps,
        notes=(*opened.notes, *course.notes, *words(breaches(graph)), *native_note(opened)),
        seconds=0.0,
        dry_run=dry_run,
        score=scored(run, opened.scorer),
        target=f"{opened.original.target}, {opened.original.target.use}",
        elsewhere=elsewhere(opened.original, graph, opened.feed),
        memory=footprints(whole, graph, held or run.held) if memory else None,
    )
    return report, graph
