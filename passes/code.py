"""``code``: weights as integers that an entropy coder makes small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from math import inf
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.budget.spend import Option, spend, within
from onnxsqueeze.linear import select
from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias
from onnxsqueeze.linear.chains import add_to_output
from onnxsqueeze.linear.fitting import Fitting, few_rows
from onnxsqueeze.linear.layers import Linear, covariance, describe, laid_out, matrix
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.plugin import Bench, Gram, Graph, Need, Selected, Site, Skip, Statistics, View, edit, key_of
from onnxsqueeze.techniques.coding.quantizer import MOST, Integers, fitted, nearest
from onnxsqueeze.words import amount

__all__ = ["Code"]

STEPS = tuple(2 ** (i / 2 - 7) for i in range(18))
"""Steps that are tried, in standard deviations of the weight."""
TRIAL = 0.5
"""The step, in standard deviations, at which a layer's effect on the answers is measured."""
TRIES = 5
SMALLEST = 128
FLOAT = 3.4
"""Bytes of a weight that stays in float, in a container."""
SAMPLE = 1 << 18
"""Weights of a layer, evenly spread, from which its size and error at a step are guessed."""


@dataclass(frozen=True)
class Coded:
    """What a site carries: its layer, and the step of its weight."""

    layer: _Layer
    step: float


@dataclass(frozen=True)
class Code(Selected[Coded]):
    """Replace ``y = W·x + b`` by ``y = δ·Q·x + b̂`` with integers Q that take few bits once they are coded.

    One step δ for the whole weight. Values are chosen so that ``d_k·(w − δ·q)² + μ·bits(q)`` is least, with
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
    """Largest relative error of an output, ‖Δy‖ / ‖y‖, on calibration feeds; 0.06 (24 dB) without a size."""
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
        trials = {layer.key: layer.step(TRIAL) for layer in layers}
        rewrites = {layer.key: [partial(layer.put, step=trials[layer.key])] for layer in layers}
        found = impacts(bench.original, bench.feeds[:1], rewrites, bench.progress, bench.ruler, most=bench.most)
        gains = {
            layer.key: found[layer.key][0] / max(layer.error(trials[layer.key]), 1e-12)
            for layer in layers
            if layer.key in found
        }
        if self.size is not None:
            return [*skips, *self._within_size(layers, gains, self.size)]
        bench.notes += few_rows(
            bench.stats, [layer.fitting.layer for layer in layers if layer.fitting.layer.gram.tensor]
        )

        def error_of(plan: list[Site[Coded] | Skip]) -> float:
            sites = [each for each in plan if isinstance(each, Site)]
            return bench.error(bench.variant(self.apply, sites)) if sites else 0.0

        nothing: list[Site[Coded] | Skip] = [Skip(each.key, "no step of it keeps max-error") for each in layers]
        sites, _ = within(self._error, partial(self._sites, layers, gains), error_of, nothing, tries=TRIES)
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

    def _layers(self, view: View, stats: Statistics) -> Iterator[_Layer | Skip]:
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
                yield _Layer(Fitting(linear, matrix(view, node), *covariance(stats, linear)))
            elif node.op in ("Conv", "Gather"):  # groups, tables: of their inputs nothing is known
                weight = np.asarray(value, np.float64).reshape(len(value), -1)
                yield _Layer(Fitting(Linear(names[0], node.op, Gram(""), *weight.shape), weight))
            else:
                yield Skip(names[0], linear or "its weight is not the second factor")

    def _within_size(
        self, layers: Sequence[_Layer], gains: Mapping[str, float], share: float
    ) -> list[Site[Coded] | Skip]:
        """Return the sites whose fitted weights take at most the share: what was guessed is less than what they do."""
        wanted = share * sum(4 * layer.fitting.weight.size for layer in layers)
        for _ in range(TRIES):
            entries = [_as_fitted(entry) for entry in self._sites(layers, gains, inf, share)]
            made = sum(entry.work.layer.fit(entry.work.step).bytes for entry in entries if isinstance(entry, Site))
            if made <= wanted:
                break
            share *= 0.98 * wanted / made
        return entries

    def _sites(
        self, layers: Sequence[_Layer], gains: Mapping[str, float], error: float, share: float | None = None
    ) -> list[Site[Coded] | Skip]:
        """Return a site per layer, with the steps that together keep the budget of error, or that of bytes."""
        options = [layer.options(gains.get(layer.key, 1.0)) for layer in layers]
        share = self.size if share is None else share
        total = inf if share is None else share * sum(4 * layer.fitting.weight.size for layer in layers)
        entries: list[Site[Coded] | Skip] = []
        for layer, option in zip(layers, spend(options, cost=total, error=error), strict=True):
            step = float(str(option.choice))
            count = layer.fitting.weight.size
            if not step:
                entries.append(Skip(layer.key, "one step for all of its weight is too coarse"))
                continue
            detail: dict[str, object] = {"bytes": round(layer.size(step)), "weights": count}
            if layer.key in gains:
                detail["gain"] = float(f"{gains[layer.key]:.3g}")
            words = f"{8 * layer.size(step) / count:.1f} bits a weight once coded"
            entries.append(Site(layer.key, words, detail, layer.error(step), work=Coded(layer, step)))
        return entries


def _as_fitted(entry: Site[Coded] | Skip) -> Site[Coded] | Skip:
    """Return a site with what its weight takes now that it is fitted, which is more than was guessed."""
    if isinstance(entry, Skip):
        return entry
    size = entry.work.layer.fit(entry.work.step).bytes
    words = f"{8 * size / entry.work.layer.fitting.weight.size:.1f} bits a weight once coded"
    return replace(entry, action=words, detail={**entry.detail, "bytes": round(size)})


@dataclass
class _Layer:
    """A layer with its coded versions, each computed once."""

    fitting: Fitting
    _guesses: dict[float, tuple[float, float]] = field(default_factory=dict)
    _fitted: dict[float, Integers] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.fitting.layer.key

    def step(self, share: float) -> float:
        """Return the step of so many standard deviations, or the smallest with which values fit into 15 bits."""
        return max(share * float(self.fitting.weight.std()), float(np.abs(self.fitting.weight).max()) / MOST)

    def guess(self, step: float) -> tuple[float, float]:
        """Return about the bytes and the relative error of the output at a step; the fit has less error."""
        if step not in self._guesses:
            every = max(self.fitting.weight.size // SAMPLE, 1)
            part, spread = self.fitting.weight[::every], self.fitting.covariance
            found = nearest(part, step, None if spread is None else np.diag(spread))
            change = part - found.matrix
            energies = [float(np.sum((each if spread is None else each @ spread) * each)) for each in (change, part)]
            self._guesses[step] = found.bytes * every, energies[0] / energies[1] if energies[1] > 0 else 0.0
        return self._guesses[step]

    def error(self, step: float) -> float:
        return self.guess(step)[1]

    def size(self, step: float) -> float:
        """Return the bytes at a step: those of the fit, which needs more than a guess, once there is one."""
        return self._fitted[step].bytes if step in self._fitted else self.guess(step)[0]

    def options(self, gain: float) -> list[Option]:
        steps = sorted({self.step(share) for share in STEPS})
        excess = self.size(self.step(TRIAL)) / max(self.guess(self.step(TRIAL))[0], 1.0)
        coded = [Option(excess * self.guess(step)[0], gain * self.guess(step)[1], step) for step in steps]
        return [Option(FLOAT * self.fitting.weight.size, 0.0, 0.0), *coded]

    def fit(self, step: float) -> Integers:
        if step not in self._fitted:
            self._fitted[step] = fitted(self.fitting.weight, step, self.fitting.covariance)
        return self._fitted[step]

    def put(self, graph: Graph, key: str, step: float) -> None:
        """Give the layer that makes ``key`` the weight of this step, and its bias the mean of what is lost."""
        node, scope = edit.find(graph, key)
        slot = 0 if node.op == "Gather" else 1
        found, old = self.fit(step), node.inputs[slot]
        name = old.name or key
        shift = self.fitting.shift(found.matrix)
        wide = found.values.astype(np.float64)
        values = (wide.reshape(old.shape) if slot == 0 else laid_out(node, wide)).astype(found.values.dtype)
        integers = edit.constant(graph, f"{name}_integers", values)
        scale = edit.constant(graph, f"{name}_step", np.array(step, np.float32))
        cast = edit.insert(
            graph, scope, "Cast", [integers], f"{name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node
        )
        node.inputs[slot] = edit.insert(graph, scope, "Mul", [cast, scale], f"{name}_restored", before=node)
        if shift is None:
            return
        if node.op == "MatMul":
            add_to_output(graph, scope, node, shift.astype(np.float32))
        else:
            tensor, bias = bias_tensor(node), bias_value(View(graph), node)
            hint = f"{tensor.name if tensor is not None else name + '_bias'}_coded"
            set_bias(node, edit.constant(graph, hint, np.asarray(bias + shift, np.float32)))
