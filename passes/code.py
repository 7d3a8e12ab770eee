"""``code``: weights as integers that an entropy coder makes small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from math import inf
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.budget.spend import spend, within
from onnxsqueeze.linear import select
from onnxsqueeze.linear.fitting import Fitting, few_rows, fitting
from onnxsqueeze.linear.layers import Linear, describe, matrix
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.plugin import Bench, Gram, Graph, Need, Selected, Site, Skip, Statistics, View, key_of
from onnxsqueeze.techniques.coding.layer import TRIAL, CodedLayer
from onnxsqueeze.words import amount

__all__ = ["Code"]

TRIES = 5
FEEDS = 4
"""Feeds on which it is measured what a layer does to the answers."""
SILENT = 0.1
"""So much of the usual effect a layer has at least: one that does nothing to these answers may do so to others."""
SMALLEST = 128


Gains = Mapping[str, Sequence[float]]
"""What the error of a layer does to the answers, for each of its ways to have steps."""


@dataclass(frozen=True)
class Coded:
    """What a site carries: its layer with one step or one for each row, and that step."""

    layer: CodedLayer
    step: float


@dataclass(frozen=True)
class Code(Selected[Coded]):
    """Replace ``y = W·x + b`` by ``y = δ·Q·x + b̂`` with integers Q that take few bits once they are coded.

    One step δ for the whole weight, or for each output in proportion to what it answers, if that was measured to do
    less to the answers for its bytes. Values are chosen so that ``d_k·(w − δ·q)² + μ·bits(q)`` is least, with
    ``μ = (ln 2 / 6)·δ²·d̄``, and so that their errors cancel on the calibration inputs, whose second moments S give d;
    ``b̂ = b + (W − δQ)·E[x]``. All layers share one budget, of bytes or of error, in which each weighs what it does to
    the answers.

    The file holds int8, a quarter of float (int16 where that is too coarse), and weights are restored when it is
    loaded: nothing is slower. It shrinks further when something compresses it, such as ``onnxsqueeze pack``.
    """

    name: ClassVar[str] = "code"
    summary: ClassVar[str] = "weights as integers of few bits once coded, for `onnxsqueeze pack`"
    quantizes: ClassVar[bool] = True

    max_error: float | None = None
    """Largest relative error of an output, ‖Δy‖ / ‖y‖, on feeds that no fit has seen; 0.06 (24 dB) without a size."""
    size: float | None = None
    """What the weights may take once they are coded, as a share of their size in float."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: nothing else is coded."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names that stay as they are."""

    def __post_init__(self) -> None:
        if self.max_error is not None and self.size is not None:
            raise ValueError("max-error and size exclude each other")
        if self.max_error is not None and not 0 < self.max_error <= 1:
            raise ValueError("max-error is over 0 and at most 1")
        if self.size is not None and not 0 < self.size < 1:
            raise ValueError("size is over 0 and under 1")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer that could be coded."""
        for node in view.of("Conv", "Gemm", "MatMul"):
            linear = describe(view, node)
            wanted = isinstance(linear, Linear) and self.wanted((key_of(node), str(node.name)))
            if wanted and isinstance(linear, Linear) and linear.columns <= select.LARGEST and not view.in_body(node):
                yield linear.gram

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Coded] | Skip]:
        """Yield a site for every layer, with the step that the budget gives it, all layers weighing alike."""
        layers = [*self._layers(view, stats)]
        yield from (each for each in layers if isinstance(each, Skip))
        found = [each for each in layers if not isinstance(each, Skip)]
        yield from self._sites(found, {}, self._error)

    def select(self, plan: list[Site[Coded] | Skip], bench: Bench) -> list[Site[Coded] | Skip]:
        """Decide again with the measured effect of each layer on the answers, and keep the budget of error."""
        found_again = list(self._layers(View(bench.original), bench.stats))
        layers = [entry for entry in found_again if not isinstance(entry, Skip)]
        skips: list[Site[Coded] | Skip] = [entry for entry in found_again if isinstance(entry, Skip)]
        rewrites = {layer.key: [partial(way.early.put, step=way.step(TRIAL)) for way in layer.ways] for layer in layers}
        found = impacts(
            bench.original,
            bench.unseen[:FEEDS],
            rewrites,
            bench.progress,
            bench.ruler,
            most=bench.most,
            workers=bench.workers,
        )
        gains = {
            layer.key: [
                impact / max(way.error(way.step(TRIAL)), 1e-12)
                for impact, way in zip(found[layer.key], layer.ways, strict=True)
            ]
            for layer in layers
            if len(found.get(layer.key, ())) == len(layer.ways)
        }
        least = SILENT * float(np.median([0.0, *(gain for each in gains.values() for gain in each)]))
        gains = {key: [max(gain, least) for gain in each] for key, each in gains.items()}
        if self.size is not None:
            return [*skips, *self._within_size(layers, gains, self.size)]
        bench.notes += few_rows(
            bench.stats, [layer.fitting.layer for layer in layers if layer.fitting.layer.gram.tensor]
        )

        def error_of(plan: list[Site[Coded] | Skip]) -> float:
            sites = [each for each in plan if isinstance(each, Site)]
            return bench.unseen_error(bench.variant(_early, sites)) if sites else 0.0

        nothing: list[Site[Coded] | Skip] = [Skip(each.key, "no step of it keeps max-error") for each in layers]
        sites, _ = within(self._error, partial(self._sites, layers, gains), error_of, nothing, tries=TRIES, grow=3)
        return [*skips, *map(_as_fitted, sites)]

    def apply(self, site: Site[Coded], graph: Graph) -> None:
        """Put the integers, and what restores the weight from them, where the weight was."""
        site.work.layer.put(graph, site.key, step=site.work.step)

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Say what the weights take once they are coded."""
        sites = list(done)
        coded, count = (sum(float(str(site.detail[name])) for site in sites) for name in ("bytes", "weights"))
        if count:
            yield (
                f"the {amount(count)} weights take {8 * coded / count:.2f} bits each once they are coded, "
                f"{amount(coded, 'B')}: `onnxsqueeze pack` does so"
            )

    @property
    def _error(self) -> float:
        return inf if self.size is not None else (self.max_error or 0.06) ** 2

    def _layers(self, view: View, stats: Statistics) -> Iterator[CodedLayer | Skip]:
        others = {id(each.node): each.reason for each in weighted(view)}
        coded = {id(node) for node in view.of("Conv", "Gemm", "MatMul", "Gather")}
        for node in view.nodes:
            slot, names = 0 if node.op == "Gather" else 1, (key_of(node), str(node.name))
            value = view.value(node.inputs[slot]) if id(node) in coded else None
            if value is None or value.ndim < 2 or value.dtype.kind != "f":
                if id(node) in others and names[0] and self.wanted(names):
                    yield Skip(names[0], others[id(node)])
                continue
            tensor = node.inputs[slot]
            if self.excluded(names):
                yield Skip(names[0], "it is excluded")
            elif not self.wanted(names):
                continue
            elif value.size < SMALLEST:
                yield Skip(names[0], f"its weight has only {value.size} elements")
            elif value.dtype != np.float32 or not np.isfinite(value).all() or not value.any():
                yield Skip(names[0], "its weight is zero, not finite, or not float32")
            elif len(tensor.outputs) > 1 or not isinstance(tensor, gs.Constant):
                yield Skip(names[0], "its weight is shared with another layer, or computed")
            elif isinstance(linear := None if slot == 0 else describe(view, node), Linear):
                found = fitting(stats, linear, matrix(view, node))  # of a few rows nothing is known
                yield CodedLayer(Fitting(linear, found.weight) if found.unsure else found)
            elif node.op in ("Conv", "Gather"):  # groups, tables: of their inputs nothing is known
                weight = np.asarray(value, np.float64).reshape(len(value), -1)
                yield CodedLayer(Fitting(Linear(names[0], node.op, Gram(""), *weight.shape), weight))
            else:
                yield Skip(names[0], linear or "its weight is not the second factor")

    def _within_size(self, layers: Sequence[CodedLayer], gains: Gains, share: float) -> list[Site[Coded] | Skip]:
        """Return the sites whose fitted weights take at most the share: what was guessed is less than what they do."""
        wanted = share * sum(4 * layer.fitting.weight.size for layer in layers)
        for _ in range(TRIES):
            entries = [_as_fitted(entry) for entry in self._sites(layers, gains, inf, share)]
            made = sum(entry.work.layer.size(entry.work.step) for entry in entries if isinstance(entry, Site))
            if made <= wanted:
                break
            share *= 0.98 * wanted / made
        return entries

    def _sites(
        self, layers: Sequence[CodedLayer], gains: Gains, error: float, share: float | None = None
    ) -> list[Site[Coded] | Skip]:
        """Return a site per layer, with the steps that together keep the budget of error, or that of bytes."""
        options = []
        for layer in layers:  # of ways that were not measured, the first is taken
            known = zip(layer.ways, gains.get(layer.key, (1.0,)), strict=False)
            options.append([layer.as_it_is(), *(option for way, gain in known for option in way.options(gain))])
        share = self.size if share is None else share
        total = inf if share is None else share * sum(4 * layer.fitting.weight.size for layer in layers)
        entries: list[Site[Coded] | Skip] = []
        for layer, option in zip(layers, spend(options, cost=total, error=error), strict=True):
            if not isinstance(option.choice, tuple):
                entries.append(Skip(layer.key, "no step for its weight is fine enough"))
                continue
            way, step = option.choice
            count = layer.fitting.weight.size
            detail: dict[str, object] = {"bytes": round(way.size(step)), "weights": count}
            if layer.key in gains:
                detail["gain"] = float(f"{gains[layer.key][way.rows is not None]:.3g}")
            if way.rows is not None:
                detail["steps"] = len(way.rows)
            entries.append(Site(layer.key, _words(way, step), detail, way.error(step), work=Coded(way, step)))
        return entries


def _early(site: Site[Coded], graph: Graph) -> None:
    """Apply a site with a fit that has not seen the feeds that are kept apart."""
    site.work.layer.early.put(graph, site.key, step=site.work.step)


def _as_fitted(entry: Site[Coded] | Skip) -> Site[Coded] | Skip:
    """Return a site with what its weight takes now that it is fitted, which is more than was guessed."""
    if isinstance(entry, Skip):
        return entry
    layer, step = entry.work.layer, entry.work.step
    layer.fit(step)
    return replace(entry, action=_words(layer, step), detail={**entry.detail, "bytes": round(layer.size(step))})


def _words(layer: CodedLayer, step: float) -> str:
    bits = f"{8 * layer.size(step) / layer.fitting.weight.size:.1f} bits a weight once coded"
    return bits if layer.rows is None else f"{bits}, a step for each of {len(layer.rows)} rows"
