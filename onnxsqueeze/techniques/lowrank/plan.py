"""Factoring many layers under one budget: what each could become, which of it to take, and how it enters the graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.budget.spend import Option, within, worth
from onnxsqueeze.contract.bargain import forgone
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Level, Site, Skip
from onnxsqueeze.contract.selection import Selected
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_value
from onnxsqueeze.linear.chains import rewrite
from onnxsqueeze.linear.fitting import Fitting, few_rows, relative_error
from onnxsqueeze.linear.fitting import fitting as fitted
from onnxsqueeze.linear.layers import Linear, covariance, matrix
from onnxsqueeze.linear.select import layers
from onnxsqueeze.measure import cost
from onnxsqueeze.measure.probes import Probe, gains
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.targets.times import macs
from onnxsqueeze.techniques.lowrank import forms
from onnxsqueeze.techniques.lowrank.choice import Compose, Factored, Factoring, Outline, Unit, dense
from onnxsqueeze.techniques.lowrank.forms import Candidate
from onnxsqueeze.techniques.lowrank.unseen import judged

__all__ = ["apply", "levels", "measure", "pose", "reconsider"]

PROBE = 0.02
"""The relative error of a layer's output that measures its gain."""
LEVELS = (0.75, 0.5, 0.25)
"""Shares of a layer's multiply-accumulates at which ``levels`` treats it."""

Plan = list[Site[Factored] | Skip]
Find = Callable[[Fitting], Iterable[Candidate] | str]
"""The candidates of a layer, or why it has none."""


def apply(site: Site[Factored], graph: Graph, label: str) -> None:
    """Rewrite the layer or layers of a site."""
    problem, fittings, choice = site.work.problem, site.work.fittings, site.work.choice
    shared, branches, shifts = problem.build(fittings, choice)
    also = fittings[0].layer.also if len(fittings) == 1 else ()
    for keys in ([f.layer.key for f in fittings], *([key] for key in also)):
        rewrite(graph, keys, shared, branches, shifts, label)


def pose(
    view: View, stats: Statistics, pass_: Selected, find: Find, compose: Compose, *, bound: Hashable, free: bool
) -> tuple[list[Unit], list[Skip], dict[str, int]]:
    """Return the layers with their candidates, by the input they share, why others stay, and the output positions.

    ``bound`` are the options on which the candidates of a layer hang; without a budget of error the pass is ``free`` to
    take layers of which too little was seen to promise one.
    """
    units: list[Unit] = []
    skips: list[Skip] = []
    positions: dict[str, int] = {}
    groups: dict[tuple[int, object], Unit] = {}
    for entry in layers(view, pass_):
        if isinstance(entry, Skip):
            skips.append(entry)
            continue
        node, layer = entry
        fitting = fitted(stats, layer, matrix(view, node))
        known: dict[Hashable, list[Candidate] | str] = stats.derived.setdefault(("candidates", pass_.name, bound), {})
        if layer not in known:
            answer = find(fitting)
            known[layer] = answer if isinstance(answer, str) else judged(fitting, answer, compose)
            forms.forget(fitting)
        answer = known[layer]
        if fitting.unsure and not free and not isinstance(answer, str):
            answer = fitting.unsure
        found = [] if isinstance(answer, str) else answer
        if not found:
            reason = answer if isinstance(answer, str) else "it answers nothing on the calibration feeds"
            skips.append(Skip(layer.key, reason))
            continue
        count = _positions(view, node, layer)
        if count is not None:
            positions[layer.key] = count * len(layer.keys)
        same = (id(view.scope(node)), (layer.gram, layer.op, layer.also and layer.key))
        if same in groups:
            groups[same].fittings.append(fitting)
            groups[same].found.append(found)
        else:
            groups[same] = Unit([fitting], [found])
            units.append(groups[same])
    return units, skips, positions


def levels(
    view: View, stats: Statistics, pass_: Selected, find: Find, outline: Outline, compose: Compose
) -> Iterator[Level]:
    """Yield each layer at each of LEVELS, in the form with the least error that is no dearer."""
    for entry in layers(view, pass_):
        if isinstance(entry, Skip):
            continue
        node, layer = entry
        fitting = Fitting(layer, matrix(view, node), *covariance(stats, layer))
        answer = find(fitting)
        costs = (
            []
            if isinstance(answer, str)
            else [(macs(outline(layer, c.form, c.ranks)) / macs(dense(layer)), c) for c in answer]
        )
        for limit in LEVELS:
            cheap = [(c.error, i) for i, (share, c) in enumerate(costs) if share <= limit]
            if cheap:
                share, candidate = costs[min(cheap)[1]]
                put = partial(_put, fitting=fitting, candidate=candidate, compose=compose)
                yield Level(layer.key, f"{limit:.0%}", share, candidate.error, dict.fromkeys(layer.keys, put))


def _put(graph: Graph, key: str, fitting: Fitting, candidate: Candidate, compose: Compose) -> None:
    """Put the candidate in the place of the layer that makes ``key``."""
    branches, weight = compose(fitting, candidate)
    rewrite(graph, [key], (), [branches], [fitting.shift(weight)], "level")


def _positions(view: View, node: gs.Node, layer: Linear) -> int | None:
    shape = view.shape(node.outputs[0])
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return prod(int(d) for d in shape if isinstance(d, int)) // layer.outputs


def measure(problem: Factoring, bench: Bench) -> None:
    """Measure the gain of every layer of the problem, and take the positions from a real feed."""
    counted = cost.macs(bench.original, bench.feeds[0])
    fittings = [f for unit in problem.units for f in unit.fittings]
    problem.positions = {
        f.layer.key: sum(counted.get(key, 0) for key in f.layer.keys) // f.layer.parameters
        for f in fittings
        if f.layer.key in counted
    }
    view = View(bench.original)
    nodes = {key_of(node): node for node in view.nodes}
    probes: dict[str, Probe] = {}
    axes: dict[str, int] = {}
    for fitting in fittings:
        node = nodes.get(fitting.layer.key)
        if node is None or view.in_body(node) or fitting.mean is None or np.dtype(node.inputs[1].dtype) != np.float32:
            continue
        probes[fitting.layer.key] = probe(fitting, bias_value(view, node))
        axes[fitting.layer.key] = 1 if fitting.layer.op == "Conv" else -1
    if not probes:
        return
    feeds = bench.affordable(sum(counted.values()), len(probes))
    if any(fitting.rows is not None for fitting in fittings):
        feeds = bench.unseen[: len(feeds)]
    also = {f.layer.key: f.layer.also for f in fittings}
    known = bench.stats.derived.setdefault("gains", {})
    key = bench.most, *probes
    if key not in known:
        known[key] = gains(
            bench.original, probes, feeds, axes, bench.progress, bench.ruler, also, bench.most, bench.workers
        )
    problem.gains = known[key]


def probe(fitting: Fitting, offset: Matrix | float) -> Probe:
    """Return the perturbation that truncates the layer's output to the rank that leaves an error of about 2 %."""
    basis, values = forms.channel(fitting)
    total = max(float(values.sum()), 1e-30)
    left = 1 - np.cumsum(values) / total
    rank = int(np.argmax(left <= PROBE)) if left[-1] <= PROBE else len(values) - 1
    rank = min(rank, len(values) - 1)
    lost = basis[:, rank:]
    if len(values) < fitting.layer.outputs and rank == 0:
        lost = basis
    change = -lost @ lost.T
    mean = np.zeros(fitting.layer.outputs) if fitting.mean is None else fitting.weight @ fitting.mean + offset
    error = float(values[rank:].sum()) / total
    if fitting.unseen is not None:
        error = min(error, relative_error(fitting.unseen, fitting.weight + change @ fitting.weight))
        fitting.forget()
    return change, -change @ mean, error


def reconsider(pass_: Pass[Factored], plan: Plan, bench: Bench, *, asked: bool) -> Plan:
    """Solve the plan's problem again with measured gains, until the measured error keeps a budget of error too.

    What was not ``asked`` for, by a budget of the user's, has to be worth its error.
    """
    problem = next(e.work for e in plan if isinstance(e, Site)).problem
    measure(problem, bench)
    kept: Plan = [e for e in plan if isinstance(e, Skip) and not problem.holds(e.key)]

    fittings = [f for unit in problem.units for f in unit.fittings]
    bench.notes += few_rows(bench.stats, [f.layer for f in fittings])
    measured = bench.error if all(f.rows is None for f in fittings) else bench.unseen_error
    trial = replace(problem, built={})

    def error_of(found: list[Option]) -> float:
        sites = [replace(e, work=e.work.early(trial)) for e in problem.entries(found) if isinstance(e, Site)]
        return measured(bench.variant(pass_.apply, sites)) if sites else 0.0

    if problem.ratio is not None:
        found = problem.solve(problem.max_error)
    else:
        nothing = [Option(0, 0, (None,) * len(unit.fittings)) for unit in problem.units]
        found, error = within(problem.max_error, problem.solve, error_of, nothing, tries=5)
        saved = 1 - sum(option.cost for option in found) / max(problem.whole, 1e-30)
        if not asked and found is not nothing and not worth(saved, error):
            return [*kept, *forgone(problem.entries(problem.solve(0.0)), problem.entries(found), saved, error)]
    return [*kept, *problem.entries(found)]
