"""Speed against accuracy: what rounding does to the answers is measured tensor by tensor, and the best plan chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log10

import onnx_graphsurgeon as gs

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure import cost
from onnxsqueeze.measure.attribution import effects
from onnxsqueeze.measure.switchboard import SAMPLES, sound
from onnxsqueeze.measure.switches import Detour
from onnxsqueeze.techniques.quantization.apply import Quantized, as_stored, quantize_alone, quantize_site
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.audit import audit
from onnxsqueeze.techniques.quantization.dynamic import Dynamic, DynamicLayer
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.footprint import frugal, hunger, kept_lean, leanable
from onnxsqueeze.techniques.quantization.grids import Affine, Grids
from onnxsqueeze.techniques.quantization.layers import Layers
from onnxsqueeze.techniques.quantization.plan import planned
from onnxsqueeze.techniques.quantization.precision import Plan, Precision, sites_of
from onnxsqueeze.techniques.quantization.speed import unslowed
from onnxsqueeze.techniques.quantization.words import explained, in_float, ranking

__all__ = ["Search", "Settings"]

PRICES = (0.0, 10.0, 30.0, 100.0, 300.0, 700.0, 1500.0, 4000.0, inf)
"""What a relative squared error of 1 at the answers is worth in turn, in run times of the float model."""
RATE = 0.025
"""The share of the run time that a decibel is worth."""
FINE = 32.0
"""The SQNR in dB from which more accuracy is worth no time."""
FEEDS = 2
"""Feeds on which errors are measured, cut to so many samples."""
LEAST, MOST = 16, 48
"""How many runs measuring takes."""
TRIES = 3
"""How many plans are run."""
SLOWER = 0.97
"""A measured run time over that of the float graph from which int8 arithmetic is given up, if it is surely more."""
INACCURATE = "int8 arithmetic would cost more accuracy than max-drop allows"
UNCOMPARED = "int8 arithmetic could not be compared: no plan with it runs on the calibration feeds"
NOT_FASTER = "int8 arithmetic was measured and is not faster"
CLOSE = "whether int8 arithmetic is faster here is within the noise of measuring; predicted times decide: it is"
NOT_WORTH = "int8 arithmetic would cost more accuracy than its speed is worth"
UNFUSED = "ONNX Runtime does not fuse it"
OTHERWISE = "ONNX Runtime's optimizations change what it computes"
NOTHING = (
    "8-bit arithmetic brings nothing here on {}, so weights are only stored; less time is to be had by lowrank and "
    "prune, which leave less to compute, or on another target; half stores weights more exactly"
)
DRIFT = 35.0
"""The SQNR in dB between optimized and unoptimized answers that is enough; less is, if rounding costs as much."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A choice of what computes in integers, its predicted run time over that of the float model, and its error."""

    static: frozenset[int]
    dynamic: tuple[DynamicLayer, ...]
    time: float
    error: float


@dataclass(frozen=True)
class Settings:
    """What ``int8`` is asked for: how numbers are written, the largest error of an output, and what it may touch."""

    form: Grids
    max_drop: float
    wanted: Callable[[gs.Node], bool]
    lean: bool = False
    """Whether all weights that are stored stay integers in memory, whatever time it takes."""


class Search:
    """The search of ``int8`` for the best plan of one graph."""

    def __init__(self, settings: Settings, plan: Plan, bench: Bench) -> None:
        self.settings, self.bench = settings, bench
        self.view = View(bench.original)
        self.nodes = {key_of(node): node for node in self.view.nodes}
        self.layers = Layers(self.view, settings.wanted)
        works = [site.work for site in sites_of(plan)]
        kept = works[0].kept
        known = {work.source: work.smoothing for work in works if work.source}
        self.arithmetic = Arithmetic(self.layers, bench.stats, settings.form, kept)
        self.run_time = Dynamic(self.layers, bench.stats, kept, known)
        self.free = leanable(self.arithmetic)
        """The keys of the nodes whose weights may be restored at every run."""
        self.first = self._asked(plan)
        self.effects: dict[str, float] = {}
        """What a tensor's rounding, or a run-time quantized layer, does to the answers alone: a relative error."""
        self.precision = Precision(self.view, bench, self.effects)
        self.refusal = INACCURATE
        """Why no arithmetic is in int8, if none is."""
        self.base = 0.0
        """What 8-bit weights alone do to the answers: all plans have them, most of all the one without arithmetic."""

    def best(self) -> Plan:
        """Return the plan with the least loss that keeps ``max_drop``; if none does, weights are only stored."""
        found = self._frugal(self._best())
        stored = all(site.work.form == "stored" for site in sites_of(found))
        if stored and self.view.target.verify.clock == "measured" and not self.settings.lean:
            found = unslowed(found, self.bench)
        plan = explained(found, self.layers, self.effects)
        self.bench.notes.extend(in_float(plan))
        inside = {site.key for site in sites_of(plan) if site.work.form in ("static", "integer", "gate")}
        chosen = {id(node) for node in self.arithmetic.nodes if key_of(node) in inside}
        self.bench.notes.extend(ranking(plan, self.effects, self.arithmetic.roundings(chosen)))
        if stored:
            self.bench.notes.append(NOTHING.format(self.view.target.name))
        return plan

    def _best(self) -> Plan:
        if all(site.work.form == "stored" for site in sites_of(self.first)):
            if not self.settings.lean:  # 16 bits are restored at load
                self.precision.widen(self.first, 0.0)
            self.precision.bound(self.first, self.settings.max_drop**2)
            return self.precision.finished(self.first)
        self._measure()
        found = self._search(self._candidates())
        if found is None:
            return self.precision.finished(self._without_arithmetic(self.refusal))
        error, plan, graph = found
        local = self.settings.form.saturates  # ONNX Runtime here says little about other forms
        verify = self.view.target.verify
        if local and verify.clock == "measured":
            ratio = self.bench.latency(graph, SLOWER)
            if ratio > SLOWER:
                return self.precision.finished(self._without_arithmetic(NOT_FASTER))
            if ratio == SLOWER:
                self.bench.notes.append(CLOSE)
        return self.precision.finished(self._audited(plan, graph, error) if local and verify.fusion else plan)

    def _asked(self, plan: Iterable[Site[Quantized] | Skip]) -> Plan:
        """Return the plan with all stored weights in the form that was asked for."""
        return kept_lean(plan, self.free if self.settings.lean else set())

    def _frugal(self, plan: Plan) -> Plan:
        """Return the plan that takes no more memory at run time than float, as far as that costs next to no time."""
        if self.settings.lean:
            return plan
        whole = self.arithmetic.float_time + sum(each.float_time for each in self.run_time.found)
        lean = frugal(plan, self.arithmetic, self.free, whole)
        if lean != plan and self._error(self._variant(lean)) > max(self.settings.max_drop**2, self.base):
            lean = plan
        self.bench.notes.extend(hunger(lean, self.nodes))
        return lean

    def _audited(self, plan: Plan, graph: Graph, error: float) -> Plan:
        """Take back what ONNX Runtime does not fuse, and all integer arithmetic if it computes another thing."""
        static = [site.key for site in sites_of(plan) if site.work.form == "static"]
        found = audit(graph, static, self.bench.feeds[:1]) if static else None
        if found is None:
            return plan
        if found.unfused:
            plan = self._asked(as_stored(each, UNFUSED) if each.key in found.unfused else each for each in plan)
            return self._audited(plan, self._variant(plan), error)
        if found.drift is not None and found.drift < min(DRIFT, -10 * log10(max(error, 1e-30))):
            return self._without_arithmetic(OTHERWISE)
        self.bench.notes.append(str(found))
        return plan

    # ---------------------------------------------------------------------------------------- measuring

    def _measure(self) -> None:
        """Measure what the tensors and layers that would be quantized do to the answers."""
        self.bench.progress("measuring layers", 0, 0)
        rounded = self.arithmetic.roundings(self.arithmetic.choose(0.0))
        rewrites: dict[str, Rewrite] = {n: Detour(partial(_rounded, affine)) for n, (affine, _) in rounded.items()}
        own = {name: error for name, (_, error) in rounded.items()}
        for each in self.run_time.found:
            if not self.view.in_body(each.node) and each.int8_time < each.float_time:
                name = key_of(each.node)
                rewrites[name] = partial(quantize_alone, site=Site(name, "dynamic", work=each.work))
                own[name] = min(each.error, 1.0)
        if rewrites:
            places = {str(t.name): i for i, node in enumerate(self.view.nodes) for t in node.outputs}
            names = sorted(rewrites, key=lambda name: (places.get(name, -1), name))
            feeds = self.bench.feeds[: 1 if self.bench.slow else FEEDS]
            boards = sound(self.bench.original, {name: {name: rewrites[name]} for name in names}, feeds, SAMPLES)
            runs = self._runs() // max(len(boards), 1)
            self.effects.update(dict.fromkeys(names, 1.0) if boards else {})
            for board, switched in boards:
                bench = self.bench
                self.effects |= effects(board, switched, own, runs, bench.progress, bench.ruler.error, bench.workers)
        self.arithmetic.errors = dict(self.effects)
        stored = [replace(site, work=_plain(site.work)) for site in sites_of(self._without_arithmetic(INACCURATE))]
        self.base = self._error(self.bench.variant(quantize_site, stored))
        if self.base > self.settings.max_drop**2 / 2:
            self.base = self.precision.bound(stored, self.settings.max_drop**2 / 2)

    def _runs(self) -> int:
        """Return how many runs measuring may take: about half as many as calibration took."""
        macs = sum(cost.macs(self.bench.original, self.bench.feeds[0]).values())
        wanted = min(max(len(self.bench.calib) // FEEDS, LEAST), MOST)
        return min(wanted, self.bench.affordable_variants(macs))

    def _candidates(self) -> list[_Candidate]:
        """Return different choices from the fastest to the most accurate."""
        run_time = self.run_time.found
        whole = self.arithmetic.float_time + sum(each.float_time for each in run_time)
        found: dict[frozenset[int], _Candidate] = {}
        for price in PRICES:
            static = self.arithmetic.choose(price * whole) if price < inf else set()
            dynamic = tuple(
                each for each in run_time
                if price < inf and each.float_time - each.int8_time > price * whole * self._effect(each)
            )  # fmt: skip
            time = self.arithmetic.time(static) + sum(e.float_time for e in run_time)
            time -= sum(each.float_time - each.int8_time for each in dynamic)
            error = self.arithmetic.total_error(static) + sum(self._effect(each) for each in dynamic)
            chosen = frozenset(static | {id(each.node) for each in dynamic})
            found.setdefault(chosen, _Candidate(frozenset(static), dynamic, time / whole, error))
        return list(found.values())

    def _effect(self, layer: DynamicLayer) -> float:
        return self.effects.get(key_of(layer.node), 0.0)

    # ---------------------------------------------------------------------------------------- choosing

    def _search(self, candidates: list[_Candidate]) -> tuple[float, Plan, Graph] | None:
        """Return the plan with the least loss that keeps ``max_drop`` after its error, None if only stored weights do.

        Where the error of a plan that was run is not the predicted one, the predictions of the others are scaled alike.
        """
        allowed, factor = self.settings.max_drop**2, 1.0
        tried: dict[_Candidate, tuple[float, Plan, Graph]] = {}
        for _ in range(TRIES):
            errors = {each: self.base + factor * each.error for each in candidates}
            kept = [each for each in candidates if errors[each] <= allowed] or candidates[-1:]
            pick = min(kept, key=lambda each: self._loss(each.time, errors[each]))
            if pick in tried or not (pick.static or pick.dynamic):
                self.refusal = INACCURATE if tried or len(kept) == 1 else NOT_WORTH
                break
            plan = self._plan(pick)
            if not tried and not self.settings.lean:
                self.precision.widen(plan, pick.error)
            graph = self._variant(plan)
            error = self._error(graph)
            tried[pick] = error, plan, graph
            factor = max(error - self.base, 0.1 * error) / max(pick.error, 1e-12) if error < inf else 4 * factor
        if tried and self.bench.keeps is None and all(error == inf for error, _, _ in tried.values()):
            self.refusal = UNCOMPARED
        good = [each for each in tried if tried[each][0] <= allowed]
        if good:
            return tried[min(good, key=lambda each: self._loss(each.time, tried[each][0]))]
        return None

    def _loss(self, time: float, error: float) -> float:
        """Return what is minimized: relative run time plus ``RATE`` × 10·log10 of the error.

        Where every operator should compute in integers, no error that ``max_drop`` allows buys one in float.
        """
        return time + (not self.layers.everywhere) * RATE * 10 * log10(max(error, 10 ** (-FINE / 10)))

    def _plan(self, pick: _Candidate) -> Plan:
        work = [*self.arithmetic.work(set(pick.static)), *((each.node, each.work) for each in pick.dynamic)]
        return self._asked(planned(self.run_time, work))

    def _without_arithmetic(self, reason: str) -> Plan:
        """Return the plan in which weights are only stored, with the reason why."""
        plan = {entry.key: entry for entry in self._asked(planned(self.run_time, ()))}
        for site in sites_of(self.first):
            if site.work.form != "stored":
                entry = plan.get(site.key)
                kept = replace(entry, detail={**entry.detail, "float": reason}) if isinstance(entry, Site) else None
                plan[site.key] = kept or entry or Skip(site.key, reason)
        return list(plan.values())

    def _variant(self, plan: Plan) -> Graph:
        return self.bench.variant(quantize_site, sites_of(self.precision.finished(plan)))

    def _error(self, graph: Graph) -> float:
        """Return the relative squared error of the answers of a graph, of the worst output on the trial feeds."""
        return self.bench.error(graph)


def _rounded(affine: Affine, graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    return qdq.dequantized(graph, tensor, affine)


def _plain(work: Quantized) -> Quantized:
    """Return the work without compensated rounding, which takes longer than what it changes here is worth."""
    return replace(work, moments=None)
