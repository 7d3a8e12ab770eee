"""``prune``: whole channels, neurons and heads leave the graph, and what reads them takes over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

from onnxsqueeze.budget.spend import DEFAULT_ERROR, By, within, worth
from onnxsqueeze.contract.bargain import forgone
from onnxsqueeze.linear import refit
from onnxsqueeze.linear.fitting import few_rows
from onnxsqueeze.linear.layers import Linear, describe
from onnxsqueeze.plugin import Bench, Graph, Level, Need, Selected, Site, Skip, Statistics, View, edit, key_of
from onnxsqueeze.techniques.pruning import repair
from onnxsqueeze.techniques.pruning.choice import Removal, Score, pose
from onnxsqueeze.techniques.pruning.coupling import Coupling, couple, outside
from onnxsqueeze.techniques.pruning.readers import WIDEST, Indices, distrust
from onnxsqueeze.techniques.pruning.repair import without
from onnxsqueeze.techniques.pruning.units import Group
from onnxsqueeze.training.tuning import trained

__all__ = ["Prune"]

LEVELS = (0.75, 0.5, 0.25)
"""The shares of its units that a group keeps in a study of sensitivity."""


@dataclass(frozen=True)
class Removed:
    """What a site carries: its problem, the candidate, and the units that leave."""

    problem: Removal
    index: int
    units: tuple[int, ...]

    @property
    def removal(self) -> tuple[Group, tuple[int, ...]]:
        """The group and its units."""
        return self.problem.candidates[self.index].group, self.units


@dataclass(frozen=True)
class Prune(Selected[Removed]):
    """Remove the channels, neurons and heads that the answers miss least, with all that makes and reads them.

    Channels that can only leave together form a group. A unit's score is the output error that its removal adds after
    the layers that read it are fitted again: with the covariance S of their inputs and ``H = S + λI``, that is
    ``tr(W_c [H⁻¹]_cc⁻¹ W_cᵀ)`` (optimal brain surgeon, in blocks), weighed by what a layer's error does to the answers.
    Units go one by one, cheapest first; the layers that read them get ``Ŵ_K = W S_{:,K} S_KK⁻¹`` and
    ``b̂ = b + Wμ − Ŵ_K μ_K``. At last all layers behind are fitted again to the original's outputs.

    All groups share one budget: ``ratio``, or else ``max-error``. Without feeds S = I: the norm of the weights decides.
    Each plan is held against the graph in which the same channels are masked, before anything is repaired.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "remove whole channels, neurons and heads, and let the layers that read them take over"

    ratio: float | None = None
    """Leave this share of the cost of all layers, over 0 and under 1."""
    by: By = "macs"
    """What ratio counts: macs (multiply-accumulates), params (weights) or latency (predicted time)."""
    max_error: float | None = None
    """Save what this relative squared error of the answers allows; 0.002 (27 dB) if no ratio is given."""
    score: Score = "obs"
    """What decides which units go: obs, or, to compare with, l1, l2 (norms of the weights that make them) or random."""
    round_to: int = 8
    """Leave a multiple of this many channels."""
    residual: bool = False
    """Prune the channels of residual streams too, which many layers share."""
    heads: bool = False
    """Prune attention heads too."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Prune only the groups whose first layer matches one of these patterns (* and ?) by output or node name."""
    exclude: tuple[str, ...] = ()
    """Leave alone the groups that match one of these patterns."""
    steps: int = 1
    """Prune in so many steps, with new statistics and a repair in each; needs ratio."""
    repair: bool = True
    """Fit the layers behind to what the original answers."""
    train: int = 0
    """Steps of training towards the original, end to end, after each step of pruning."""

    def __post_init__(self) -> None:
        if self.ratio is not None and self.max_error is not None:
            raise ValueError("ratio and max-error exclude each other")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError("ratio is over 0 and under 1")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise ValueError("max-error is over 0 and under 1")
        if self.round_to < 1:
            raise ValueError("round-to is at least 1")
        if self.steps < 1:
            raise ValueError("steps is at least 1")
        if self.train < 0:
            raise ValueError("train is at least 0")
        if self.steps > 1 and self.ratio is None:
            raise ValueError("steps needs a ratio to go towards")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer that reads a group."""
        nodes = {key_of(node): node for node in view.nodes}
        for entry in self._groups(view, couple(view)):
            if isinstance(entry, Group):
                for slot in entry.slots:
                    layer = describe(view, nodes[slot.nodes[0]]) if slot.role == "consumer" else None
                    if isinstance(layer, Linear) and layer.columns <= WIDEST:
                        yield layer.gram

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Removed] | Skip]:
        """Yield a site for every group that the budget makes smaller."""
        coupling = couple(view)
        yield from (entry for entry in self._groups(view, coupling, stats) if isinstance(entry, Skip))
        yield from (Skip(names[0], reason) for names, reason in outside(view, coupling) if self.wanted(names))
        problem = self._pose(view, stats, coupling)
        if problem is not None:
            yield from self._entries(problem, problem.solve(self._first, self.max_error or DEFAULT_ERROR))

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield each group with 0.75, 0.5 and 0.25 of its units left, masked in all layers that read them."""
        problem = self._pose(view, stats, couple(view))
        for candidate in problem.candidates if problem is not None else ():
            size = candidate.group.size
            plain = all(reader.linear is not None for reader, _ in candidate.readers)
            for share in LEVELS if plain else ():
                units = candidate.curve.order[: size - round(share * size)]
                if len(units):
                    pairs = [(r, without(r, r.columns(slot)[units].reshape(-1))) for r, slot in candidate.readers]
                    rewrites = {reader.key: rewrite for reader, (rewrite, _) in pairs}
                    error = sum(error for _, (_, error) in pairs)
                    yield Level(candidate.group.name, f"{share:.0%}", 1 - len(units) / size, error, rewrites)

    def select(self, plan: list[Site[Removed] | Skip], bench: Bench) -> list[Site[Removed] | Skip]:
        """Decide again with the measured effect of each layer on the answers, and prove that the removal is right."""
        problem = next(e.work for e in plan if isinstance(e, Site)).problem
        members = {c.group.name for c in problem.candidates}
        others: list[Site[Removed] | Skip] = [e for e in plan if isinstance(e, Skip) and e.key not in members]
        repair.measure(problem, bench)

        def solve(limit: float) -> list[int]:
            return problem.solve(self._first, limit)

        readers = problem.readers.values()
        bench.notes += few_rows(bench.stats, [r.linear for r in readers if r.linear is not None])
        measured = bench.error if all(reader.early is None for reader in readers) else bench.unseen_error

        def error_of(removed: list[int]) -> float:
            sites = [e for e in self._entries(problem, removed) if isinstance(e, Site)]
            return measured(bench.variant(partial(self._take_out, early=True), sites)) if sites else 0.0

        budget, nothing = self.max_error or DEFAULT_ERROR, [0] * len(problem.candidates)
        if self.ratio is not None:
            found = solve(budget)
        else:
            found, error = within(budget, solve, error_of, nothing, tries=6)
            if self.max_error is None and any(found):
                saved = 1 - problem.cost(found) / problem.cost(nothing)
                if not worth(saved, error):
                    left = self._entries(problem, nothing)
                    return [*others, *forgone(left, self._entries(problem, found), saved, error)]
        return others + self._proven(list(self._entries(problem, found)), problem, bench)

    def milder(self) -> Prune | None:
        """Return the pass with the default budget of error, if it has another one."""
        mild = replace(self, ratio=None, max_error=None, steps=1)
        return None if mild == self or self.max_error == DEFAULT_ERROR else mild

    def apply(self, site: Site[Removed], graph: Graph) -> None:
        """Remove the units of a group."""
        self._take_out(site, graph)

    def _take_out(self, site: Site[Removed], graph: Graph, early: bool = False) -> None:
        work = site.work
        candidate = work.problem.candidates[work.index]
        repair.take_out(graph, work.problem, candidate, work.units, repair=self.repair, early=early)

    def tune(self, graph: Graph, done: Sequence[Site[Removed]], bench: Bench) -> Iterable[str]:
        """Fit the layers behind to the original's outputs, and go the other steps."""
        kept: dict[str, tuple[int, Indices]] = {}
        left = 1.0
        for step in range(1, self.steps + 1):
            sites = done if step == 1 else self._go_on(graph, bench, self._target(step) / left)
            works = [site.work for site in sites]
            if step > 1:
                yield f"step {step}: {sum(len(work.units) for work in works)} more units of {len(works)} groups"
            if not works:  # so small a step that no unit leaves: the next one is larger
                continue
            left *= works[0].problem.left({work.index: len(work.units) for work in works})
            kept = repair.behind(kept, works[0].problem.coupling.kept(graph))
            if self.repair:
                yield from refit.refit(graph, bench, kept)
            if self.train:
                yield from trained(graph, bench, self.train)
        if self.ratio is not None and left > self.ratio:
            yield f"ratio={self.ratio:g} is out of reach: {left:.2f} is left where all that may leave is gone"

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Say what feeds would add."""
        if self.repair and any(site.detail.get("fitted") is False for site in done):
            yield "norms of weights decided, and nothing took over: with calibration= the layers that read channels do"

    def _target(self, step: int) -> float:
        """Return the share of the cost that a step leaves."""
        return 1 - (1 - (self.ratio or 0.0)) * step / self.steps

    def _go_on(self, graph: Graph, bench: Bench, ratio: float) -> list[Site[Removed]]:
        """Prune the pruned graph further, with statistics of its own, and return what was done."""
        edit.tidy(graph)
        if ratio >= 1:
            return []
        pass_ = replace(self, ratio=ratio, steps=1)
        again = Bench(graph.copy(), bench.calib, bench.seed, bench.progress)
        view = View(graph)
        again.stats = bench.collect(graph, pass_.needs(view))
        plan = list(pass_.plan(view, again.stats))
        if any(isinstance(entry, Site) for entry in plan):
            plan = pass_.select(plan, again)
        sites = [entry for entry in plan if isinstance(entry, Site)]
        for site in sites:
            pass_.apply(site, graph)
        return sites

    @property
    def _first(self) -> float | None:
        return None if self.ratio is None else self._target(1)

    def _pose(self, view: View, stats: Statistics, coupling: Coupling) -> Removal | None:
        chosen = [entry for entry in self._groups(view, coupling, stats) if isinstance(entry, Group)]
        if not chosen:
            return None
        return pose(view, stats, coupling, chosen, score=self.score, by=self.by, round_to=self.round_to)

    def _groups(self, view: View, coupling: Coupling, stats: Statistics | None = None) -> Iterator[Group | Skip]:
        """Yield the groups that may be pruned, and why the others may not."""
        nodes = {key_of(node): node for node in view.nodes}
        names = {key: str(node.name) for key, node in nodes.items()}
        for group in coupling.groups:
            called = [group.name, *group.producers, *(names.get(key, "") for key in group.producers)]
            what = f"{group.size} {group.kind if group.kind != 'residual' else 'channels'}"
            if self.excluded(called):
                yield Skip(group.name, f"{what}: excluded")
            elif not self.wanted(called):
                continue
            elif group.blocked:
                yield Skip(group.name, f"{what}: {group.blocked}")
            elif group.kind == "residual" and not self.residual:
                yield Skip(group.name, f"{what} of a residual stream: residual=true prunes them too")
            elif group.kind == "heads" and not self.heads:
                yield Skip(group.name, f"{what}: heads=true prunes them too")
            elif not any(s.role == "consumer" for s in group.slots):
                yield Skip(group.name, f"{what}: no layer reads them")
            elif self.ratio is None and stats is not None and (reason := distrust(view, stats, group, nodes)):
                yield Skip(group.name, f"{what}: {reason}")
            else:
                yield group

    def _entries(self, problem: Removal, removed: list[int]) -> Iterator[Site[Removed] | Skip]:
        """Yield a site per group that gets smaller, and why the others stay."""
        for index, (candidate, count) in enumerate(zip(problem.candidates, removed, strict=True)):
            group = candidate.group
            kind = "channels" if group.kind == "residual" else group.kind
            if count == 0:
                yield Skip(group.name, f"{group.size} {kind}: the budget is better spent elsewhere")
                continue
            detail: dict[str, object] = {
                "kind": group.kind,
                "units": group.size,
                "kept": group.size - count,
                "made by": list(group.producers),
                "read by": [reader.key for reader, _ in candidate.readers],
                "through": sorted({key for s in group.slots if s.role == "carrier" for key in s.nodes}),
                "fitted": self.repair and all(reader.spread is not None for reader, _ in candidate.readers),
            }
            loss = candidate.curve.loss
            detail["curve"] = candidate.drawn(count, f"{kind} removed")
            words = f"{group.size} to {group.size - count} {kind}"
            work = Removed(problem, index, candidate.gone(count))
            yield Site(group.name, words, detail, float(loss[count]), work=work)

    def _proven(self, plan: list[Site[Removed] | Skip], problem: Removal, bench: Bench) -> list[Site[Removed] | Skip]:
        """Return the plan without the groups whose removal is not the same as masking them: a defect of ours."""
        removals = {e.key: e.work.removal for e in plan if isinstance(e, Site)}
        wrong = repair.proven(dict(removals.values()), problem.coupling, bench)
        entries: list[Site[Removed] | Skip] = []
        for entry in plan:
            off = wrong.get(removals[entry.key][0]) if entry.key in removals else None
            reason = f"removing its channels is not the same as masking them (off by {off}): a defect of ours"
            entries.append(entry if off is None else Skip(entry.key, reason))
        return entries
