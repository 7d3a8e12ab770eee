"""``sparsify``: most weights of a layer become zero, and the others take over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.budget.spend import DEFAULT_ERROR, Option, spend, within
from onnxsqueeze.linear import select
from onnxsqueeze.linear.chains import rewrite
from onnxsqueeze.linear.fitting import Fitting, few_rows, fitting, relative_error
from onnxsqueeze.linear.layers import matrix
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.plugin import Bench, Graph, Level, Need, Selected, Site, Skip, Statistics, View
from onnxsqueeze.techniques.sparsity.packed import packed
from onnxsqueeze.techniques.sparsity.sparsifier import Pattern, Sparsifier, pattern_of
from onnxsqueeze.words import amount

__all__ = ["Sparsify"]

KNOTS = (0.75, 0.5, 0.25, 0.1, 0.05)
"""Shares at which a layer's error is computed; between them its logarithm is taken for linear."""
GRID = tuple(round(1 - 0.05 * i, 2) for i in range(20))
"""Shares that a layer may be given."""
LEVELS = (0.7, 0.5, 0.3)
"""Shares at which ``levels`` treats a layer."""


@dataclass(frozen=True)
class Thinned:
    """What a site carries: its layer, and the share of the weights that stay."""

    layer: _Layer
    share: float


@dataclass(frozen=True)
class Sparsify(Selected[Thinned]):
    """Replace ``y = W·x + b`` by ``y = Ŵ·x + b̂`` where most elements of ``Ŵ`` are zero.

    With the covariance S and the mean μ of the calibration inputs, the elements that stay are chosen and fitted to
    the least output error ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]``, and ``b̂ = b + (W − Ŵ) μ``. Without feeds the largest stay as
    they are. All layers share one budget, in which a layer's error counts as much as it does in the answers.

    Zeros stand where the weights were: the file is as large as before until something compresses it, and only engines
    with sparse kernels are faster.
    """

    name: ClassVar[str] = "sparsify"
    summary: ClassVar[str] = "set most weights to zero, for compression and for engines with sparse kernels"

    ratio: float | None = None
    """Leave this share of the weights of all layers, over 0 and under 1."""
    max_error: float | None = None
    """Take the weights that this relative squared error of the answers allows; 0.002 (27 dB) without another budget."""
    pattern: str | None = None
    """Leave N of each M neighbouring input channels in every layer, written N:M, like 2:4."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Rewrite only the layers whose output or node name matches one of these patterns (* and ?)."""
    exclude: tuple[str, ...] = ()
    """Leave alone the layers whose output or node name matches one of these patterns."""

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", "max_error", "pattern") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(n.replace('_', '-') for n in given)} exclude each other")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError("ratio is over 0 and under 1")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise ValueError("max-error is over 0 and under 1")
        if self.pattern is not None:
            pattern_of(self.pattern)

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer that could become sparse."""
        return select.needs(view, self)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Thinned] | Skip]:
        """Yield a site for every layer that gets zeros."""
        layers: list[_Layer] = []
        for entry in self._layers(view, stats):
            if isinstance(entry, Skip):
                yield entry
            else:
                layers.append(entry)
        yield from self._entries(layers, {}, self.max_error or DEFAULT_ERROR)

    def select(self, plan: list[Site[Thinned] | Skip], bench: Bench) -> list[Site[Thinned] | Skip]:
        """Decide again with the measured effect of each layer on the answers."""
        if self.pattern is not None:
            return plan
        layers = [layer for layer in self._layers(View(bench.original), bench.stats) if not isinstance(layer, Skip)]
        trial = self.ratio or 0.5
        few = any(layer.early is not layer for layer in layers)
        rewrites = {each.key: [partial(each.put, weight=each.guess(trial))] for each in (la.early for la in layers)}
        also = {layer.key: layer.fitting.layer.also for layer in layers}
        feeds = bench.unseen[:4] if few else bench.feeds[:1]
        found = impacts(bench.original, feeds, rewrites, bench.progress, bench.ruler, also, bench.most, bench.workers)
        gains = {
            layer.key: found[layer.key][0] / max(min(layer.errors(trial)), 1e-12)
            for layer in layers
            if layer.key in found
        }
        mine = {layer.key for layer in layers}
        others = [entry for entry in plan if entry.key not in mine]

        def solve(limit: float) -> list[Site[Thinned] | Skip]:
            return list(self._entries(layers, gains, limit))

        bench.notes += few_rows(bench.stats, [layer.fitting.layer for layer in layers])
        measured = bench.unseen_error if few else bench.error

        def error_of(found: list[Site[Thinned] | Skip]) -> float:
            sites = [entry for entry in found if isinstance(entry, Site)]
            return measured(bench.variant(_guessed, sites)) if sites else 0.0

        budget = self.max_error or DEFAULT_ERROR
        nothing: list[Site[Thinned] | Skip] = [Skip(each.key, "no share of it keeps max-error") for each in layers]
        if self.ratio is not None:
            return others + solve(budget)
        return others + within(budget, solve, error_of, nothing, tries=6)[0]

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield each layer with 0.7, 0.5 and 0.3 of its weights left, or with the pattern, in the quick fit."""
        for layer in self._layers(view, stats):
            if isinstance(layer, Skip):
                continue
            quick = layer.quick()
            for share in LEVELS if layer.pattern is None else (layer.pattern[0] / layer.pattern[1],):
                weight, error = quick(share)
                label = self.pattern or f"{share:.0%}"
                put = partial(layer.put, weight=weight)
                yield Level(layer.key, label, share, error, dict.fromkeys(layer.fitting.layer.keys, put))

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Say what the zeros bring, and what feeds would."""
        sites = list(done)
        sizes = [packed(graph, sites) for graph in (before, after)]
        if sizes[0] and sizes[1]:
            yield (
                f"zeros shrink nothing by themselves: the weights of these layers, {amount(sizes[0], 'B')} under gzip, "
                f"are {amount(sizes[1], 'B')} now; only engines with sparse kernels are faster"
            )
        blind = sum(bool(site.detail.get("fitted") is False) for site in sites)
        if blind:
            yield (
                f"{blind} of {len(sites)} layers keep their largest weights as they are; with calibration= the others "
                "take over what the zeros did"
            )

    def milder(self) -> Sparsify | None:
        """Return the pass with the default budget of error, if it has another one."""
        mild = replace(self, ratio=None, max_error=None, pattern=None)
        return None if mild == self or self.max_error == DEFAULT_ERROR else mild

    def apply(self, site: Site[Thinned], graph: Graph) -> None:
        """Put the sparse weight where the dense one was."""
        weight = site.work.layer.fit(site.work.share)
        for key in site.work.layer.fitting.layer.keys:
            site.work.layer.put(graph, key, weight=weight)

    def _layers(self, view: View, stats: Statistics) -> Iterator[_Layer | Skip]:
        pattern = None if self.pattern is None else pattern_of(self.pattern)
        for entry in select.layers(view, self):
            if isinstance(entry, Skip):
                yield entry
                continue
            node, linear = entry
            if pattern is not None and linear.channels % pattern[1]:
                yield Skip(linear.key, f"its {linear.channels} input channels are no multiple of {pattern[1]}")
                continue
            fitted = fitting(stats, linear, matrix(view, node))
            layer = stats.derived.setdefault(("sparse", linear, pattern), _Layer(fitted, pattern))
            layer = layer if layer.fitting is fitted else _Layer(fitted, pattern)
            unsure = layer.fitting.unsure if self.ratio is None and pattern is None else ""
            if unsure:
                yield Skip(linear.key, unsure)
            elif layer.fitting.weight.any():
                yield layer
            else:
                yield Skip(linear.key, "its weight is zero")

    def _entries(
        self, layers: Sequence[_Layer], gains: dict[str, float], limit: float
    ) -> Iterator[Site[Thinned] | Skip]:
        """Yield a site per layer that gets zeros, and why the others stay; without a ratio their error is limited."""
        if self.pattern is not None:
            keep, of = pattern_of(self.pattern)
            shares = [keep / of] * len(layers)
        else:
            options = [layer.options(gains.get(layer.key, 1.0)) for layer in layers]
            size = sum(layer.size for layer in layers)
            chosen = spend(options, error=limit) if self.ratio is None else spend(options, cost=self.ratio * size)
            shares = [share for option in chosen if isinstance(share := option.choice, float)]
        for layer, share in zip(layers, shares, strict=True):
            if share >= 1:
                yield Skip(layer.key, "the budget is better spent elsewhere")
                continue
            detail: dict[str, object] = {"left": round(share, 2), "fitted": layer.fitting.covariance is not None}
            if layer.key in gains:
                detail["gain"] = float(f"{gains[layer.key]:.3g}")
            words = f"{self.pattern or f'{share:.0%}'} of {layer.size} weights are left"
            yield Site(layer.key, words, detail, layer.error(share), work=Thinned(layer, share))


@dataclass
class _Layer:
    """A layer with its sparse versions, whose errors are computed once."""

    fitting: Fitting
    pattern: Pattern | None
    _errors: dict[float, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def sparsifier(self) -> Sparsifier:
        return Sparsifier(self.fitting.weight, self.fitting.covariance, self.fitting.layer.by_taps)

    @cached_property
    def early(self) -> _Layer:
        """The layer without the feeds that are kept apart, if it has seen few rows."""
        return self if self.fitting.early is None else _Layer(self.fitting.early, self.pattern)

    @property
    def key(self) -> str:
        return self.fitting.layer.key

    @property
    def size(self) -> int:
        return self.fitting.weight.size

    def fit(self, share: float) -> Matrix:
        return self.sparsifier.fit(share, self.pattern)

    def guess(self, share: float) -> Matrix:
        return self.sparsifier.guess(share, self.pattern)

    def quick(self) -> Callable[[float], tuple[Matrix, float]]:
        """Return what guesses weights with their relative errors, in single precision: twice as fast, as good."""
        spread = None if self.fitting.covariance is None else self.fitting.covariance.astype(np.float32)
        weight = self.fitting.weight.astype(np.float32)
        sparsifier = Sparsifier(weight, spread, self.sparsifier.neighbours)  # type: ignore[arg-type]

        def energy(part: NDArray[np.float32]) -> float:
            return float(np.sum((part if spread is None else part @ spread) * part, dtype=np.float64))

        total = energy(weight)

        def guess(share: float) -> tuple[Matrix, float]:
            found = sparsifier.guess(share, self.pattern).astype(np.float32)
            return found.astype(np.float64), energy(weight - found) / total if total > 0 else 0.0

        return guess

    def error(self, share: float) -> float:
        """Return about the relative output error at a share, on unseen rows if few were seen; the fit has less."""
        if self.pattern is not None or share in KNOTS:
            return max(self.errors(share))
        known = np.log([max(self.error(knot), 1e-12) for knot in KNOTS[::-1]])
        error = float(np.exp(np.interp(share, KNOTS[::-1], known)))
        return error * (1 - share) / (1 - KNOTS[0]) if share > KNOTS[0] else error

    def errors(self, share: float) -> tuple[float, float]:
        """Return the relative output errors of a guess: on the rows that it has seen, and on those that it has not.

        Both are the same if many rows were seen.
        """
        if share not in self._errors:
            guess, unseen = self.early.guess(share), self.fitting.unseen
            seen = relative_error(self.early.fitting, guess)
            self._errors[share] = seen, seen if unseen is None else relative_error(unseen, guess)
        return self._errors[share]

    def options(self, gain: float) -> list[Option]:
        """Return the shares that the layer may be given, itself first."""
        return [Option(share * self.size, gain * self.error(share) if share < 1 else 0.0, share) for share in GRID]

    def put(self, graph: Graph, key: str, weight: Matrix) -> None:
        """Give the layer that makes ``key`` this weight, and its bias the mean of what is lost."""
        layer = self.fitting.layer
        stage = layer.stage(weight.reshape(layer.outputs, layer.channels, *layer.kernel), range(len(layer.kernel)))
        rewrite(graph, [key], (), [[(stage,)]], [self.fitting.shift(weight)], "sparse")


def _guessed(site: Site[Thinned], graph: Graph) -> None:
    """Apply a site with weights in a tenth of the time of its fit, which has less error."""
    layer = site.work.layer.early
    weight = layer.guess(site.work.share)
    for key in layer.fitting.layer.keys:
        layer.put(graph, key, weight=weight)
