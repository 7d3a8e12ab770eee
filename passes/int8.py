"""``int8``: 8-bit weights everywhere, 8-bit arithmetic where it pays and ONNX Runtime fuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from math import inf
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import edit, factorize, qdq
from onnxsqueeze.affine import Affine, activation, fixed, usable
from onnxsqueeze.bench import Bench
from onnxsqueeze.calibration import Moments, Statistics
from onnxsqueeze.codec import Graph
from onnxsqueeze.contract import Channels, Level, Mean, Need, Pass, Range, Site, Skip
from onnxsqueeze.costmodel import CALL, DEQUANTIZE, QUANTIZE, carry_times, layer_times
from onnxsqueeze.factors import Fitting, relative_error
from onnxsqueeze.impact import impacts
from onnxsqueeze.linear import Linear, covariance, describe, matrix
from onnxsqueeze.quantizable import Layers, weight_slots
from onnxsqueeze.regions import Choice, cut
from onnxsqueeze.smooth import Smoothing, smoothing
from onnxsqueeze.view import View, key_of

__all__ = ["Int8"]

FloatArray = NDArray[np.floating]

PRICES = (0.0, 3.0, 12.0, 50.0)
"""What ``select`` tries in turn: the price of a tensor's relative error, in run times of the whole model."""
NEAR_STORED = 3.0
"""Arithmetic in int8 may cost this many dB more than storing the weights in int8 already costs."""
FINE = 41.0
"""The SQNR in dB under which the few worst tensors are left in float, or get 16 bits, if that gains much."""
SPARED = (2, 4)
"""How many tensors are left in float."""
GAIN = 1.0
"""What that must gain, in dB."""
MORE = 0.4
"""The share of the weights that may get 16 bits."""
WIDENED = 40
"""With more weights than this, 16 bits are not tried: each is measured in a session of its own."""
SLOWER = 1.05
"""A measured run time over that of the float graph from which int8 arithmetic is given up."""


@dataclass(frozen=True)
class _Work:
    """How one node is quantized; ``apply`` reads nothing else."""

    form: str
    input: Affine | None = None
    output: Affine | None = None
    mean: NDArray[np.float64] | None = None
    inputs: tuple[Affine | None, ...] = ()
    smoothing: Smoothing | None = None
    source: str = ""
    moments: Moments | None = None
    rounded: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    wide: bool = False
    tail: str = ""
    add: str = ""


@dataclass(frozen=True)
class Int8(Pass):
    """Quantize ``y = W·x + b`` to ``y ≈ s_x·s_w·(W_q·(x_q − z_x) + b_q)`` with 8-bit integers.

    * *static*: Conv, Gemm and MatMul whose input range was measured run in integers: uint8 activations with the least
      mean squared error on their histogram, int8 weights per output channel, int32 biases in the product scale, and
      the mean error of the weights taken off the bias: ``b̂ = b + (W − Ŵ)·μ``. Which layers, and which operators
      between them, do so is a minimum cut over their run times in float and int8 and the cost of the borders.
    * *dynamic*: MatMul on token sequences or in bodies, MatMul and Gemm without measured ranges, and Gemm with a bias
      per row quantize their input at run time
      (DynamicQuantizeLinear, MatMulInteger). Outliers are dealt with first, in the way that predicts the least error:
      by a scale per channel ``s_j = max|x_j|^α / max|w_j|^(1−α)``, by up to 32 channels that stay in float, by
      dividing each row by its peak. Weights are rounded so that their errors cancel on the inputs that occur.
    * *stored*: all other weights are kept as int8 in blocks, each with its scale, and restored when the model is
      loaded: the file is smaller, the arithmetic stays in float.

    ``max_drop`` bounds the relative error ‖Δy‖/‖y‖ of the model's outputs on calibration feeds: layers return to
    float arithmetic, those with most error for the time they save first, until it holds.
    """

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8-bit weights, and 8-bit arithmetic where it pays and the runtime fuses it"
    min_opset: ClassVar[int] = 13
    quantizes: ClassVar[bool] = True

    max_drop: float = 0.04
    """Largest relative error of an output, ‖Δy‖ / ‖y‖, on calibration feeds (0.04 is 28 dB)."""
    only: tuple[str, ...] = ()
    """Globs on node names or output names: nothing else is quantized."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names that stay in float."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 1:
            raise ValueError("max-drop is over 0 and at most 1")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the ranges around what may run in integers, and the channel statistics of layers' inputs."""
        layers = Layers(view, self._wanted)
        for node in layers.static:
            yield Mean(node.inputs[0].name, 1 if node.op == "Conv" else -1)
            yield Range(node.inputs[0].name)
            yield Range(layers.tail(node).outputs[0].name)
        for node in layers.carried:
            yield from (Range(t.name) for t in (*layers.data_inputs(node), *node.outputs) if t.name)
        for node in layers.dynamic:
            if not view.in_body(node):
                yield Channels(node.inputs[0].name, -1, True)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Decide the form of every layer: the fastest that the statistics predict."""
        yield from self._plan(view, stats, PRICES[0], {}, inf, {})

    def select(self, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
        """Return the fastest plan that keeps ``max_drop``; if none does, weights are only stored."""
        view, target = View(bench.original), -20 * float(np.log10(self.max_drop))
        tried: list[tuple[float, list[Site | Skip]]] = []
        effects: dict[str, float] = {}
        smoothed = {
            e.work.source: e.work.smoothing for e in _sites(plan) if isinstance(e.work, _Work) and e.work.source
        }
        for attempt, price in enumerate(PRICES):
            budget = 0.8 * self.max_drop**2 / 2**attempt
            if attempt:
                plan = list(self._plan(view, bench.stats, price, effects, budget, smoothed))
            if any(_forms(plan) == _forms(other) for _, other in tried):
                continue
            tried.append((bench.sqnr(bench.variant(self, _sites(plan))), plan))
            if tried[-1][0] >= target:
                how = (price, effects, budget, smoothed)
                plan = self._spared(plan, tried[-1][0], how, bench)
                break
            if (not effects and price > 0) or all(e.action != "static" for e in _sites(plan)):
                effects = effects or self._effects(plan, bench)
        stored = [_as_stored(entry) for entry in plan]
        if tried[-1][0] < target:
            limit = bench.sqnr(bench.variant(self, _sites(stored))) - NEAR_STORED
            plan = next((plan for sqnr, plan in tried if sqnr >= limit), stored)
        if all(e.action == "stored" for e in _sites(plan)):
            return self._widened(plan, bench)
        integers = any(e.action == "static" for e in _sites(plan))
        if integers and bench.latency(bench.variant(self, _sites(plan))) > SLOWER:
            return stored
        return plan

    def _spared(
        self,
        plan: list[Site | Skip],
        sqnr: float,
        how: tuple[float, dict[str, float], float, dict[str, Smoothing | None]],
        bench: Bench,
    ) -> list[Site | Skip]:
        """Leave the tensors with the largest errors in float if that gains much and costs few layers their int8."""
        layers = sum(e.action == "static" for e in _sites(plan))
        for spared in SPARED:
            other = list(self._plan(View(bench.original), bench.stats, *how, spared))
            if sqnr >= FINE or sum(e.action == "static" for e in _sites(other)) < 0.95 * layers:
                break
            found = bench.sqnr(bench.variant(self, _sites(other))) if _forms(other) != _forms(plan) else sqnr
            if found >= sqnr + GAIN:
                plan, sqnr = other, found
        return plan

    def _widened(self, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
        """Store in 16 bits those weights whose rounding to 8 does most to the outputs, until the rest does little."""
        sites, view = _sites(plan), View(bench.original)
        nodes = {key_of(node): node for node in view.nodes}
        shared: dict[tuple[int, ...], list[str]] = {}
        for site in sites:
            slots = [nodes[site.key].inputs[slot] for slot in weight_slots(nodes[site.key])]
            shared.setdefault(tuple(id(t) for t in slots), []).append(site.key)
        if len(shared) > WIDENED or bench.sqnr(bench.variant(self, sites)) >= FINE:
            return plan
        effects: list[tuple[float, list[str]]] = []
        for step, keys in enumerate(shared.values()):
            bench.progress("measuring weights", step, len(shared))
            alone = bench.sqnr(bench.variant(self, [site for site in sites if site.key in keys]))
            effects.append((10 ** (-alone / 10), keys))
        effects.sort(key=lambda effect: -effect[0])
        wide: set[str] = set()
        budget = MORE * sum(np.asarray(t.shape).prod() for t in _weights(nodes, sites))
        while effects and sum(effect for effect, _ in effects) > 10 ** (-FINE / 10):
            _, keys = effects.pop(0)
            budget -= sum(np.asarray(t.shape).prod() for t in _weights(nodes, [s for s in sites if s.key in keys]))
            if budget < 0:
                break
            wide.update(keys)
        return [_as_wide(entry) if entry.key in wide and isinstance(entry, Site) else entry for entry in plan]

    def _effects(self, plan: list[Site | Skip], bench: Bench) -> dict[str, float]:
        """Measure what each layer's arithmetic in int8 alone does to the model's outputs."""

        layers = {e.key: [partial(self._alone, site=e)] for e in _sites(plan) if e.action in ("static", "dynamic")}
        found = impacts(bench.original, bench.feeds[:1], layers, bench.progress)
        return {key: values[0] for key, values in found.items()}

    def _alone(self, graph: Graph, key: str, site: Site) -> None:
        """Quantize the layer that makes ``key``, a copy of the site's, and no tensor around it."""
        assert isinstance(site.work, _Work)
        node, _ = edit.find(graph, key)
        for slot in weight_slots(node) if site.action == "stored" else ():
            node.inputs[slot] = edit.constant(graph, f"{key}_weight", qdq.values_of(node.inputs[slot]))
        self.apply(replace(site, key=key, work=replace(site.work, output=None, tail="", add="")), graph)

    def level_needs(self, view: View) -> Iterable[Need]:
        """Yield what ``plan`` reads, and a Gram matrix per input of a layer, from which errors are predicted."""
        yield from self.needs(view)
        yield from factorize.needs(view, self.only, self.exclude)

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield each layer with its weights in int8 alone, and in int8 arithmetic where that pays."""
        nodes = {key_of(node): node for node in view.nodes}
        for site in _sites(list(self.plan(view, stats))):
            node, stored = nodes[site.key], _as_stored(site)
            if site.action == "integer" or isinstance(stored, Skip) or view.in_body(node):
                continue
            weights, arithmetic = _predicted(view, stats, node, site.work)
            yield Level(site.key, "weights", 0.25, weights, {site.key: partial(self._alone, site=stored)})
            if site.action != "stored":
                yield Level(site.key, "arithmetic", 0.25, arithmetic, {site.key: partial(self._alone, site=site)})

    def apply(self, site: Site, graph: Graph) -> None:
        """Quantize one node."""
        node, scope = edit.find(graph, site.key)
        work = site.work
        assert isinstance(work, _Work)
        if work.form == "static":
            _static(graph, node, work)
        elif work.form == "integer":
            qdq.carry(graph, node, work.inputs, work.output)
        elif work.form == "gate":
            qdq.gate(graph, node, work.inputs[0])
        elif work.form == "dynamic":
            moments = work.moments
            qdq.dynamic(graph, scope, node, work.smoothing, None if moments is None else moments.second, work.rounded)
        else:
            _stored(graph, scope, node, work)

    # -------------------------------------------------------------------------------------------- deciding

    def _wanted(self, node: gs.Node) -> bool:
        names = (node.name, key_of(node))

        def matches(globs: tuple[str, ...]) -> bool:
            return any(fnmatchcase(name, glob) for name in names for glob in globs)

        return (not self.only or matches(self.only)) and not matches(self.exclude)

    def _plan(
        self,
        view: View,
        stats: Statistics,
        price: float,
        effects: dict[str, float],
        budget: float,
        smoothed: dict[str, Smoothing | None],
        spared: int = 0,
    ) -> Iterator[Site | Skip]:
        layers = Layers(view, self._wanted)
        work = _integers(view, stats, layers, price, effects, spared)
        stored: list[Site] = []
        for node, dynamic in _run_time(view, stats, layers, effects, budget, smoothed):
            work[id(node)] = dynamic
        for node in view.nodes:
            key = key_of(node)
            entry: _Work | None = work.get(id(node))
            if entry is None and self._wanted(node):
                reasons = [layers.refusal(node, slot) for slot in weight_slots(node)]
                if "" in reasons:
                    moments = stats.of(Mean(node.inputs[0].name, 1)) if node.op == "Conv" else None
                    entry = _Work("stored", mean=None if moments is None else moments.mean)
                elif any(reasons):
                    yield Skip(key, next(reason for reason in reasons if reason))
            if entry is not None:
                site = Site(key, _WORDS[entry.form], {"op": node.op}, work=entry)
                if entry.form != "stored":
                    yield site
                else:
                    stored.append(site)
        yield from stored  # at last: a weight that another layer shares must still be float when that one is rewritten


_WORDS = {
    "static": "static",
    "integer": "integer",
    "gate": "integer",
    "dynamic": "dynamic",
    "stored": "stored",
}


def _predicted(view: View, stats: Statistics, node: gs.Node, work: object) -> tuple[float | None, float | None]:
    """Return the relative errors of a layer with its weights in int8, and with its arithmetic, None if unknown.

    ``tr[ΔW S ΔWᵀ] / tr[W S Wᵀ]``, and in arithmetic the error of the rounded input, which is alike in all channels:
    ``σ²‖W‖² / tr[W S Wᵀ]``. Without S the inputs are taken for independent and alike. Where the input is quantized at
    run time, it is the error of its smoothing.
    """
    assert isinstance(work, _Work)
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return None, None
    values = qdq.values_of(node.inputs[1])
    axis = (0 if node.op == "Conv" else -1) % values.ndim
    scales = qdq.scales_of(values, (axis,)).astype(np.float64)
    change = values - np.clip(np.rint(values / scales), -127, 127) * scales
    size = float(np.sum(values.astype(np.float64) ** 2))
    weights, noise = float(np.sum(change**2)) / max(size, 1e-30), 1.0
    layer = describe(view, node)
    gram = stats.of(layer.gram) if isinstance(layer, Linear) else None
    if isinstance(layer, Linear) and gram is not None:
        fitting = Fitting(layer, matrix(view, node), *covariance(stats, layer))
        signal = max(float(np.trace(fitting.output_covariance())), 1e-30)
        side = change if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB")) else change.T
        weights = relative_error(fitting, fitting.weight - side.reshape(fitting.weight.shape))
        noise = float(np.trace(gram.second)) / layer.columns * size / signal
    measured = stats.range(node.inputs[0].name)
    if work.form == "dynamic" and work.smoothing is not None and np.isfinite(work.smoothing.error):
        return weights, work.smoothing.error
    if work.form != "static" or measured is None:
        return weights, None
    return weights, weights + activation(measured)[1] * noise


def _sites(plan: list[Site | Skip]) -> list[Site]:
    return [entry for entry in plan if isinstance(entry, Site)]


def _forms(plan: list[Site | Skip]) -> dict[str, str]:
    return {site.key: site.action for site in _sites(plan)}


def _as_stored(entry: Site | Skip) -> Site | Skip:
    """Fall back to float arithmetic on a stored weight; operators without a weight are left alone."""
    if isinstance(entry, Skip) or entry.action == "stored":
        return entry
    if entry.action == "integer":
        return Skip(entry.key, "int8 arithmetic would cost more accuracy than max-drop allows")
    mean = entry.work.mean if isinstance(entry.work, _Work) else None
    return replace(entry, action="stored", work=_Work("stored", mean=mean))


def _as_wide(site: Site) -> Site:
    assert isinstance(site.work, _Work)
    return replace(site, action="stored in 16 bits", work=replace(site.work, wide=True))


def _weights(nodes: dict[str, gs.Node], sites: list[Site]) -> list[gs.Tensor]:
    """Return the weights of the sites, each once."""
    found = {id(t): t for s in sites for slot in weight_slots(nodes[s.key]) for t in [nodes[s.key].inputs[slot]]}
    return list(found.values())


def _integers(
    view: View, stats: Statistics, layers: Layers, price: float, effects: dict[str, float], spared: int
) -> dict[int, _Work]:
    """Return the static layers and the operators between them, chosen by a minimum cut.

    The nodes that make or read one of the ``spared`` tensors with the largest relative errors stay in float.
    """
    parameters: dict[int, tuple[Affine, float] | None] = {}
    elements: dict[int, float] = {}

    def measured(tensor: gs.Tensor) -> tuple[Affine, float] | None:
        if id(tensor) not in parameters:
            histogram = stats.range(tensor.name)
            known = histogram is not None and usable(histogram)
            parameters[id(tensor)] = activation(histogram, layers.gate(tensor)) if histogram and known else None
            elements[id(tensor)] = 0.0 if histogram is None else histogram.elements / histogram.samples
        return parameters[id(tensor)]

    possible = [n for n in layers.static if measured(n.inputs[0]) and measured(layers.tail(n).outputs[0])]
    possible += [
        n for n in layers.carried
        if all(measured(t) for t in layers.data_inputs(n))
        and all(measured(t) for t in n.outputs if t.name and t.outputs)
    ]  # fmt: skip
    possible = _sparing(layers, possible, measured, spared)
    if not possible:
        return {}
    chosen = _cut(view, layers, possible, measured, elements, price, effects)
    return _assign(view, stats, layers, chosen, measured)


def _sparing(
    layers: Layers,
    possible: list[gs.Node],
    measured: Callable[[gs.Tensor], tuple[Affine, float] | None],
    spared: int,
) -> list[gs.Node]:
    if not spared:
        return possible
    around: dict[str, list[gs.Node]] = {}
    errors: dict[str, float] = {}
    for node in possible:
        layer = node.op in ("Conv", "Gemm", "MatMul")
        ends = (layers.tail(node) if layer else node).outputs
        for tensor in (*(node.inputs[:1] if layer else layers.data_inputs(node)), *ends):
            found = measured(tensor) if tensor.name else None
            if found is not None:
                around.setdefault(tensor.name, []).append(node)
                errors[tensor.name] = found[1]
    worst = sorted(errors, key=lambda name: (-errors[name], name))[:spared]
    out = {id(node) for name in worst for node in around[name]}
    return [node for node in possible if id(node) not in out]


def _cut(
    view: View,
    layers: Layers,
    possible: list[gs.Node],
    measured: Callable[[gs.Tensor], tuple[Affine, float] | None],
    elements: dict[int, float],
    price: float,
    effects: dict[str, float],
) -> set[int]:
    inside = {id(node) for node in possible}
    times: list[tuple[gs.Node, float, float]] = []
    for node in possible:
        made = layers.tail(node).outputs[0] if node.op in ("Conv", "Gemm", "MatMul") else node.outputs[0]
        size = elements.get(id(made), 0.0)
        weight = None if node.op not in ("Conv", "Gemm", "MatMul") else np.asarray(view.value(node.inputs[1])).shape
        times.append((node, *(layer_times(node, weight, size) if weight is not None else carry_times(node.op, size))))
    total = sum(float_time for _, float_time, _ in times) or 1.0
    penalty = price * total

    def error(tensor: gs.Tensor) -> float:
        found = measured(tensor)
        return penalty * found[1] if found else 0.0

    choices, tensors = [], {}
    for node, float_time, int8_time in times:
        layer = node.op in ("Conv", "Gemm", "MatMul")
        reads = [node.inputs[0]] if layer else layers.data_inputs(node)
        makes = [t for t in (layers.tail(node) if layer else node).outputs if t.name]
        tensors.update({id(t): t for t in (*reads, *makes)})
        if layer and key_of(node) in effects:
            dear = penalty * effects[key_of(node)]
        else:
            dear = 0.0 if node.op in layers.KEEP_SCALE else sum(error(t) for t in makes)
        choices.append(Choice(id(node), float_time, int8_time + dear, [id(t) for t in reads], [id(t) for t in makes]))
        for tensor in makes:
            others = [r for r in tensor.outputs if id(r) not in inside]
            if others or view.is_output(tensor):
                choices.append(Choice(-id(tensor), 0.0, inf, [id(tensor)], []))
    quantize = {key: CALL + QUANTIZE * elements.get(key, 0.0) + error(t) for key, t in tensors.items()}
    dequantize = {key: CALL + DEQUANTIZE * elements.get(key, 0.0) for key in tensors}
    return cut(choices, quantize, dequantize) & inside


def _assign(
    view: View,
    stats: Statistics,
    layers: Layers,
    chosen: set[int],
    measured: Callable[[gs.Tensor], tuple[Affine, float] | None],
) -> dict[int, _Work]:
    """Give the chosen nodes their parameters, in order: operators that keep values keep the scale as well."""
    carried: dict[int, Affine] = {}
    work: dict[int, _Work] = {}

    def affine(tensor: gs.Tensor) -> Affine:
        found = measured(tensor)
        assert found is not None
        return carried.get(id(tensor), found[0])

    for node in view.nodes:
        if id(node) not in chosen:
            continue
        if node.op in ("Conv", "Gemm", "MatMul"):
            tail, add = layers.tail(node), layers.bias_add(node)
            target = layers.within_clip(tail, affine(tail.outputs[0]))
            moments = stats.of(Mean(node.inputs[0].name, 1 if node.op == "Conv" else -1))
            read = node.op == "Conv" or tail.op in ("Relu", "Clip") or any(
                id(r) in chosen for r in tail.outputs[0].outputs
            )  # fmt: skip
            work[id(node)] = _Work(
                "static", affine(node.inputs[0]), target if read else None, None if moments is None else moments.mean,
                tail=key_of(tail), add="" if add is None else key_of(add),
            )  # fmt: skip
            carried[id(tail.outputs[0])] = target
            continue
        inputs = tuple(affine(t) for t in layers.data_inputs(node))
        if node.op == "HardSigmoid":
            work[id(node)] = _Work("gate", inputs=inputs)
            carried[id(node.outputs[0])] = Affine(1 / 255, 0)
            continue
        output = inputs[0] if node.op in layers.KEEP_SCALE else affine(node.outputs[0])
        output = fixed(0.0, 1.0) if node.op == "Sigmoid" else output
        work[id(node)] = _Work("integer", inputs=inputs, output=output)
        carried.update({id(t): output for t in node.outputs})
    return work


def _run_time(
    view: View,
    stats: Statistics,
    layers: Layers,
    effects: dict[str, float],
    budget: float,
    smoothed: dict[str, Smoothing | None],
) -> Iterator[tuple[gs.Node, _Work]]:
    """Yield the layers that quantize their input at run time.

    Where their effects were measured, the worst are left to be stored until the rest stays within the budget.
    """
    nodes = [*layers.dynamic, *(n for n in layers.static if n.op != "Conv" and not stats.range(n.inputs[0].name))]
    known = sorted((effects[key_of(n)] for n in nodes if key_of(n) in effects), reverse=True)
    while known and sum(known) > budget:
        known.pop(0)
    limit = known[0] if known else (inf if not effects else 0.0)
    groups: dict[int, list[gs.Node]] = {}
    for node in nodes:
        groups.setdefault(id(node.inputs[0]), []).append(node)
    for group in groups.values():
        name = group[0].inputs[0].name
        moments = None if view.in_body(group[0]) else stats.of(Channels(name, -1, True))
        if name not in smoothed:
            smoothed[name] = None if moments is None else smoothing(moments, [layers.matrix(n) for n in group])
        for node in group:
            if effects.get(key_of(node), 0.0) <= limit:
                yield node, _Work("dynamic", smoothing=smoothed[name], source=name, moments=moments)


# ------------------------------------------------------------------------------------------------ rewriting


def _static(graph: Graph, node: gs.Node, work: _Work) -> None:
    assert work.input is not None
    values = qdq.values_of(node.inputs[1])
    axis = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
    channels, hint = values.shape[axis], node.inputs[1].name
    add = edit.find(graph, work.add)[0] if work.add else None
    holder, slot = (node, 2) if add is None else (add, 1 if add.inputs[0] is node.outputs[0] else 0)
    has = len(holder.inputs) > slot and bool(holder.inputs[slot].name)
    old = qdq.values_of(holder.inputs[slot]).reshape(-1) if has else np.zeros(1)
    start = np.broadcast_to(old, (channels,)).astype(np.float64)
    # an int32 bias must not overflow in the product scale
    scales = qdq.scales_of(values, (axis,), np.abs(start) / (work.input.scale * 2**30))
    q = qdq.integers(graph, hint, values, scales, qdq.reader(node.inputs[1]))
    corrected = start
    if work.mean is not None and values.size <= qdq.HELD:
        corrected = start + _mean_error(node, values, np.asarray(q.values, np.float64) * scales, work.mean)
    node.inputs[0] = qdq.dequantized(graph, node.inputs[0], work.input)
    qdq.weight(graph, node, 1, q, scales, axis)
    product = np.float32(work.input.scale) * scales.reshape(-1)
    if node.op != "MatMul" or add is not None:
        qdq.bias(graph, holder, slot, corrected, product, holder.inputs[slot].name if has else f"{hint}_bias")
    if work.output is not None:
        tail = node if work.tail == key_of(node) else edit.find(graph, work.tail)[0]
        qdq.requantize(graph, tail.outputs[0], work.output)


def _stored(graph: Graph, scope: Graph, node: gs.Node, work: _Work) -> None:
    for slot in weight_slots(node):
        before, shared = node.inputs[slot], len(node.inputs[slot].outputs) > 1
        after = qdq.stored(graph, scope, node, slot, work.wide)
        if after is None or work.mean is None or node.op != "Conv" or slot != 1 or shared:
            continue
        values = qdq.values_of(before)
        has = len(node.inputs) > 2 and bool(node.inputs[2].name)
        if has and not isinstance(node.inputs[2], gs.Constant):
            continue
        old = qdq.values_of(node.inputs[2]) if has else np.zeros(len(values), np.float32)
        corrected = (old + _mean_error(node, values, after.astype(np.float64), work.mean)).astype(np.float32)
        constant = edit.constant(graph, f"{node.inputs[2].name if has else before.name + '_bias'}_corrected", corrected)
        if len(node.inputs) > 2:
            node.inputs[2] = constant
        else:
            node.inputs.append(constant)


def _mean_error(
    node: gs.Node, values: FloatArray, rounded: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (W − Ŵ)·μ per output channel, μ being the channel means of the input."""
    difference = values.astype(np.float64) - rounded
    if node.op != "Conv":
        matrix = difference if node.attrs.get("transB", 0) else difference.T
        return np.asarray(matrix @ mean) if matrix.shape[1] == len(mean) else np.zeros(len(matrix))
    per_input = difference.reshape(*difference.shape[:2], -1).sum(-1)  # (O, C/group)
    group = int(node.attrs.get("group", 1))
    if len(mean) != per_input.shape[1] * group:
        return np.zeros(len(per_input))
    by_group = mean.reshape(group, -1)
    return np.asarray(np.einsum("goc,gc->go", per_input.reshape(group, -1, per_input.shape[1]), by_group)).reshape(-1)
