"""One pass over one graph, guarded: view, collect, plan, apply, check, compare, then keep it or roll it back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine import options, promises
from onnxsqueeze.engine.growth import LargerError, growth
from onnxsqueeze.engine.judge import CollapseError, culprits, judge, objection_to
from onnxsqueeze.engine.opset import in_opset
from onnxsqueeze.engine.run import Run
from onnxsqueeze.errors import ContractError, FeedError, ModelError, PassError, PlaceError, SqueezeError, UsageError
from onnxsqueeze.graph.edit import distinguish
from onnxsqueeze.graph.operators import QUANTIZED
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.report.run import StepReport
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect

__all__ = ["quantized", "refuse_quantized", "run_pass"]

Place = tuple[str, str]
"""The key and the action of a site."""

PLACES = 8
"""At how many places a pass may find that it cannot go on, until it is given up."""
TRIALS = 16
"""How often a lossless pass is tried to find the places where it is not."""
ROUNDS = 64
"""How often a pass that repeats is planned at most."""


def run_pass(pass_: Pass, implicit: bool, graph: Graph, run: Run, stage: str) -> tuple[Graph, StepReport]:
    """Return a rewritten copy of the graph, or the graph itself if the pass had to be rolled back, and what was done.

    ``stage`` is the text of the pipeline that has led to the graph. Raises UsageError for a pass that cannot work on
    this graph and for bad feeds, PassError for a pass that breaks, and what would be rolled back if nothing is checked.
    """
    start = time.perf_counter()
    refuse_quantized(pass_, graph)
    made = _Made(graph)
    reason = None
    try:
        try:
            made = _attempt(pass_, graph, run, stage)
        except (CollapseError, LargerError) as error:
            mild = pass_.milder()
            if mild is None:
                raise
            made = _again(mild, error, graph, run, stage)
    except SqueezeError as error:
        if isinstance(error, (UsageError, ContractError)) and not _is_ours(error, graph, run):
            raise
        if not run.check and not isinstance(error, LargerError):
            raise
        reason = str(error)
    except MemoryError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise SqueezeError(f"the pass '{pass_.name}' cannot go on: {where}{error.strerror or error}") from error
    except Exception as error:
        broken = objection_to(graph)
        if broken is not None:  # the pass may not be to blame
            raise ModelError(f"the model is broken: {broken}; the pass '{pass_.name}' cannot go on") from error
        raise PassError(f"the pass '{pass_.name}' failed on this model: {type(error).__name__}: {error}") from error
    for stats in run.stages.values():
        stats.derived.clear()
    done = made.done
    after = made.graph if done else graph
    before = _count(graph), file_size(graph)
    now = (_count(after), file_size(after)) if done else before
    report = StepReport(
        spec=str(options.spec(pass_)),
        implicit=implicit,
        done=tuple(done),
        skipped=tuple(made.skipped),
        kept=reason is None,
        reason=reason,
        sqnr_db=made.own,
        nodes=(before[0], now[0]),
        bytes=(before[1], now[1]),
        seconds=time.perf_counter() - start,
        notes=tuple(made.notes) if done else (),
        score=run.score(run.previous) if done and run.score is not None and run.previous else None,
    )
    return after, report


def _is_ours(error: SqueezeError, graph: Graph, run: Run) -> bool:
    """Whether a feed was refused by what we made of the model alone: the model itself runs on all feeds."""
    if not isinstance(error, FeedError):
        return False
    session = Session(graph)
    for feed in run.calib:
        session.run(feed)
    return True


@dataclass
class _Made:
    """What a pass has made of a graph: what was done, what was left alone, its own SQNR in dB, and what it says."""

    graph: Graph
    done: list[Site] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    own: float | None = None
    notes: list[str] = field(default_factory=list)


def _attempt(pass_: Pass, graph: Graph, run: Run, stage: str) -> _Made:
    """Return what the pass makes of a copy, without the places where it cannot go on or turns out to be wrong."""
    left: dict[Place, str] = {}
    known = list(run.known)
    while True:
        made = _Made(graph)
        run.known[:], run.measured[:] = known, []
        try:
            return _tried(pass_, graph, run, stage, left, made)
        except PlaceError as error:
            place = error.key, error.action
            if len(left) == PLACES or place in left:
                raise
            left[place] = f"it cannot be rewritten: {error}"
        except ModelError as error:
            if not pass_.lossless or not made.done or isinstance(error, LargerError):
                raise
            reason = str(error)
            break
    places = [place for place in _places(made.done) if place not in left]

    def works(out: set[Place]) -> bool:
        try:
            _tried(pass_, graph, run, stage, left | dict.fromkeys(out, reason), _Made(graph))
        except ModelError:
            return False
        return True

    out = culprits(places, works, TRIALS)
    if len(out) == len(places):
        raise ModelError(reason)
    return _tried(pass_, graph, run, stage, left | dict.fromkeys(out, f"left alone, or {reason}"), _Made(graph))


def _tried(pass_: Pass, graph: Graph, run: Run, stage: str, left: Mapping[Place, str], made: _Made) -> _Made:
    made.graph = in_opset(pass_, graph, run, made.notes) or graph.copy()
    distinguish(made.graph)
    made.done, made.skipped = _rewrite(pass_, made.graph, graph, run, stage, made.notes, left)
    if made.done:
        made.notes += growth(pass_, made.graph, graph)
    made.own = judge(pass_, made.graph, graph, run) if made.done and run.check else None
    return made


def _places(sites: Iterable[Site]) -> list[Place]:
    return list(dict.fromkeys((site.key, site.action) for site in sites))


def _without(plan: list[Site | Skip], left: Mapping[Place, str]) -> list[Site | Skip]:
    """Return the plan with reasons in the place of the sites that are left out."""
    return [
        Skip(entry.key, left[entry.key, entry.action])
        if isinstance(entry, Site) and (entry.key, entry.action) in left
        else entry
        for entry in plan
    ]


def _again(mild: Pass, first: ModelError, graph: Graph, run: Run, stage: str) -> _Made:
    """Try the mildest form of a pass whose answers have collapsed; ModelError if they do again, or nothing is done."""
    spec = options.spec(mild)
    try:
        made = _attempt(mild, graph, run, stage)
    except (CollapseError, LargerError) as error:
        raise type(error)(f"{first}; with {spec}, its mildest form, {error}") from error
    if not made.done:
        raise ModelError(f"{first}; with {spec}, its mildest form, there is nothing to do")
    made.notes.insert(0, f"as asked for, {first}: done in its mildest form, {spec}")
    return made


def refuse_quantized(pass_: Pass, graph: Graph) -> None:
    """Raise UsageError if the graph has quantized operators and the pass needs float ones."""
    found = quantized(graph) if pass_.float_only else []
    if found:
        what = f"{len(found)} nodes such as {found[0]}"
        way = f"give the float model, or write float32{{integers}} in front of {pass_.name}, which makes one of it"
        raise UsageError(f"the model is already quantized ({what}): {pass_.name} needs the float model; {way}")


def quantized(graph: Graph) -> list[str]:
    """Return the operators of the graph that quantize."""
    return [node.op for node, _ in walk(graph) if node.op in QUANTIZED or node.op.startswith("QLinear")]


def _rewrite(
    pass_: Pass, graph: Graph, given: Graph, run: Run, stage: str, notes: list[str], left: Mapping[Place, str]
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
        plan = _without(promises.plan(pass_, view, stats), left)
        if bench is not None and any(isinstance(entry, Site) for entry in plan):
            bench.stats = stats
            plan = _without(promises.checked(pass_, "select", pass_.select(plan, bench), view), left)
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
        notes += promises.words(pass_, "tune", pass_.tune(graph, tuple(done), bench))
        promises.tidied(pass_, graph, interface)
    done = _reported(done)
    if done:
        promises.writable(pass_, graph)
        notes += promises.words(pass_, "bench.notes", bench.notes if bench is not None else ())
        notes += promises.words(pass_, "notes", pass_.notes(given, graph, done))
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
    bench.label = run.label
    bench.workers = run.workers
    bench.teacher = run.teacher
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


def _count(graph: Graph) -> int:
    return sum(1 for _ in walk(graph))
