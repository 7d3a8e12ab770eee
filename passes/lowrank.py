"""``lowrank``: one linear layer becomes a chain of thinner ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import numpy as np

from onnxsqueeze.budget.spend import DEFAULT_ERROR, By
from onnxsqueeze.linear import refit, select
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.plugin import Bench, Graph, Level, Need, Selected, Site, Skip, Statistics, View
from onnxsqueeze.techniques.lowrank import forms
from onnxsqueeze.techniques.lowrank import plan as factorize
from onnxsqueeze.techniques.lowrank.choice import Factored, Factoring
from onnxsqueeze.techniques.lowrank.forms import Candidate

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Selected[Factored]):
    """Replace ``y = W·x + b`` by ``y = A·(B·x) + b̂`` where ``A·B`` is close to ``W`` on the inputs that occur.

    With the covariance S of the calibration inputs, ``W S Wᵀ = U Λ Uᵀ``; ``A = U_r``, ``B = U_rᵀ W`` and
    ``b̂ = b + (W − A·B) μ`` give the least output error of all rank-r factors: exactly ``Σ_{i>r} λ_i``
    (principal components of the output). Without feeds S = I, which is the truncated SVD.

    Gemm and MatMul with a constant weight and Conv of one group. A Conv with a larger kernel takes the form that is
    best at its cost: ``channel`` (k×k to r channels, then 1×1), ``input`` (1×1 to r channels, then k×k), ``tucker``
    (1×1, k×k, 1×1), ``vertical`` (k×1, then 1×k) or ``horizontal`` (1×k, then k×1). Layers that read the same input
    may share the first factor.

    All layers share one budget: ``ratio``, or else ``max-error``. Each layer's error counts as much as one real
    perturbation of it does to the answers. ``energy`` and ``rank`` decide layer by layer instead. At last, every
    layer behind a factored one is fitted again to the original's outputs.
    """

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "factor the weights of linear layers and convolutions, fitted to the calibration inputs"

    ratio: float | None = None
    """Leave this share of the cost of all layers that can be factored, over 0 and under 1."""
    by: By = "macs"
    """What ratio counts: macs (multiply-accumulates), params (weights) or latency (predicted time)."""
    max_error: float | None = None
    """Save what this relative squared error of the answers allows; 0.002 (27 dB) if no other budget is given."""
    energy: float | None = None
    """Keep in each layer this share of its output's variance, over 0 and at most 1."""
    rank: int | None = None
    """Give each layer this rank, in the form with the least error."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Factor only the layers whose output or node name matches one of these patterns (* and ?)."""
    exclude: tuple[str, ...] = ()
    """Leave alone the layers whose output or node name matches one of these patterns."""
    refit: bool = True
    """Fit the layers behind factored ones to the original's outputs again."""

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", "max_error", "energy", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(n.replace('_', '-') for n in given)} exclude each other")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError("ratio is over 0 and under 1")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise ValueError("max-error is over 0 and under 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError("energy is over 0 and at most 1")
        if self.rank is not None and self.rank < 1:
            raise ValueError("rank is at least 1")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer that could be factored."""
        return select.needs(view, self)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Factored] | Skip]:
        """Yield a site for every layer, or layers on one input, that the budget rewrites."""
        free = (self.ratio, self.energy, self.rank) != (None, None, None)

        def find(fitting: Fitting) -> Iterable[Candidate] | str:
            return forms.candidates(fitting, rank=self.rank)

        units, skips, positions = factorize.pose(view, stats, self, find, forms.compose, bound=self.rank, free=free)
        limit = self.max_error or DEFAULT_ERROR
        problem = Factoring(units, forms.outline, forms.compose, view.target.work, self.by, self.ratio, limit)
        problem.positions = positions
        yield from skips
        if self.rank is None and self.energy is None:
            yield from problem.entries(problem.solve())
        else:
            yield from problem.each(0.0 if self.energy is None else self.energy)

    def select(self, plan: list[Site[Factored] | Skip], bench: Bench) -> list[Site[Factored] | Skip]:
        """Decide again with the measured effect of each layer on the answers."""
        if self.rank is not None or self.energy is not None:
            return plan
        asked = self.ratio is not None or self.max_error is not None
        return factorize.reconsider(self, plan, bench, asked=asked)

    def milder(self) -> LowRank | None:
        """Return the pass with the default budget of error, if it has another one."""
        mild = replace(self, ratio=None, energy=None, rank=None, max_error=None)
        return None if mild == self or self.max_error == DEFAULT_ERROR else mild

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield each layer in the form channel at 3/4, 1/2 and 1/4 of its multiply-accumulates.

        One eigendecomposition has its exact error at every rank, ``Σ_{i>r} λ_i``; another form may have less.
        """

        def find(fitting: Fitting) -> Iterator[Candidate]:
            values = forms.channel(fitting)[1]
            left = np.append(np.cumsum(values[::-1])[::-1], 0.0)
            for rank in range(1, len(left) if left[0] > 0 else 0):
                yield Candidate("channel", (rank,), float(left[rank] / left[0]))

        return factorize.levels(view, stats, self, find, forms.outline, forms.compose)

    def tune(self, graph: Graph, done: Sequence[Site[Factored]], bench: Bench) -> Iterable[str]:
        """Fit the layers behind factored ones to the original's outputs."""
        return refit.refit(graph, bench) if self.refit else ()

    def apply(self, site: Site[Factored], graph: Graph) -> None:
        """Put a chain of operators where there was one."""
        factorize.apply(site, graph, "lowrank")
