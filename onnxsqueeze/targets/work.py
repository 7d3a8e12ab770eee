"""How long linear operators take on a CPU, predicted from their shapes, so that the same input gives the same choices.

Measured with ONNX Runtime 1.31 on AVX-512: convolutions run at the same rate per multiply-accumulate once channels are
rounded up to the 16 of a SIMD block; depthwise ones are bound by memory; every output element and every node costs
something more. The unit is one multiply-accumulate of a dense convolution, about 16 ps on one core.

This is for passes that change the shapes of float layers, lowrank, depthwise and prune: only the ratio of two shapes
counts there, so padding to whole blocks matters. For float against int8, in nanoseconds, see
``onnxsqueeze.targets.kernels``; its figures are fits of their own, and neither converts to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Shape", "macs", "parameters", "work"]

BLOCK = 16
DEPTHWISE = 3.0
ELEMENT = 30.0
NODE = 2e5


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


def work(shapes: Sequence[Shape], positions: int | None) -> float:
    """Return the predicted time at so many output positions; None, where they are unknown, leaves out what is fixed."""
    count, fixed = (1, 0.0) if positions is None else (positions, NODE)
    return sum(_work(shape) * shape.density * count + fixed for shape in shapes)


def _work(shape: Shape) -> float:
    if shape.depthwise:
        return shape.parameters * DEPTHWISE + shape.outputs * ELEMENT
    return _rounded(shape.outputs) * _rounded(shape.inputs) * shape.taps + shape.outputs * ELEMENT


def _rounded(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK
