"""``int8``: 8-bit weights everywhere, 8-bit arithmetic where it pays and ONNX Runtime fuses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from math import log10
from typing import ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.linear import select
from onnxsqueeze.linear.fitting import Fitting, relative_error
from onnxsqueeze.linear.layers import Linear, covariance, describe, matrix
from onnxsqueeze.plugin import (
    Bench,
    Channels,
    Graph,
    Level,
    Mean,
    Need,
    Range,
    Selected,
    Site,
    Skip,
    Statistics,
    View,
    key_of,
)
from onnxsqueeze.techniques.quantization.apply import Quantized, as_stored, quantize_alone, quantize_site
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.dynamic import Dynamic
from onnxsqueeze.techniques.quantization.emit.weights import Kept, product_scales, scales_of, values_of
from onnxsqueeze.techniques.quantization.footprint import kept_lean, leanable
from onnxsqueeze.techniques.quantization.grids import Grids, activation
from onnxsqueeze.techniques.quantization.layers import LAYERS, Layers
from onnxsqueeze.techniques.quantization.plan import planned
from onnxsqueeze.techniques.quantization.search import Search, Settings

__all__ = ["Int8"]


@dataclass(frozen=True)
class Int8(Selected[Quantized]):
    """Quantize ``y = W·x + b`` to ``y ≈ s_x·s_w·(W_q·(x_q − z_x) + b_q)`` with 8-bit integers.

    * *static*: Conv, Gemm and MatMul whose input range was measured run in integers: uint8 activations on the range
      with the least squared error on their histogram, int8 weights per output channel, int32 biases in the product
      scale, and the mean error of the weights taken off the bias: ``b̂ = b + (W − Ŵ)·μ``. Which layers, and which
      operators between them, do so is a minimum cut over their run times in float and int8, the cost of the borders,
      and what rounding each tensor was measured to do to the answers.
    * *dynamic*: MatMul on token sequences or in bodies, MatMul and Gemm without measured ranges, and Gemm with a bias
      per row quantize their input at run time
      (DynamicQuantizeLinear, MatMulInteger). Outliers are dealt with first, in the way that predicts the least error:
      by a scale per channel ``s_j = max|x_j|^α / max|w_j|^(1−α)``, by up to 32 channels that stay in float, by
      dividing each row by its peak. Weights are rounded so that their errors cancel on the inputs that occur.
    * *stored*: all other weights are kept as int8 in blocks, each with its scale, and restored when the model is
      loaded: the file is smaller, the arithmetic stays in float. Those of a plan that would take more memory than
      float, and with ``goal=memory`` all that the target lets, are kept in int8 per channel and restored at every run.

    ``max_drop`` bounds the relative error ‖Δy‖/‖y‖ of the model's outputs on calibration feeds. Among the plans that
    keep it, the one with the best of time and error is taken.
    """

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8-bit weights, and 8-bit arithmetic where it pays and the runtime fuses it"
    min_opset: ClassVar[int] = 13
    max_opset: ClassVar[int] = 27  # ONNX Runtime 1.32 has no QuantizeLinear of a newer one
    quantizes: ClassVar[bool] = True

    max_drop: float = 0.08
    """Largest relative error of an output, ‖Δy‖ / ‖y‖, on calibration feeds (0.08 is 22 dB)."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: nothing else is quantized."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names that stay in float."""

    activations: str = "uint8"
    """What activations with measured ranges are stored as: uint8 or int8."""
    symmetric: bool = False
    """Keep the zero point of activations in the middle, as some accelerators need it."""
    per_tensor: bool = False
    """One scale for each weight instead of one per output channel, where arithmetic is in int8."""
    goal: Literal["time", "memory"] = "time"
    """memory: all weights stay integers in memory, restored at every run where the arithmetic is in float."""
    arithmetic: bool = True
    """Compute in 8 bits where it pays; false: weights are only stored."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 1:
            raise ValueError("max-drop is over 0 and at most 1")
        if self.activations not in ("uint8", "int8"):
            raise ValueError(f"activations is uint8 or int8, not {self.activations!r}")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the ranges around what may run in integers, and the channel statistics of layers' inputs."""
        layers = Layers(view, self.wants)
        for node in layers.static:
            yield Mean(node.inputs[0].name, 1 if node.op == "Conv" else -1)
            yield Range(layers.root(node.inputs[0]).name)
            yield Range(layers.root(layers.tail(node).outputs[0]).name)
        for node in layers.carried:
            ends = layers.tail(node).outputs
            tensors = (layers.root(t) for t in (*layers.data_inputs(node), *ends) if t.name)
            yield from (Range(t.name) for t in tensors if view.value(t) is None)
        for node in layers.dynamic:
            if not view.in_body(node):
                yield Channels(node.inputs[0].name, -1, True)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Quantized] | Skip]:
        """Decide the form of every layer: the fastest that the statistics predict."""
        layers, kept = Layers(view, self.wants), Kept()
        arithmetic, run_time = Arithmetic(layers, stats, self.form.on(view.target), kept), Dynamic(layers, stats, kept)
        if not self.arithmetic:
            yield from self._in_form(arithmetic, planned(run_time, ()))
            return
        work = list(arithmetic.work(arithmetic.choose(0.0)))
        work += [(each.node, each.work) for each in run_time.found if each.int8_time < each.float_time]
        yield from self._in_form(arithmetic, planned(run_time, work))

    def select(self, plan: list[Site[Quantized] | Skip], bench: Bench) -> list[Site[Quantized] | Skip]:
        """Return the plan with the best of speed and accuracy that keeps ``max_drop``."""
        form = self.form.on(bench.original.target)
        return Search(Settings(form, self.max_drop, self.wants, self.goal == "memory"), plan, bench).best()

    def _in_form(self, arithmetic: Arithmetic, plan: Iterable[Site[Quantized] | Skip]) -> list[Site[Quantized] | Skip]:
        return kept_lean(plan, leanable(arithmetic) if self.goal == "memory" else set())

    def milder(self) -> Int8 | None:
        """Return the pass in which weights are only stored."""
        return replace(self, arithmetic=False) if self.arithmetic else None

    def floor(self) -> float | None:
        """Return the SQNR of twice the error that ``max_drop`` allows; weights alone are only held to not collapse."""
        return -20 * log10(2 * self.max_drop) if self.arithmetic else None

    def level_needs(self, view: View) -> Iterable[Need]:
        """Yield what ``plan`` reads, and a Gram matrix per input of a layer, from which errors are predicted."""
        yield from self.needs(view)
        yield from select.needs(view, self)

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield each layer with its weights in int8 alone, and in int8 arithmetic where that pays."""
        nodes = {key_of(node): node for node in view.nodes}
        for site in (entry for entry in list(self.plan(view, stats)) if isinstance(entry, Site)):
            node, stored = nodes[site.key], as_stored(site, "")
            if isinstance(stored, Skip) or view.in_body(node):
                continue
            weights, arithmetic = _predicted(view, stats, node, site.work)
            yield Level(site.key, "weights", 0.25, weights, {site.key: partial(quantize_alone, site=stored)})
            if site.work.form != "stored":
                yield Level(site.key, "arithmetic", 0.25, arithmetic, {site.key: partial(quantize_alone, site=site)})

    def apply(self, site: Site[Quantized], graph: Graph) -> None:
        """Quantize one node."""
        quantize_site(site, graph)

    @property
    def form(self) -> Grids:
        """How numbers are written in arithmetic."""
        return Grids(self.activations == "int8", self.symmetric, self.per_tensor)

    def wants(self, node: gs.Node) -> bool:
        """Return whether the options let the node be quantized."""
        return self.wanted((node.name, key_of(node)))


def _predicted(view: View, stats: Statistics, node: gs.Node, work: Quantized) -> tuple[float | None, float | None]:
    """Return the relative errors of a layer with its weights in int8, and with its arithmetic, None if unknown.

    ``tr[ΔW S ΔWᵀ] / tr[W S Wᵀ]``, and in arithmetic the error of the rounded input, which is alike in all channels:
    ``σ²‖W‖² / tr[W S Wᵀ]``. Without S the inputs are taken for independent and alike. Where the input is quantized at
    run time, it is the error of its smoothing.
    """
    if node.op not in LAYERS:
        return None, None
    values = values_of(node.inputs[1])
    side = node.op == "Conv" or bool(node.attrs.get("transB", 0))
    size = float(np.sum(values.astype(np.float64) ** 2))
    layer = describe(view, node)
    gram = stats.of(layer.gram) if isinstance(layer, Linear) else None
    fitting, noise = None, 1.0
    if isinstance(layer, Linear) and gram is not None:
        fitting = Fitting(layer, matrix(view, node), *covariance(stats, layer))
        signal = max(fitting.energy, 1e-30)
        noise = float(np.trace(gram.second)) / layer.columns * size / signal

    def rounding(scales: NDArray[np.floating]) -> float:
        wide = scales.astype(np.float64)
        change = values - np.clip(np.rint(values / wide), -127, 127) * wide
        if fitting is None:
            return float(np.sum(change**2)) / max(size, 1e-30)
        return relative_error(fitting, fitting.weight - (change if side else change.T).reshape(fitting.weight.shape))

    weights = rounding(scales_of(values, (0 if side else values.ndim - 1,)))
    measured = stats.range(node.inputs[0].name)
    if work.form == "dynamic" and work.smoothing is not None and np.isfinite(work.smoothing.error):
        return weights, work.smoothing.error
    if work.form != "static" or measured is None:
        return weights, None
    multiplied = rounding(
        product_scales(values, node.op, bool(node.attrs.get("transB", 0)), pairs=view.target.integers.pairs)
    )
    return weights, multiplied + activation(measured)[1] * noise
