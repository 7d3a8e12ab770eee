"""One pass over one graph, guarded: view, collect, plan, apply, check, compare, then keep it or roll it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine import options, promises
from onnxsqueeze.engine.growth import LargerError, growth
from onnxsqueeze.errors import ContractError, FeedError, ModelError, PassError, SqueezeError, UsageError
from onnxsqueeze.graph.edit import distinguish
from onnxsqueeze.graph.operators import QUANTIZED
from onnxsqueeze.graph.opset import lower_opset, raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size, tensors
from onnxsqueeze.measure.answers import Answers, Ruler, answer, decibels
from onnxsqueeze.report.run import StepReport
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect

__all__ = ["Run", "quantized", "refuse_quantized", "run_pass"]

Progress = Callable[[str, int, int], None]
Feeds = Sequence[dict[str, NDArray[np.generic]]]

COLLAPSE = 3.0
"""A pass whose worst output falls under this SQNR in dB has wrecked the model and is rolled back.

Half of what the answers vary by is error then. Over the plans of ``benchmarks/ruler.py`` every one under it has lost
more than a point of its task's score, and those that lose 30 points are all under it.
"""
INVENTED = -20.0
"""The same on made-up feeds, which say little: errors ten times as large as what the answers vary by."""
CONVERTED = 60.0
"""A raised or lowered opset under this SQNR in dB is another model: an operator was misread."""
ROUNDS = 64
"""How often a pass that repeats is planned at most."""


@dataclass
class Run:
    """What the passes of one run share: feeds, statistics by stage, and the answers that results are held against.

    ``reference`` are the original's answers on ``held``, ``previous`` those after the last pass that was kept;
    both are empty where nothing can be run. ``check`` says whether results are checked, run and compared.
    """

    calib: Feeds
    held: Feeds
    stages: dict[str, Statistics]
    check: bool
    seed: int
    progress: Progress
    known: list[float] = field(default_factory=list)
    """Run-time ratios that the pass measured in an earlier run: a recipe repeats its decisions, not its clock."""
    measured: list[float] = field(default_factory=list)
    """Run-time ratios that the pass has measured, or was given, in this run."""
    reference: Answers = field(default_factory=list)
    previous: Answers = field(default_factory=list)
    ruler: Ruler = field(default_factory=Ruler)
    """What an error of the answers is."""
    invented: bool = False
    """Whether the feeds are made up."""
    score: Callable[[Answers], float] | None = None
    """The user's own score of answers on the held-out feeds."""
    keeps: Callable[[Graph], bool] | None = None
    """Whether the score of a graph on the calibration feeds stays within the user's limit, if there is one."""


def run_pass(pass_: Pass, implicit: bool, graph: Graph, run: Run, stage: str) -> tuple[Graph, StepReport]:
    """Return a rewritten copy of the graph, or the graph itself if the pass had to be rolled back, and what was done.

    ``stage`` is the text of the pipeline that has led to the graph. Raises UsageError for a pass that cannot work on
    this graph and for bad feeds, PassError for a pass that breaks, and what would be rolled back if nothing is checked.
    """
    start = time.perf_counter()
    refuse_quantized(pass_, graph)
    done: list[Site] = []
    skipped: list[Skip] = []
    notes: list[str] = []
    own = reason = None
    try:
        try:
            trial, done, skipped, own = _attempt(pass_, graph, run, stage, notes)
        except (_CollapseError, LargerError) as error:
            mild = pass_.milder()
            if mild is None:
                raise
            del notes[:]
            trial, done, skipped, own = _again(mild, error, graph, run, stage, notes)
    except SqueezeError as error:
        if isinstance(error, (UsageError, ContractError)) or not (run.check or isinstance(error, LargerError)):
            raise
        reason, done = str(error), []
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise PassError(f"the pass '{pass_.name}' failed on this model: {type(error).__name__}: {error}") from error
    after = trial if done else graph
    before = _count(graph), file_size(graph)
    now = (_count(after), file_size(after)) if done else before
    report = StepReport(
        spec=str(options.spec(pass_)),
        implicit=implicit,
        done=tuple(done),
        skipped=tuple(skipped),
        kept=reason is None,
        reason=reason,
        sqnr_db=own,
        nodes=(before[0], now[0]),
        bytes=(before[1], now[1]),
        seconds=time.perf_counter() - start,
        notes=tuple(notes) if done else (),
        score=run.score(run.previous) if done and run.score is not None and run.previous else None,
    )
    return after, report


def _attempt(
    pass_: Pass, graph: Graph, run: Run, stage: str, notes: list[str]
) -> tuple[Graph, list[Site], list[Skip], float | None]:
    trial = _in_opset(pass_, graph, run, notes) or graph.copy()
    distinguish(trial)
    done, skipped = _rewrite(pass_, trial, graph, run, stage, notes)
    if done:
        notes += growth(pass_, trial, graph)
    own = _judge(trial, graph, run) if done and run.check else None
    return trial, done, skipped, own


def _again(
    mild: Pass, first: ModelError, graph: Graph, run: Run, stage: str, notes: list[str]
) -> tuple[Graph, list[Site], list[Skip], float | None]:
    """Try the mildest form of a pass whose answers have collapsed; ModelError if they do again, or nothing is done."""
    spec = options.spec(mild)
    try:
        trial, done, skipped, own = _attempt(mild, graph, run, stage, notes)
    except (_CollapseError, LargerError) as error:
        raise type(error)(f"{first}; with {spec}, its mildest form, {error}") from error
    if not done:
        raise ModelError(f"{first}; with {spec}, its mildest form, there is nothing to do")
    notes.insert(0, f"as asked for, {first}: done in its mildest form, {spec}")
    return trial, done, skipped, own


class _CollapseError(ModelError):
    """The answers are so far away that the model is wrecked."""


def refuse_quantized(pass_: Pass, graph: Graph) -> None:
    """Raise UsageError if the graph has quantized operators and the pass needs float ones."""
    found = quantized(graph) if pass_.float_only else []
    if found:
        what = f"{len(found)} nodes such as {found[0]}"
        raise UsageError(f"the model is already quantized ({what}): {pass_.name} needs the float model")


def quantized(graph: Graph) -> list[str]:
    """Return the operators of the graph that quantize."""
    return [node.op for node, _ in walk(graph) if node.op in QUANTIZED or node.op.startswith("QLinear")]


def _in_opset(pass_: Pass, graph: Graph, run: Run, notes: list[str]) -> Graph | None:
    """Return the graph in an opset of the pass if its own is none and the pass has something to do, else None."""
    raises = graph.opset < pass_.min_opset
    if not raises and graph.opset <= (pass_.max_opset or graph.opset):
        return None
    # without statistics a plan is quick; on a copy, since a plan may be one that breaks its promise to only look
    if not any(isinstance(entry, Site) for entry in promises.plan(pass_, View(graph.copy()), Statistics())):
        return None
    try:
        found = raise_opset(graph, pass_.min_opset) if raises else lower_opset(graph, pass_.max_opset or 1)
    except ModelError as error:
        if raises:
            raise
        notes.append(f"opset {graph.opset} stays, though not all that {pass_.name} writes is known there: {error}")
        return None
    if run.check and run.reference:
        # without optimizations, so that both compute the same way
        sessions = [Session(each, optimize="none") for each in (graph, found)]
        low = decibels(run.ruler.error(*([session.run(feed) for feed in run.held[:2]] for session in sessions)))
        if low < CONVERTED:
            raise ModelError(
                f"opset {found.opset} instead of {graph.opset} changes the model's answers ({low:.1f} dB SQNR); "
                f"export the model for opset {found.opset}"
            )
    notes.append(f"opset {'raised' if raises else 'lowered'} from {graph.opset} to {found.opset}")
    return found


def _rewrite(
    pass_: Pass, graph: Graph, given: Graph, run: Run, stage: str, notes: list[str]
) -> tuple[list[Site], list[Skip]]:
    """Plan and apply, again and again for a pass that repeats; return what was done, and what the last plan skips.

    ``graph`` is rewritten, ``given`` is the same as it came.
    """
    bench = _bench(pass_, graph, run)
    interface = promises.interface(graph)
    done: list[Site] = []
    for _ in range(ROUNDS if pass_.repeats else 1):
        view = View(graph)
        stats = _collect(pass_, view, run, stage)
        run.progress(pass_.name, len(done), 0)
        plan = promises.plan(pass_, view, stats)
        if bench is not None and any(isinstance(entry, Site) for entry in plan):
            bench.stats = stats
            plan = promises.checked(pass_, "select", pass_.select(plan, bench), view)
        sites = [entry for entry in plan if isinstance(entry, Site)]
        skipped = [entry for entry in plan if isinstance(entry, Skip)]
        for i, site in enumerate(sites):
            run.progress(pass_.name, i, len(sites))
            promises.apply(pass_, site, graph)
        if not sites:
            break
        # what no tune will read goes at once: a pass that repeats would hold the weights of all rounds
        done += sites if bench is not None else _reported(sites)
        promises.tidied(pass_, graph, interface)
    if bench is not None and done:
        notes += pass_.tune(graph, tuple(done), bench)
        promises.tidied(pass_, graph, interface)
    done = _reported(done)
    if done:
        notes += [*(bench.notes if bench is not None else ()), *pass_.notes(given, graph, done)]
    return done, skipped


def _reported(sites: Iterable[Site]) -> list[Site]:
    """Return the sites as the report holds them, without what only the pass itself reads."""
    return [replace(site, work=None) for site in sites]


def _bench(pass_: Pass, graph: Graph, run: Run) -> Bench | None:
    """Return the bench for a pass that experiments, if there are feeds to experiment on."""
    own = type(pass_)
    if not run.check or not len(run.calib) or (own.select is Pass.select and own.tune is Pass.tune):
        return None
    bench = Bench(graph.copy(), run.calib, run.seed, run.progress, run.known, run.measured, run.ruler)
    bench.keeps = run.keeps
    return bench


def _collect(pass_: Pass, view: View, run: Run, stage: str) -> Statistics:
    """Return the statistics that the pass declares: from files where they are there, measured else."""
    needs = promises.needs(pass_, view)
    have = run.stages.get(stage, Statistics())
    missing = have.missing(needs)
    if missing and len(run.calib):
        have = have.merge(collect(view.graph, missing, run.calib, seed=run.seed, progress=run.progress))
        run.stages[stage] = have
    return have


def _judge(graph: Graph, given: Graph, run: Run) -> float | None:
    """Return this pass's own SQNR in dB, None without feeds; ModelError says why it must be rolled back."""
    _check(graph, given)
    try:
        if not run.reference:
            Session(graph)
            return None
        found = answer(graph, None, run.held, run.progress)
    except (ModelError, FeedError) as error:
        raise ModelError(f"the result does not run: {error}") from error
    low = decibels(run.ruler.error(run.reference, found))
    if low < (INVENTED if run.invented else COLLAPSE):
        raise _CollapseError(f"the answers collapse to {low:.1f} dB SQNR")
    own = decibels(run.ruler.error(run.previous, found))
    run.previous = found
    return own


def _check(graph: Graph, given: Graph) -> None:
    """Raise ModelError if ONNX's checker objects to the graph and did not object to what the pass was given."""
    objection = _objection(graph)
    if objection is not None and _objection(given) is None:
        raise ModelError(f"the checker refuses the result: {objection}")


def _objection(graph: Graph) -> str | None:
    """Return what ONNX's checker says against the graph, None if nothing."""
    model = encode(graph, skeleton=True)
    for tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # left out: the checker would look for the file
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def _count(graph: Graph) -> int:
    return sum(1 for _ in walk(graph))
