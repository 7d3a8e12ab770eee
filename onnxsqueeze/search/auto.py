"""``auto``: a search over pipelines for what the user wants, measured from end to end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxsqueeze.engine.footprint import refuse_memory
from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.engine.places import refuse_places, statistics_files
from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.engine.result import Result
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.engine.squeeze import closed
from onnxsqueeze.errors import ModelError, ToleranceError, UsageError
from onnxsqueeze.ir.files import save
from onnxsqueeze.report.run import Report
from onnxsqueeze.runtime.device import CORES
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.search.away import calls
from onnxsqueeze.search.hunt import EFFORTS, Hunt
from onnxsqueeze.search.start import opened_for
from onnxsqueeze.search.store import Store, kept_in
from onnxsqueeze.search.trials import Trials
from onnxsqueeze.search.wishes import NAME, Wish, wish
from onnxsqueeze.statistics.store import save_statistics
from onnxsqueeze.workers import Executors, Share, Workers

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["auto"]

CONFIRMED = 3
"""Plans that are held against the limits on feeds that nothing was chosen by."""


@one_blas_thread
def auto(
    model: AnyModel,
    wanted: str = NAME,
    calibration: Any = None,
    *,
    effort: str = "default",
    cache: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
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
    validate: str | None = None,
    executor: Executors = None,
    share: Share = None,
) -> Result:
    """Search for the pipeline that is best for what is wanted, and return what it makes of the model.

    ``wanted`` is text such as ``auto{latency=0.5}``: limits on latency, size, packed size and loss (``Auto`` has them),
    of which any may stand together. ``effort`` is quick, default or max: about 1, 5 or 20 minutes at most; a keyboard
    interrupt ends the search, and the best so far is returned. What was measured is kept in the folder ``cache``, if
    there is one, for the next search. Workers of an ``executor`` run the pipelines, as in ``calibrate``: what is found
    is the same but for the clock. All else is as for ``squeeze``, and ``report.search`` holds all tries.

    Raises UsageError, ModelError, or ToleranceError if nothing within the limits was found; then nothing is written.
    """
    start = time.perf_counter()
    progress = progress or _silent
    if effort not in EFFORTS:
        raise UsageError(f"effort is {', '.join(EFFORTS)}, not {effort!r}")
    if validate == "none":
        raise UsageError('auto measures what it tries: validate="none" leaves that out; drop one of them')
    wish(wanted, 1, score is not None, max_score_drop, min_sqnr)  # what cannot be is refused before any work
    stats = tuple(stats)
    _, unwritten = statistics_files(stats)
    written = {"output=": None if dry_run else output}
    refuse_places(written, {"the model": model}, calibration=calibration, stats=stats)
    how = {
        "seed": seed, "stats": stats, "mean": mean, "std": std, "scale": scale, "outputs": outputs, "score": score,
        "max_score_drop": max_score_drop, "target": target, "threads": threads, "batch": batch,
    }  # fmt: skip
    opened = opened_for(model, calibration, progress, **how)
    target_wish = wish(wanted, opened.before.bytes, score is not None, max_score_drop, min_sqnr)
    packed = "packed" in (*target_wish.limits, target_wish.best)
    with kept_in(cache) as folder, Workers(executor, share) as workers:
        store = Store.under(folder, opened)
        trials = Trials(opened, store, packed, workers, calls(workers, opened, store, packed, how))
        hunt = Hunt(trials, opened, [(target_wish, 1.0)], EFFORTS[effort], start)
        hunt.go(progress)
        result = _taken(hunt, opened, target_wish, wanted, start, memory or max_memory is not None, dry_run, progress)
        if unwritten is not None:
            if workers.away and (search := result.report.search) is not None:  # they have measured, but not here
                trials.walk(search.tries[search.chosen].pipeline)
            save_statistics(unwritten, opened.run.stages)
        report = result.report
        refuse_memory(report, max_memory)
        if output is not None and not dry_run:
            progress("saving", 0, 1)
            after = replace(report.after, bytes=save(result.graph, output))
            report = replace(report, output=str(output), after=after, seconds=time.perf_counter() - start)
    return replace(result, report=report)


def _taken(
    hunt: Hunt,
    opened: Opened,
    wanted: Wish,
    text: str,
    start: float,
    memory: bool,
    dry_run: bool,
    progress: Progress,
) -> Result:
    """Return the best plan that keeps the limits on further feeds, on all, and when it is timed once more."""
    ranked = hunt.ranked(wanted)
    if not ranked:
        raise ModelError(f"no pipeline came to anything: {next(iter(hunt.tries.values())).problem}")
    sure = [each for each in ranked if hunt.confirmed(each, wanted)] or ranked
    best = None
    for pipeline in sure[:CONFIRMED]:
        course = hunt.trials.course(pipeline)
        made = closed(opened, course, progress, dry_run=dry_run, memory=memory)
        kept = hunt.confirmed(pipeline, wanted, *_last(made[0], opened.recipe))
        if best is None or kept:
            best, chosen, taken = made, pipeline, course
        if kept:
            break
    assert best is not None
    report, graph = best
    kept = hunt.confirmed(chosen, wanted, *_last(report, opened.recipe))
    search = hunt.told(chosen, wanted, text, time.perf_counter() - start)
    report = replace(report, search=search, notes=(*report.notes, *search.advice), seconds=time.perf_counter() - start)
    if not kept:
        raise ToleranceError(
            f"nothing was found with {wanted.words()}: {_nearest(report, chosen)} is nearest; nothing was written. "
            "Ask for less, or give the search more time",
            report,
        )
    return Result(graph, report, hunt.trials.store.recipe(taken), opened.original)


def _last(report: Report, recipe: Recipe) -> tuple[float | None, float | None]:
    """Return the ratio of run times on the threads and the batch that the plan is for, and the error on all feeds."""
    error = None if report.sqnr_db is None else 10 ** (-report.sqnr_db / 10)
    for each in report.latencies:
        if each.threads == (recipe.threads or CORES) and recipe.batch in (None, each.batch):
            return each.ratio, error
    return report.latency_ratio, error


def _nearest(report: Report, pipeline: str) -> str:
    size = report.after.bytes / report.before.bytes
    latency = "" if report.latency_ratio is None else f", {100 * report.latency_ratio:.0f} % of the latency"
    loss = "" if report.sqnr_db is None else f", {report.sqnr_db:.1f} dB SQNR"
    return f"{pipeline} with {100 * size:.1f} % of the size{latency}{loss}"


def _silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""
