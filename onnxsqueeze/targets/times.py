"""How long operators take on a target, predicted from their sizes, so that the same input gives the same choices.

Two models, each with figures of its own that do not convert into the other:

* *work* compares two shapes of a layer in float, for ``lowrank``, ``depthwise`` and ``prune``: convolutions run at the
  same rate per multiply-accumulate once channels are rounded up to whole SIMD blocks; depthwise ones are bound by
  memory; every output element and every node costs something more. The unit is one multiply-accumulate of a dense Conv.
* *times* compares float with int8 for one shape, for ``int8``, in nanoseconds: ``outputs·(element + read·reads)``,
  ``reads`` being the input values per output, and for a kernel in int8 the gathering of its taps.

The figures stand in the profiles of the targets (``*.toml``); they only rank choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

__all__ = ["UNBLOCKED", "Parallel", "Shape", "Times", "Work", "macs", "parameters"]

UNBLOCKED = 0.15
"""The share of its float time that a Conv loses whose weight is no constant: its kernel in blocked layout needs one."""
Pair = tuple[float, float]
"""What an output costs, and what each input value that it reads costs; or float and int8."""


@dataclass(frozen=True)
class Shape:
    """The shape of one linear operator; ``inputs`` counts those that reach one output channel.

    ``density`` is the number of positions it computes per output position of the whole layer.
    """

    outputs: int
    inputs: int
    taps: int = 1
    density: int = 1
    depthwise: bool = False

    @property
    def parameters(self) -> int:
        """The elements of the weight."""
        return self.outputs * self.inputs * self.taps


def macs(shapes: Sequence[Shape]) -> int:
    """Return the multiply-accumulates per output position."""
    return sum(shape.parameters * shape.density for shape in shapes)


def parameters(shapes: Sequence[Shape]) -> int:
    """Return the elements of all weights."""
    return sum(shape.parameters for shape in shapes)


@dataclass(frozen=True)
class Work:
    """What shapes of float layers cost beside their multiply-accumulates, in that unit."""

    block: int
    """Channels are rounded up to a multiple of this."""
    depthwise: float
    """A multiply-accumulate of a depthwise convolution."""
    element: float
    """An element of the output."""
    node: float
    """A node."""

    def of(self, shapes: Sequence[Shape], positions: int | None) -> float:
        """Return the predicted time at so many output positions; None, where they are unknown, leaves out the nodes."""
        count, fixed = (1, 0.0) if positions is None else (positions, self.node)
        return sum(self._of(shape) * shape.density * count + fixed for shape in shapes)

    def _of(self, shape: Shape) -> float:
        if shape.depthwise:
            return shape.parameters * self.depthwise + shape.outputs * self.element
        return self._whole(shape.outputs) * self._whole(shape.inputs) * shape.taps + shape.outputs * self.element

    def _whole(self, channels: int) -> int:
        return -(-channels // self.block) * self.block


@dataclass(frozen=True)
class Parallel:
    """The share of the time of one thread that operators take on ``threads`` of them, in float and in int8."""

    threads: int
    conv: Pair
    depthwise: Pair
    matmul: Pair
    other: Pair
    """Elementwise operators and pools; Q and DQ are the second."""

    def on(self, threads: int) -> Parallel:
        """Return the shares on so many threads, 0 for as many as were measured, between the two that were:
        ``f_N = 1 − (1 − f_T)·(1 − 1/N) / (1 − 1/T)``, and not less than on T.
        """
        count = min(threads or self.threads, self.threads)
        part = (1 - 1 / count) / (1 - 1 / self.threads) if self.threads > 1 else 0.0

        def share(pair: Pair) -> Pair:
            return 1 - (1 - pair[0]) * part, 1 - (1 - pair[1]) * part

        return Parallel(count, share(self.conv), share(self.depthwise), share(self.matmul), share(self.other))


@dataclass(frozen=True)
class Times:
    """Nanoseconds of operators in float and in int8 on one thread."""

    call: float
    """What a further node costs whatever its size."""
    quantize: float
    """QuantizeLinear, per element."""
    dequantize: float
    """DequantizeLinear, per element."""
    gain: float
    """Integers count as this many times as slow as they are, so that they are taken only where they win by it."""
    gather: float
    """What a tap of a kernel costs in int8, per position, and twice that where channels are no multiple of 4."""
    conv: tuple[Pair, Pair]
    """Conv: per output and per input value of it, in float and in int8."""
    depthwise: tuple[Pair, Pair]
    """Conv with up to 4 input channels per group."""
    matmul: tuple[Pair, Pair]
    """MatMul and Gemm."""
    weight: Pair
    """An element of the weight of a MatMul or Gemm, which is read once for all rows, in float and in int8."""
    run_time: Pair
    """A multiply-accumulate of a MatMul whose input is quantized at run time, in float and in int8."""
    carry: Mapping[str, Pair]
    """Elementwise, pooling and shape operators by name: per output, in float and in int8."""

    def on(self, shares: Parallel, batch: float) -> Times:
        """Return the times on so many threads, of feeds that are ``batch`` times as large: per element a node costs
        less then.
        """

        def kernel(pair: tuple[Pair, Pair], share: Pair) -> tuple[Pair, Pair]:
            (a, b), (c, d) = pair
            return (a * share[0], b * share[0]), (c * share[1], d * share[1])

        one, other = shares.other
        return Times(
            self.call / batch,
            self.quantize * other,
            self.dequantize * other,
            self.gain,
            self.gather * shares.conv[1],
            kernel(self.conv, shares.conv),
            kernel(self.depthwise, shares.depthwise),
            kernel(self.matmul, shares.matmul),
            (self.weight[0] / batch, self.weight[1] / batch),
            (self.run_time[0] * shares.matmul[0], self.run_time[1] * shares.matmul[1]),
            {op: (a * one, b * other) for op, (a, b) in self.carry.items()},
        )

    def layer(
        self, op: str, weight: Sequence[int], outputs: float, group: int = 1, transposed: bool = False
    ) -> tuple[float, float]:
        """Return the time of a Conv, Gemm or MatMul with this weight shape that makes ``outputs`` values."""
        if op != "Conv":
            one, other = self._dense(self.matmul, weight[1] if transposed else weight[0], outputs, 0.0)
            return one + self.weight[0] * prod(weight), other + self.gain * self.weight[1] * prod(weight)
        reads, taps = prod(weight[1:]), prod(weight[2:])
        if group > 1 and weight[1] <= 4:
            return self._dense(self.depthwise, reads, outputs, 0.0)
        gather = self.gather * taps * (2 if weight[1] % 4 else 1) if taps > 1 else 0.0
        return self._dense(self.conv, reads, outputs, gather / weight[0])

    def _dense(self, kernel: tuple[Pair, Pair], reads: int, outputs: float, more: float) -> tuple[float, float]:
        one, other = kernel
        return outputs * (one[0] + one[1] * reads), self.gain * outputs * (other[0] + other[1] * reads + more)

    def carried(self, op: str, outputs: float) -> tuple[float, float]:
        """Return the time of another operator that makes ``outputs`` values, 0 if it is not known."""
        one, other = self.carry.get(op, (0.0, 0.0))
        return outputs * one, self.gain * outputs * other
