"""``squeeze``: the straight line from a model to a smaller one and a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze import codec, feeds, registry, runtime
from onnxsqueeze.bench import Bench
from onnxsqueeze.calibration import Statistics, collect, load_statistics, save_statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Pass, Site, Skip
from onnxsqueeze.cost import cost, file_size
from onnxsqueeze.edit import duplicate, tidy
from onnxsqueeze.errors import FeedError, ModelError, PassError, SqueezeError, ToleranceError, UsageError
from onnxsqueeze.feeds import Feeds
from onnxsqueeze.opset import raise_opset
from onnxsqueeze.report import Report, StepReport
from onnxsqueeze.validate import Answers, answer, compare, worst
from onnxsqueeze.view import View

__all__ = ["Result", "squeeze"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.generic]

COLLAPSE = 0.0
"""A pass whose worst output falls under this SQNR in dB has wrecked the model and is rolled back."""
ROUNDS = 8
"""How often a pass that repeats is planned at most."""
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Result:
    """What ``squeeze`` returns: the squeezed graph, and the report that explains it."""

    graph: Graph
    report: Report

    @property
    def model(self) -> onnx.ModelProto:
        """The squeezed model as a ModelProto in memory. Raises ModelError when it is over 2 GB."""
        return codec.encode(self.graph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path``, whole or not at all."""
        codec.save(self.graph, path)


@dataclass
class _Run:
    """What stays the same during one run."""

    calib: Sequence[dict[str, Array]]
    held: Sequence[dict[str, Array]]
    stages: dict[str, Statistics]
    check: bool
    seed: int
    progress: Progress
    reference: Answers = field(default_factory=list)
    previous: Answers = field(default_factory=list)


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
    and writes nothing. Statistics are read from those files of ``stats`` that exist, and written to the one that
    does not. ``progress`` is called with (stage, done, total).

    Raises UsageError, ModelError, PassError or ToleranceError.
    """
    start = time.perf_counter()
    report_progress = progress or _silent
    if validate not in ("full", "none"):
        raise UsageError(f"validate is 'full' or 'none', not '{validate}'")
    if min_sqnr is not None and validate == "none":
        raise UsageError("--min-sqnr needs the comparison that --validate none leaves out: drop one of them")
    chosen = registry.build(pipeline)
    _refuse_order(chosen)
    passes = _with_clean(chosen)
    report_progress("loading", 0, 1)
    original = codec.load(model)
    graph = codec.load(model)
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    data = _feeds(calibration, model if path is None else codec.encode(graph, skeleton=True), path, mean, std, scale, seed)
    calib, held = data.split() if data is not None else ((), ())
    known, unwritten = _stats_files(stats)
    check = validate == "full" and not dry_run
    run = _Run(calib, held, load_statistics(known), check, seed, report_progress)
    notes = _prepare_reference(run, original, data)
    before = cost(original, _size(model, original), next(iter(run.held or run.calib), None))

    steps: list[StepReport] = []
    for pass_, implicit in passes:
        graph, step = _run_pass(pass_, implicit, graph, run, [s.spec for s in steps if s.kept])
        steps.append(step)

    if unwritten is not None:
        save_statistics(unwritten, run.stages)
    deviations = compare(run.reference, run.previous) if run.reference else ()
    low = worst(deviations)
    if min_sqnr is not None and check:
        if not run.reference:
            raise ToleranceError("--min-sqnr cannot be checked without feeds: give --calib; nothing was written")
        if low < min_sqnr:
            raise ToleranceError(
                f"the result is at {low:.1f} dB SQNR, under the {min_sqnr:g} dB asked for; nothing was written. "
                "Use milder options or leave a pass out"
            )
    times = _latency(run, original, graph) if check and run.reference else None
    if output is not None and not dry_run:
        report_progress("saving", 0, 1)
        codec.save(graph, output)
    size = _written(Path(output)) if output is not None and not dry_run else file_size(graph)
    report = Report(
        model="<memory>" if path is None else str(path),
        output=None if output is None or dry_run else str(output),
        pipeline=", ".join(str(registry.spec(p)) for p, _ in passes),
        calibration=_words(data, run),
        held_out=_held_words(data, held),
        before=before,
        after=cost(graph, size, next(iter(run.held or run.calib), None)),
        latency_ms=None if times is None else (times[0][0], times[0][-1]),
        latency_ratio=None if times is None else times[1],
        deviations=deviations,
        steps=tuple(steps),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
        dry_run=dry_run,
    )
    return Result(graph, report)


def _run_pass(pass_: Pass, implicit: bool, graph: Graph, run: _Run, stage: list[str]) -> tuple[Graph, StepReport]:
    """View, collect, plan, apply, check, compare; keep the result or roll it back."""
    start = time.perf_counter()
    snapshot = codec.encode(graph) if run.check else None
    given = graph
    nodes, size, notes = _count(graph), file_size(graph), []
    done: list[Site] = []
    skipped: list[Skip] = []
    _refuse_quantized(pass_, graph)
    try:
        if graph.opset < pass_.min_opset and any(isinstance(e, Site) for e in pass_.plan(View(graph), Statistics())):
            before = graph.opset
            graph = raise_opset(graph, pass_.min_opset)
            notes.append(f"opset raised from {before} to {graph.opset}")
        bench = _bench(pass_, graph, run)
        for _ in range(ROUNDS if pass_.repeats else 1):
            view = View(graph)
            stats = _collect(pass_, view, run, ", ".join(stage))
            run.progress(pass_.name, len(done), 0)
            plan = list(pass_.plan(view, stats))
            if bench is not None and any(isinstance(entry, Site) for entry in plan):
                bench.stats = stats
                plan = pass_.select(plan, bench)
            sites = [entry for entry in plan if isinstance(entry, Site)]
            skipped = [entry for entry in plan if isinstance(entry, Skip)]
            for i, site in enumerate(sites):
                run.progress(pass_.name, i, len(sites))
                pass_.apply(site, graph)
            done += [replace(site, work=None) for site in sites]
            if not sites:
                break
            tidy(graph)
        if bench is not None and done:
            notes += pass_.tune(graph, bench)
            tidy(graph)
    except SqueezeError as error:
        if snapshot is None or isinstance(error, UsageError):
            raise
        graph, reason, done = _restored(snapshot, given), str(error), []
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise PassError(f"the pass '{pass_.name}' failed on this model: {type(error).__name__}: {error}") from error
    else:
        reason = None
    own = None
    if done and snapshot is not None:
        reason, own = _judge(graph, run)
        if reason is not None:
            graph, done = _restored(snapshot, given), []
    spec = str(registry.spec(pass_))
    counts, sizes = (nodes, _count(graph)), (size, file_size(graph))
    seconds = time.perf_counter() - start
    return graph, StepReport(
        spec, implicit, tuple(done), tuple(skipped), reason is None, reason, own, counts, sizes, seconds, tuple(notes)
    )


def _bench(pass_: Pass, graph: Graph, run: _Run) -> Bench | None:
    """Return the bench for a pass that experiments, if there are feeds to experiment on."""
    own = type(pass_)
    if not run.check or not len(run.calib) or (own.select is Pass.select and own.tune is Pass.tune):
        return None
    return Bench(duplicate(graph), run.calib, run.seed, run.progress)


def _restored(snapshot: onnx.ModelProto, given: Graph) -> Graph:
    """Decode the graph as it was before the pass; it still knows its file."""
    graph = codec.decode(snapshot, given.folder)
    graph.file = given.file
    return graph


def _judge(graph: Graph, run: _Run) -> tuple[str | None, float | None]:
    """Check and run the graph; return why it must be rolled back (None: it is fine) and this pass's own SQNR."""
    proto = codec.encode(graph)
    try:
        if not graph.external:  # the checker looks for data files beside the working directory
            onnx.checker.check_model(proto)
    except Exception as error:
        return f"the checker refuses the result: {str(error).strip().splitlines()[0][:200]}", None
    try:
        if not run.reference:
            runtime.Session(proto, graph.folder)
            return None, None
        found = answer(proto, graph.folder, run.held)
    except (ModelError, FeedError) as error:
        return f"the result does not run: {error}", None
    low = worst(compare(run.reference, found))
    if low < COLLAPSE:
        return f"the answers collapse to {low:.1f} dB SQNR", None
    own = worst(compare(run.previous, found))
    run.previous = found
    return None, own


def _collect(pass_: Pass, view: View, run: _Run, stage: str) -> Statistics:
    """Return the statistics that the pass declares: from files where they are there, measured else."""
    needs = list(dict.fromkeys(pass_.needs(view)))
    have = run.stages.get(stage, Statistics())
    missing = have.missing(needs)
    if missing and len(run.calib):
        measured = collect(view.graph, missing, run.calib, seed=run.seed, progress=run.progress)
        have = have.merge(measured)
        run.stages[stage] = have
    return have


def _with_clean(passes: Sequence[Pass]) -> list[tuple[Pass, bool]]:
    """Put ``clean`` and ``canonical`` before the first pass that wants a clean graph, unless the pipeline names them."""
    steps = [(p, False) for p in passes]
    first = next((i for i, p in enumerate(passes) if p.cleans_first), None)
    if first is None:
        return steps
    missing = [name for name in ("clean", "canonical") if not any(p.name == name for p in passes)]
    return [*steps[:first], *((registry.find(name)(), True) for name in missing), *steps[first:]]


def _refuse_order(passes: Sequence[Pass]) -> None:
    """Refuse, before any work, a pass for float weights behind int8."""
    names = [p.name for p in passes]
    for i, pass_ in enumerate(passes):
        if "int8" in names[:i] and pass_.float_only:
            way_out = "write it once" if pass_.name == "int8" else f"write {pass_.name},int8"
            raise UsageError(f"{pass_.name} cannot follow int8, which leaves no float weights; {way_out}")


def _refuse_quantized(pass_: Pass, graph: Graph) -> None:
    if not pass_.float_only:
        return
    ops = [n.op for n in View(graph).nodes if n.op in QUANTIZED or n.op.startswith("QLinear")]
    if ops:
        raise UsageError(
            f"the model is already quantized ({len(ops)} nodes such as {ops[0]}): {pass_.name} needs the float model"
        )


def _feeds(
    source: Any, model: onnx.ModelProto, path: Path | None, mean: Any, std: Any, scale: float | None, seed: int
) -> Feeds | None:
    inputs = feeds.inputs_of(model)
    if source is not None:
        return feeds.read(source, inputs, mean=mean, std=std, scale=scale, seed=seed, model_path=path)
    return None if path is None else feeds.find_beside(path, inputs)


def _prepare_reference(run: _Run, original: Graph, data: Feeds | None) -> list[str]:
    """Run the original on the held-out feeds; without feeds, on two random ones, only to see that results run."""
    notes = []
    if data is None:
        notes.append(
            "no calibration data: ranges and errors are not measured. With --calib, int8 also quantizes activations "
            "of convolutions, and lowrank fits the factors to real inputs"
        )
    elif data.invented:
        notes.append("calibrated on random values: the figures say little about real inputs")
    if not run.check:
        return notes
    proto = codec.encode(original)
    if data is None:
        runtime.Session(proto, original.folder)
        try:
            run.held = list(feeds.read("random", feeds.inputs_of(proto), seed=run.seed))[:2]
            run.reference = answer(proto, original.folder, run.held)
            notes.append("compared on 2 random feeds, which shows that the model runs, not how good it is")
        except (FeedError, ModelError):
            run.held, run.reference = (), []
            notes.append("the model does not run on random feeds: nothing was compared")
    else:
        run.reference = answer(proto, original.folder, run.held)
    run.held = run.held[: len(run.reference)]
    run.previous = run.reference
    return notes


def _latency(run: _Run, original: Graph, graph: Graph) -> tuple[list[float], float]:
    run.progress("timing", 0, 1)
    pair = [runtime.Session(codec.encode(g), g.folder, threads=1) for g in (original, graph)]
    return runtime.latency(pair, list(run.held[:8]))


def _words(data: Feeds | None, run: _Run) -> str:
    if data is None:
        return "statistics from a file" if run.stages else "none"
    return data.source


def _held_words(data: Feeds | None, held: Sequence[dict[str, Array]]) -> str:
    if data is None:
        return ""
    if len(data) == 1:
        return "the only feed, which was calibrated on too"
    return f"{len(held)} of {len(data)} feeds, held out"


def _stats_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], Path | None]:
    files = [Path(p) for p in paths]
    new = [p for p in files if not p.exists()]
    if len(new) > 1:
        raise UsageError(f"of the statistics files at most one may be new, but {', '.join(map(str, new))} do not exist")
    for path in new:
        if not path.parent.is_dir():
            raise UsageError(f"the statistics cannot be written to {path}: there is no folder {path.parent}")
    return [p for p in files if p not in new], new[0] if new else None


def _count(graph: Graph) -> int:
    return len(View(graph).nodes)


def _size(model: str | os.PathLike[str] | onnx.ModelProto, graph: Graph) -> int:
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return file_size(graph) if graph.external else Path(model).stat().st_size


def _written(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _silent(stage: str, done: int, total: int) -> None:
    """Report progress to nobody."""
