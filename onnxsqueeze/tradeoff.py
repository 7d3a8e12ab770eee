"""Speed against accuracy: what rounding does to the answers is measured tensor by tensor, and the best plan chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, log10, prod
from statistics import median
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxsqueeze import cost, qdq
from onnxsqueeze.affine import Affine
from onnxsqueeze.arithmetic import Arithmetic
from onnxsqueeze.bench import Bench
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Rewrite, Site, Skip
from onnxsqueeze.impact import Detour, impacts
from onnxsqueeze.quantizable import Layers, weight_slots
from onnxsqueeze.quantize import Work, as_stored
from onnxsqueeze.run_time import RunTime, RunTimeLayer
from onnxsqueeze.view import View, key_of

if TYPE_CHECKING:
    from onnxsqueeze.passes.int8 import Int8

__all__ = ["Search"]

Plan = list[Site | Skip]

PRICES = (0.0, 5.0, 15.0, 50.0, 150.0, 500.0, 1500.0, inf)
"""What a relative squared error of 1 at the answers is worth in turn, in run times of the float model."""
RATE = 0.02
"""The share of the run time that a decibel is worth."""
FINE = 41.0
"""The SQNR in dB from which more accuracy is worth nothing."""
NEAR_STORED = 3.0
"""Where stored weights alone miss ``max_drop``, int8 arithmetic may cost this many dB more."""
MEASURED = 48
"""How many tensors and layers are measured at most, those with the largest errors of their own first."""
MARGIN = 0.8
"""The share of ``max_drop²`` that predicted errors may take."""
TRIES = 3
"""How many plans are run."""
MORE = 0.4
"""The share of the stored weights that may get 16 bits."""
WIDENED = 40
"""With more weights than this, 16 bits are not tried."""
SLOWER = 1.0
"""A measured run time over that of the float graph from which int8 arithmetic is given up."""
INACCURATE = "int8 arithmetic would cost more accuracy than max-drop allows"
NOT_FASTER = "int8 arithmetic was measured and is not faster"


@dataclass(frozen=True)
class _Candidate:
    """A choice of what computes in integers, its predicted run time over that of the float model, and its error."""

    static: frozenset[int]
    dynamic: tuple[RunTimeLayer, ...]
    time: float
    error: float

    @property
    def loss(self) -> float:
        """What is minimized: run time plus ``RATE`` × 10·log10 of the error."""
        return self.time + RATE * 10 * log10(max(self.error, 10 ** (-FINE / 10)))


class Search:
    """The search of ``int8`` for the best plan of one graph."""

    def __init__(self, pass_: Int8, plan: Plan, bench: Bench) -> None:
        self.pass_, self.bench, self.first = pass_, bench, plan
        self.view = View(bench.original)
        self.layers = Layers(self.view, pass_.wanted)
        self.arithmetic = Arithmetic(self.layers, bench.stats, pass_.form)
        known = {w.source: w.smoothing for w in _works(plan) if w.source}
        self.run_time = RunTime(self.layers, bench.stats, known)
        self.effects: dict[str, float] = {}
        """What a tensor's rounding, or a run-time quantized layer, does to the answers alone: ``‖Δy‖² / ‖y‖²``."""
        self.wide: set[str] = set()
        """The keys of the sites whose weights are stored in 16 bits."""

    def best(self) -> Plan:
        """Return the plan with the least loss that keeps ``max_drop``; if none does, weights are only stored."""
        if all(site.action == "stored" for site in _sites(self.first)):
            self._widen(self.first, 0.0)
            return self._finished(self.first)
        self._measure()
        plan = self._search(self._candidates())
        if plan is None:
            return self._finished([as_stored(entry, INACCURATE) for entry in self.first])
        faster = self.pass_.form.symmetric or self.bench.latency(self._variant(plan)) <= SLOWER
        return self._finished(plan if faster else [as_stored(entry, NOT_FASTER) for entry in plan])

    # ---------------------------------------------------------------------------------------- measuring

    def _measure(self) -> None:
        """Measure the effects of the tensors and layers with the largest errors of their own; predict the others'."""
        rounded = self.arithmetic.roundings(self.arithmetic.choose(0.0))
        own = {name: error for name, (_, error) in rounded.items()}
        own |= {key_of(each.node): each.error for each in self.run_time.found if not self.view.in_body(each.node)}
        feed = self.bench.feeds[0]
        count = min(self.bench.affordable_variants(sum(cost.macs(self.bench.original, feed).values())), MEASURED)
        worst = sorted(own, key=lambda name: (-own[name], name))[:count]
        layers = {key_of(each.node): each for each in self.run_time.found}
        rewrites: dict[str, list[Rewrite]] = {}
        for name in worst:
            if name in rounded:
                rewrites[name] = [Detour(partial(_rounded, rounded[name][0]))]
            else:
                rewrites[name] = [partial(self.pass_.alone, site=Site(name, "dynamic", work=layers[name].work))]
        found = impacts(self.bench.original, [feed], rewrites, self.bench.progress)
        measured = {name: values[0] for name, values in found.items()}
        gains = [measured[name] / own[name] for name in measured if 0 < own[name] < inf]
        gain = median(gains) if gains else 1.0
        self.effects = {name: measured.get(name, gain * min(error, 1.0)) for name, error in own.items()}
        self.arithmetic.errors = self.effects

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

    def _effect(self, layer: RunTimeLayer) -> float:
        return self.effects.get(key_of(layer.node), 0.0)

    # ---------------------------------------------------------------------------------------- choosing

    def _search(self, candidates: list[_Candidate]) -> Plan | None:
        """Return the first plan in the order of loss that keeps ``max_drop``."""
        target = -20 * log10(self.pass_.max_drop)
        limit = MARGIN * self.pass_.max_drop**2
        tried: list[tuple[float, Plan]] = []
        for _ in range(TRIES):
            allowed = [each for each in candidates if each.error <= limit] or [candidates[-1]]
            pick = min(allowed, key=lambda each: each.loss)
            if not pick.static and not pick.dynamic:
                break
            plan = self._plan(pick)
            sqnr = self.bench.sqnr(self._variant(plan))
            if sqnr < FINE and not tried and self._widen(plan, pick.error):
                sqnr = self.bench.sqnr(self._variant(plan))
            tried.append((sqnr, plan))
            if sqnr >= target:
                return plan
            candidates = [each for each in candidates if each.error < pick.error]
            limit = MARGIN * self.pass_.max_drop**2 * min(pick.error / 10 ** (-sqnr / 10), 0.5)
            if not candidates:
                break
        base = [as_stored(entry, INACCURATE) for entry in self.first]
        near = self.bench.sqnr(self._variant(base)) - NEAR_STORED
        return next((plan for sqnr, plan in tried if sqnr >= near), None)

    def _plan(self, pick: _Candidate) -> Plan:
        work = [*self.arithmetic.work(set(pick.static)), *((each.node, each.work) for each in pick.dynamic)]
        return list(self.pass_.sites(self.layers, self.bench.stats, work))

    def _variant(self, plan: Plan) -> Graph:
        return self.bench.variant(self.pass_, _sites(self._finished(plan)))

    # ---------------------------------------------------------------------------------------- stored weights

    def _widen(self, plan: Plan, arithmetic: float) -> bool:
        """Choose the stored weights that get 16 bits: those whose rounding does most to the answers for their size.

        It ends when the rest does less than a quarter of what ``arithmetic`` does, or next to nothing. Returns
        whether there are any.
        """
        shared = self._stored(plan)
        if not shared or len(shared) > WIDENED or (not arithmetic and self.bench.sqnr(self._variant(plan)) >= FINE):
            return False
        sites = {site.key: site for site in _sites(plan)}
        alone: dict[str, list[Rewrite]] = {
            keys[0]: [partial(self.pass_.alone, site=sites[keys[0]])]
            for keys, _ in shared if len(keys) == 1 and not self.view.in_body(self._node(keys[0]))
        }  # fmt: skip
        found = impacts(self.bench.original, self.bench.feeds[:1], alone, self.bench.progress)
        effects: list[tuple[float, int, list[str]]] = []
        for step, (keys, size) in enumerate(shared):
            if keys[0] in found:
                effect = found[keys[0]][0]
            else:
                self.bench.progress("measuring weights", step, len(shared))
                effect = 10 ** (-self.bench.sqnr(self.bench.variant(self.pass_, [sites[key] for key in keys])) / 10)
            effects.append((effect, size, keys))
            self.effects.update(dict.fromkeys(keys, effect))
        left, budget = sum(effect for effect, _, _ in effects), MORE * sum(size for _, size, _ in effects)
        for effect, size, keys in sorted(effects, key=lambda each: -each[0] / each[1]):
            if left <= max(10 ** (-FINE / 10), arithmetic / 4):
                break
            if size <= budget and effect > 0.01 * left:
                left, budget = left - effect, budget - size
                self.wide.update(keys)
        return bool(self.wide)

    def _stored(self, plan: Plan) -> list[tuple[list[str], int]]:
        """Return the stored sites that share weights together, with the number of elements."""
        found: dict[tuple[int, ...], tuple[list[str], int]] = {}
        for site in _sites(plan):
            if site.action == "stored":
                node = self._node(site.key)
                tensors = [node.inputs[slot] for slot in weight_slots(node)]
                size = sum(prod(tensor.shape) for tensor in tensors)
                found.setdefault(tuple(id(t) for t in tensors), ([], size))[0].append(site.key)
        return list(found.values())

    def _node(self, key: str) -> gs.Node:
        return next(node for node in self.view.nodes if key_of(node) == key)

    # ---------------------------------------------------------------------------------------- the result

    def _finished(self, plan: Plan) -> Plan:
        """Return the plan with 16 bits where they were chosen, and with what was measured."""
        return [self._finished_site(entry) if isinstance(entry, Site) else entry for entry in plan]

    def _finished_site(self, site: Site) -> Site:
        assert isinstance(site.work, Work)
        if site.action == "stored" and site.key in self.wide:
            site = replace(site, action="stored in 16 bits", work=replace(site.work, wide=True))
        return site


def _rounded(affine: Affine, graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    return qdq.dequantized(graph, tensor, affine)


def _sites(plan: Iterable[Site | Skip]) -> list[Site]:
    return [entry for entry in plan if isinstance(entry, Site)]


def _works(plan: Plan) -> list[Work]:
    return [site.work for site in _sites(plan) if isinstance(site.work, Work)]
