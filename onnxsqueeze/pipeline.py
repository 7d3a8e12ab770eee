"""``squeeze``: the straight line from a model to a smaller one and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxsqueeze import codec, feeds, registry
from onnxsqueeze.calibration import load_statistics, save_statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Pass
from onnxsqueeze.cost import cost, file_size
from onnxsqueeze.errors import FeedError, ModelError, ToleranceError, UsageError
from onnxsqueeze.feeds import Feeds, Input
from onnxsqueeze.report import Report, StepReport
from onnxsqueeze.runtime import Session, latency
from onnxsqueeze.step import Run, quantized, refuse_quantized, run_pass
from onnxsqueeze.validate import answer, compare

__all__ = ["Result", "squeeze"]

Progress = Callable[[str, int, int], None]
IMPLIED = ("clean", "canonical")
RANDOM = 2
"""Feeds that are made up where there are none."""


@dataclass(frozen=True)
class Result:
    """What ``squeeze`` returns: the squeezed graph, and the report that explains it."""

    graph: Graph
    report: Report

    @property
    def model(self) -> onnx.ModelProto:
        """The squeezed model as a ModelProto in memory; external data of the source stays where it is."""
        return codec.encode(self.graph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path``, whole or not at all."""
        codec.save(self.graph, path)


def squeeze(
    model: str | os.PathLike[str] | onnx.ModelProto,
    pipeline: str | Pass | Sequence[str | Pass],
    calibration: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    validate: str = "full",
    seed: int = 0,
    dry_run: bool = False,
    stats: Iterable[str | os.PathLike[str]] = (),
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run the passes of ``pipeline`` over ``model`` and return the squeezed graph with its report.

    ``calibration`` is whatever ``onnxsqueeze.feeds.read`` takes: a path, an iterable of feeds (dicts of arrays by
    input name) or "random"; without it, data beside the model is used if there is any. ``output`` is written only if
    everything went well and no output of the model is further from the original than ``min_sqnr`` dB.
    ``validate="none"`` runs nothing: no comparison, no roll-back, no timing. ``dry_run`` plans and applies in memory
    and writes no model. Statistics are read from those files of ``stats`` that exist, and written to the one that
    does not. ``progress`` is called with (stage, done, total).

    Raises UsageError, ModelError, PassError, or ToleranceError, which carries the report.
    """
    start = time.perf_counter()
    progress = progress or _silent
    if validate not in ("full", "none"):
        raise UsageError(f"validate is 'full' or 'none', not '{validate}'")
    if min_sqnr is not None and validate == "none":
        raise UsageError("--min-sqnr needs the comparison that --validate none leaves out: drop one of them")
    chosen = registry.build(pipeline)
    _refuse_order(chosen)
    known, unwritten = _stats_files(stats)
    progress("loading", 0, 1)
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    original = codec.load(model)
    for pass_ in chosen:
        refuse_quantized(pass_, original)
    inputs = feeds.inputs_of(codec.encode(original, skeleton=True))
    data = _feeds(calibration, inputs, path, mean=mean, std=std, scale=scale, seed=seed)
    calib, held = data.split() if data is not None else ((), ())
    run = Run(calib, held, load_statistics(known), validate == "full" and not dry_run, seed, progress)
    notes = _prepare_reference(run, path or original, inputs, data)
    feed = next(iter(run.held or run.calib), None)
    before = cost(original, _size(original, model), feed)

    graph = original
    steps: list[StepReport] = []
    for pass_, implicit in _with_implied(chosen, original):
        stage = ", ".join(step.spec for step in steps if step.done)
        graph, step = run_pass(pass_, implicit, graph, run, stage)
        steps.append(step)

    if unwritten is not None:
        save_statistics(unwritten, run.stages)
    times = _latency(run, path or original, graph) if run.reference else None
    report = Report(
        model="<memory>" if path is None else str(path),
        output=None,
        pipeline=", ".join(step.spec for step in steps),
        calibration=data.source if data is not None else "statistics from a file" if known else "none",
        held_out=_held_words(run, data),
        before=before,
        after=cost(graph, file_size(graph), feed),
        latency_ms=None if times is None else (times[0][0], times[0][-1]),
        latency_ratio=None if times is None else times[1],
        deviations=compare(run.reference, run.previous),
        steps=tuple(steps),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
        dry_run=dry_run,
    )
    if min_sqnr is not None and run.check:
        _refuse_deviation(report, min_sqnr)
    if output is not None and not dry_run:
        progress("saving", 0, 1)
        after = replace(report.after, bytes=codec.save(graph, output))
        report = replace(report, output=str(output), after=after, seconds=time.perf_counter() - start)
    return Result(graph, report)


def _refuse_deviation(report: Report, min_sqnr: float) -> None:
    if report.sqnr_db is None:
        problem = "--min-sqnr cannot be checked without feeds: give --calib; nothing was written"
        raise ToleranceError(problem, report)
    if report.sqnr_db < min_sqnr:
        raise ToleranceError(
            f"the result is at {report.sqnr_db:.1f} dB SQNR, under the {min_sqnr:g} dB asked for; nothing was written. "
            "Use milder options or leave a pass out",
            report,
        )


def _with_implied(passes: Sequence[Pass], graph: Graph) -> list[tuple[Pass, bool]]:
    """Put what cleans before the first pass that wants a clean graph, unless the pipeline names it."""
    steps = [(p, False) for p in passes]
    first = next((i for i, p in enumerate(passes) if p.cleans_first), None)
    if first is None:
        return steps
    missing = [registry.find(name)() for name in IMPLIED if not any(p.name == name for p in passes)]
    implied = [(p, True) for p in missing if not (p.float_only and quantized(graph))]
    return [*steps[:first], *implied, *steps[first:]]


def _refuse_order(passes: Sequence[Pass]) -> None:
    """Refuse, before any work, a pass for float weights behind int8."""
    names = [p.name for p in passes]
    for i, pass_ in enumerate(passes):
        if "int8" in names[:i] and pass_.float_only:
            way_out = "write it once" if pass_.name == "int8" else f"write {pass_.name},int8"
            raise UsageError(f"{pass_.name} cannot follow int8, which leaves no float weights; {way_out}")


def _feeds(source: Any, inputs: tuple[Input, ...], path: Path | None, **how: Any) -> Feeds | None:
    if source is not None:
        return feeds.read(source, inputs, model_path=path, **how)
    return None if path is None else feeds.find_beside(path, inputs)


def _prepare_reference(run: Run, original: Graph | Path, inputs: tuple[Input, ...], data: Feeds | None) -> list[str]:
    """Run the original on the held-out feeds; without feeds, on two random ones, only to see that results run."""
    notes = []
    if data is None and not run.stages:
        notes.append(
            "no calibration data: ranges and errors are not measured. With --calib, int8 also quantizes activations "
            "of convolutions, and lowrank fits the factors to real inputs"
        )
    elif data is not None and data.invented:
        notes.append("calibrated on random values: the figures say little about real inputs")
    if not run.check:
        return notes
    if data is None:
        Session(original)
        try:
            run.held = list(feeds.read("random", inputs, seed=run.seed)[:RANDOM])
            run.reference = answer(original, None, run.held, run.progress)
            notes.append(f"compared on {RANDOM} random feeds, which shows that the model runs, not how good it is")
        except (FeedError, ModelError):
            run.held, run.reference = (), []
            notes.append("the model does not run on random feeds: nothing was compared")
    else:
        run.reference = answer(original, None, run.held, run.progress)
    run.held = run.held[: len(run.reference)]
    run.previous = run.reference
    return notes


def _latency(run: Run, original: Graph | Path, graph: Graph) -> tuple[list[float], float]:
    run.progress("timing", 0, 1)
    return latency([Session(each, threads=1) for each in (original, graph)], list(run.held[:8]))


def _held_words(run: Run, data: Feeds | None) -> str:
    if not run.reference:
        return ""
    if data is None:
        return f"{len(run.held)} random feeds"
    if len(data) == 1:
        return "the only feed, which was calibrated on too"
    return f"{len(run.held)} of {len(data)} feeds, held out"


def _stats_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], Path | None]:
    files = [Path(p) for p in paths]
    new = [p for p in files if not p.exists()]
    if len(new) > 1:
        raise UsageError(f"of the statistics files at most one may be new, but {', '.join(map(str, new))} do not exist")
    for path in new:
        if not path.parent.is_dir():
            raise UsageError(f"the statistics cannot be written to {path}: there is no folder {path.parent}")
    return [p for p in files if p not in new], new[0] if new else None


def _size(graph: Graph, source: str | os.PathLike[str] | onnx.ModelProto) -> int:
    if isinstance(source, onnx.ModelProto):
        return int(source.ByteSize())
    return file_size(graph) if graph.external else Path(source).stat().st_size


def _silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""
