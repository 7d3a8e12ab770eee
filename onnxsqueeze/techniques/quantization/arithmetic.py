"""Which layers, and which operators between them, compute in integers: parameters, predicted times, a minimum cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod

import onnx_graphsurgeon as gs

from onnxsqueeze.budget.mincut import Choice, cut
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Mean
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.grids import Affine, Grids, activation, usable
from onnxsqueeze.techniques.quantization.layers import LAYERS, Layers

__all__ = ["Arithmetic"]

FLOAT = 10.0
"""How many times as slow a node is in float where all of them should compute in integers."""


@dataclass(frozen=True)
class _Rounding:
    affine: Affine
    error: float


class Arithmetic:
    """The nodes of a graph that can compute in integers, and what that saves in time and costs in accuracy.

    ``errors`` maps names of tensors to what rounding them does to the model's answers, ``‖Δy‖² / ‖y‖²``; for those
    that are not named, the error of the tensor itself is taken. Errors are added up. Times are nanoseconds.
    """

    def __init__(self, layers: Layers, stats: Statistics, form: Grids, kept: Kept) -> None:
        self.layers, self.view, self.stats, self.form, self.kept = layers, layers.view, stats, form, kept
        self.errors: Mapping[str, float] = {}
        self._roundings: dict[str, _Rounding | None] = {}
        self.target = self.view.target
        self.gates = form.saturates and self.target.integers.gates
        self.nodes = [n for n in layers.static if self._rounding(n.inputs[0]) and self._rounding(self._end(n))]
        self.nodes += [
            n for n in layers.carried
            if all(self._rounding(t) for t in layers.data_inputs(n))
            and all(self._rounding(t) for t in self._makes(n))
            and not (self._is_gate(n) and not self.gates)
        ]  # fmt: skip
        self._inside = {id(node) for node in self.nodes}

    @cached_property
    def float_time(self) -> float:
        """How long all these nodes take in float."""
        return sum(times[0] for times in self._times.values()) or 1.0

    @cached_property
    def _times(self) -> dict[int, tuple[float, float]]:
        found = {}
        for node in self.nodes:
            size = self.elements(self._end(node))
            weight = self.view.value(node.inputs[1]) if node.op in LAYERS else None
            if weight is None:
                times = self.target.times.carried(node.op, size)
            else:
                group, transposed = int(node.attrs.get("group", 1)), bool(node.attrs.get("transB", 0))
                times = self.target.times.layer(node.op, weight.shape, size, group, transposed)
            if self.layers.everywhere:  # a node in float leaves the accelerator
                times = FLOAT * max(times[0], size) + 4 * self.target.times.call, 0.0
            found[id(node)] = times
        return found

    def in_float(self, node: gs.Node) -> float:
        """Return how long one of these nodes takes in float, 0 if it is none."""
        return self._times.get(id(node), (0.0, 0.0))[0]

    def _quantize(self, tensor: gs.Tensor) -> float:
        return self.target.times.call + self.target.times.quantize * self.elements(tensor)

    def _dequantize(self, tensor: gs.Tensor) -> float:
        return self.target.times.call + self.target.times.dequantize * self.elements(tensor)

    def _is_gate(self, node: gs.Node) -> bool:
        return node.op == "HardSigmoid" and node.op not in self.target.operators.own_scale

    def _end(self, node: gs.Node) -> gs.Tensor:
        tensor: gs.Tensor = self.layers.tail(node).outputs[0]
        return tensor

    def _reads(self, node: gs.Node) -> list[gs.Tensor]:
        return list(node.inputs[:1]) if node.op in LAYERS else self.layers.data_inputs(node)

    def _makes(self, node: gs.Node) -> list[gs.Tensor]:
        return [t for t in self.layers.tail(node).outputs if t.name]

    def _rounding(self, tensor: gs.Tensor) -> _Rounding | None:
        root = self.layers.root(tensor)
        name = str(root.name)
        if name not in self._roundings and (value := self.view.value(root)) is not None:
            self._roundings[name] = _Rounding(self.form.fixed(float(value.min()), float(value.max())), 0.0)
        if name not in self._roundings:
            histogram = self.stats.range(name)
            known = histogram is not None and usable(histogram)
            gate = self.layers.gate(root)
            found = _Rounding(*activation(histogram, gate, self.form)) if histogram and known else None
            maker = self.view.producer(root)
            if found is not None and maker is not None and maker.op in self._shares:
                found = _Rounding(self.form.fixed(0.0, 1.0), found.error)
            self._roundings[name] = found
        return self._roundings[name]

    @cached_property
    def _shares(self) -> tuple[str, ...]:
        """Operators whose outputs lie between 0 and 1."""
        return ("Sigmoid", "HardSigmoid", *(op for op in self.target.operators.own_scale if op == "Softmax"))

    def affine(self, tensor: gs.Tensor) -> Affine:
        """Return the parameters of a tensor around the nodes."""
        found = self._rounding(tensor)
        assert found is not None
        return found.affine

    def error(self, tensor: gs.Tensor) -> float:
        """Return what rounding the tensor does to the answers."""
        root = self.layers.root(tensor)
        found = self._rounding(root)
        return self.errors.get(str(root.name), 0.0 if found is None else found.error)

    def elements(self, tensor: gs.Tensor) -> float:
        """Return how many elements a tensor has in a run."""
        root = self.layers.root(tensor)
        histogram: Histogram | None = self.stats.range(str(root.name))
        count = 0.0 if histogram is None else histogram.elements / histogram.samples
        if root is tensor:
            return count
        one, other = (self.view.shape(t) for t in (root, tensor))
        sizes = [[d for d in shape or () if isinstance(d, int)] for shape in (one, other)]
        return count * prod(sizes[1]) / max(prod(sizes[0]), 1) if len(sizes[0]) == len(sizes[1]) else count

    def roundings(self, chosen: set[int]) -> dict[str, tuple[Affine, float]]:
        """Return the tensors that are rounded if the chosen nodes compute in integers, with their own errors."""
        found = {}
        for node in self.nodes:
            if id(node) in chosen:
                for tensor in (*self._reads(node), *self._makes(node)):
                    rounding = self._rounding(tensor)
                    assert rounding is not None
                    if self.view.value(tensor) is None:
                        found[str(self.layers.root(tensor).name)] = rounding.affine, rounding.error
        return found

    def choose(self, price: float) -> set[int]:
        """Return the nodes (by id) that had better compute in integers: time plus ``price`` × errors is least.

        ``price`` is in nanoseconds.
        """

        def dear(tensor: gs.Tensor) -> float:
            return price * self.error(tensor) if price else 0.0  # an error may be infinite

        choices = []
        tensors: dict[int, gs.Tensor] = {}
        for node in self.nodes:
            float_time, int8_time = self._times[id(node)]
            reads, makes = self._reads(node), self._makes(node)
            tensors.update({id(t): t for t in (*reads, *makes)})
            rounding = 0.0 if node.op in self.target.operators.same_scale else sum(dear(t) for t in makes)
            choices.append(
                Choice(id(node), float_time, int8_time + rounding, [id(t) for t in reads], [id(t) for t in makes])
            )
            for tensor in makes:
                others = [r for r in tensor.outputs if id(r) not in self._inside]
                if others or self.view.is_output(tensor):
                    choices.append(Choice(-id(tensor), 0.0, inf, [id(tensor)], []))
        quantize = {key: self._quantize(t) + dear(t) for key, t in tensors.items()}
        dequantize = {key: self._dequantize(t) for key, t in tensors.items()}
        return cut(choices, quantize, dequantize) & self._inside

    def total_error(self, chosen: set[int]) -> float:
        """Return the errors of all tensors that are rounded, added up."""
        return sum(self.errors.get(name, own) for name, (_, own) in self.roundings(chosen).items())

    def time(self, chosen: set[int]) -> float:
        """Return how long all the nodes take, borders included, if the chosen ones compute in integers."""
        total = sum(times[id_ in chosen] for id_, times in self._times.items())
        made = {id(t) for n in self.nodes if id(n) in chosen for t in self._makes(n)}
        borders = {id(t): self._quantize(t) for n in self.nodes if id(n) in chosen for t in self._reads(n)}
        total += sum(cost for key, cost in borders.items() if key not in made)
        for node in self.nodes:
            for tensor in self._makes(node) if id(node) in chosen else ():
                if self.view.is_output(tensor) or any(id(r) not in chosen for r in tensor.outputs):
                    total += self._dequantize(tensor)
        return total

    def work(self, chosen: set[int]) -> Iterator[tuple[gs.Node, Quantized]]:
        """Yield the chosen nodes with their parameters, in order: operators that keep values keep the scale as well."""
        carried: dict[int, Affine] = {}

        def affine(tensor: gs.Tensor) -> Affine:
            return carried.get(id(tensor)) or self.affine(tensor)

        for node in self.view.nodes:
            if id(node) not in chosen:
                continue
            if node.op in LAYERS:
                target = self._target(node, affine(self._end(node)))
                yield node, self._layer(node, affine(node.inputs[0]), target, chosen)
                carried[id(self._end(node))] = target
                continue
            inputs = tuple(affine(t) for t in self.layers.data_inputs(node))
            if self._is_gate(node):
                yield node, Quantized("gate", inputs=inputs)
                carried[id(node.outputs[0])] = Affine(1 / 255, 0)
                continue
            kept = node.op in self.target.operators.same_scale
            output = inputs[0] if kept else self._target(node, affine(self._end(node)))
            yield node, Quantized("integer", inputs=inputs, output=output, tail=key_of(self.layers.tail(node)))
            carried.update({id(t): output for t in self._makes(node)})

    def _target(self, node: gs.Node, affine: Affine) -> Affine:
        return affine if self.form.symmetric else self.layers.within_clip(self.layers.tail(node), affine)

    def _layer(self, node: gs.Node, source: Affine, target: Affine, chosen: set[int]) -> Quantized:
        tail, add = self.layers.tail(node), self.layers.bias_add(node)
        moments = self.stats.of(Mean(node.inputs[0].name, 1 if node.op == "Conv" else -1))
        read = self.layers.everywhere or node.op == "Conv" or tail.op in ("Relu", "Clip")
        read = read or any(id(r) in chosen for r in tail.outputs[0].outputs)
        return Quantized(
            "static", source, target if read else None, None if moments is None else moments.mean,
            self.layers.inside(node), tail=key_of(tail), add="" if add is None else key_of(add), kept=self.kept,
            per_tensor=self.form.per_tensor or node.op not in self.target.weights.per_channel,
            tied=self.layers.sharing.layer(node) is not None,
        )  # fmt: skip
