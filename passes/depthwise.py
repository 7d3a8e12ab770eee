"""``depthwise``: a convolution becomes a sum of depthwise-separable ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from math import prod
from typing import ClassVar

from onnxsqueeze.budget.spend import DEFAULT_ERROR, By
from onnxsqueeze.linear import refit, select
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.plugin import Bench, Graph, Need, Selected, Site, Skip, Statistics, View
from onnxsqueeze.targets.times import Work
from onnxsqueeze.techniques.lowrank import forms, separable
from onnxsqueeze.techniques.lowrank import plan as factorize
from onnxsqueeze.techniques.lowrank.choice import Factored, Factoring, dense
from onnxsqueeze.techniques.lowrank.forms import Candidate

__all__ = ["Depthwise"]


@dataclass(frozen=True)
class Depthwise(Selected[Factored]):
    """Replace a k×k Conv by R branches of a depthwise and a 1×1 Conv whose outputs are added.

    ``depthwise`` branches filter each input channel, then mix: ``Ŵ[o,c,t] = Σ_r P[o,rc]·D[rc,t]``; ``pointwise``
    branches mix first. With R = k² both are exact. Fewer are fitted to the covariance S of the calibration inputs:
    ``P = W S Dᵀ (D S Dᵀ)⁻¹`` and D in turn, by alternating least squares. The bias stands on the first branch's last
    operator, with ``(W − Ŵ) μ`` added.

    A layer is left to ``lowrank`` where that has less error at the same predicted time, which is the rule for strides
    of 1; with larger strides the separable form often wins. Budget and refit are those of ``lowrank``.
    """

    name: ClassVar[str] = "depthwise"
    summary: ClassVar[str] = "turn convolutions into sums of depthwise-separable ones where that beats low rank"

    ratio: float | None = None
    """Leave this share of the cost of all layers where it pays, over 0 and under 1."""
    by: By = "macs"
    """What ratio counts: macs (multiply-accumulates), params (weights) or latency (predicted time)."""
    max_error: float | None = None
    """Save what this relative squared error of the answers allows; 0.002 (27 dB) if no other budget is given."""
    rank: int | None = None
    """Give each layer this many branches, even where lowrank would be better; k² is exact."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Rewrite only the layers whose output or node name matches one of these patterns (* and ?)."""
    exclude: tuple[str, ...] = ()
    """Leave alone the layers whose output or node name matches one of these patterns."""
    refit: bool = True
    """Fit the layers behind rewritten ones to the original's outputs again."""

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", "max_error", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(n.replace('_', '-') for n in given)} exclude each other")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError("ratio is over 0 and under 1")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise ValueError("max-error is over 0 and under 1")
        if self.rank is not None and self.rank < 1:
            raise ValueError("rank is at least 1")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a convolution with a kernel."""
        for entry in select.layers(view, self):
            if not isinstance(entry, Skip) and not view.in_body(entry[0]) and prod(entry[1].kernel) >= 4:
                yield entry[1].gram

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Factored] | Skip]:
        """Yield a site for every convolution that the budget rewrites."""
        find = partial(self._candidates, view.target.work)
        free = self.rank is not None or self.ratio is not None
        units, skips, positions = factorize.pose(
            view, stats, self, find, separable.branches, bound=self.rank, free=free
        )
        limit, work = self.max_error or DEFAULT_ERROR, view.target.work
        problem = Factoring(
            units, separable.outline, separable.branches, work, self.by, self.ratio, limit, shares=False
        )
        problem.positions = positions
        yield from skips
        yield from problem.entries(problem.solve()) if self.rank is None else problem.each(0.0)

    def _candidates(self, work: Work, fitting: Fitting) -> list[Candidate] | str:
        """Return the candidates that low rank does not beat in error at their predicted time."""
        layer = fitting.layer
        if prod(layer.kernel) < 4:
            return "it has no kernel to separate"
        found = list(separable.candidates(fitting, rank=self.rank))
        if self.rank is not None or not found:
            return found
        itself = work.of(dense(layer), None)
        found = [c for c in found if work.of(separable.outline(layer, c.form, c.ranks), None) <= 0.9 * itself]
        if not found:
            return "no sum of separable convolutions is faster"
        rivals = [(work.of(forms.outline(layer, c.form, c.ranks), None), c.error) for c in forms.candidates(fitting)]
        fastest = min((time for time, _ in rivals), default=0.0)
        kept = []
        for candidate in found:
            time = max(work.of(separable.outline(layer, candidate.form, candidate.ranks), None), fastest)
            if candidate.error < min((error for t, error in rivals if t <= time), default=1.0):
                kept.append(candidate)
        return kept or "low-rank factors have less error at the same time"

    def select(self, plan: list[Site[Factored] | Skip], bench: Bench) -> list[Site[Factored] | Skip]:
        """Decide again with the measured effect of each layer on the answers."""
        asked = self.ratio is not None or self.max_error is not None
        return plan if self.rank is not None else factorize.reconsider(self, plan, bench, asked=asked)

    def tune(self, graph: Graph, done: Sequence[Site[Factored]], bench: Bench) -> Iterable[str]:
        """Fit the layers behind rewritten ones to the original's outputs."""
        return refit.refit(graph, bench) if self.refit else ()

    def milder(self) -> Depthwise | None:
        """Return the pass with the default budget of error, if it has another one."""
        mild = replace(self, ratio=None, rank=None, max_error=None)
        return None if mild == self or self.max_error == DEFAULT_ERROR else mild

    def apply(self, site: Site[Factored], graph: Graph) -> None:
        """Put the branches where the convolution was."""
        factorize.apply(site, graph, "depthwise")
