"""Print the figures behind ``targets/*.toml``: nanoseconds of ONNX Runtime's CPU kernels in float and in int8.

Each line is the difference between a chain of five of the operator and one of it, over four: borders and calls at
both ends cancel out. ``reads`` are input values per output. Times are the least of many runs, taken in turn, so that
other load on the machine matters little. All on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze.runtime.session import Session

LENGTHS = (1, 5)
RUNS = 12
CONVS = (
    (16, 1, 80, False), (16, 3, 80, False), (32, 1, 80, False), (64, 1, 40, False), (64, 3, 40, False),
    (128, 3, 20, False), (256, 3, 10, False), (384, 1, 20, False), (32, 3, 80, True), (96, 3, 40, True),
    (192, 5, 20, True),
)  # fmt: skip
"""Channels, kernel, height and width, depthwise or not."""
MATRICES = (64, 256, 1024)
ELEMENTWISE = ("Add", "Mul", "Sigmoid", "LeakyRelu", "HardSigmoid")
POOLS = ("MaxPool", "AveragePool")
SHAPE = (1, 64, 40, 40)

Step = Callable[["Chain", str], str]


class Chain:
    """A model under construction on an input ``x``; in int8 every result goes through a Q/DQ pair."""

    def __init__(self, shape: Sequence[int], int8: bool) -> None:
        self.shape, self.int8 = list(shape), int8
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0
        self.first = self.pair("x")

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))  # type: ignore[arg-type]
        return name

    def value(self, values: NDArray[np.generic]) -> str:
        name = self.name()
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def pair(self, x: str, scale: float = 8 / 255, zero: int = 128) -> str:
        if not self.int8:
            return x
        s, z = self.value(np.array(scale, np.float32)), self.value(np.array(zero, np.uint8))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, s, z), s, z)

    def weight(self, shape: Sequence[int], axis: int) -> str:
        values = (self.rng.normal(size=shape) / np.sqrt(np.prod(shape) / shape[axis])).astype(np.float32)
        if not self.int8:
            return self.value(values)
        s = np.full(shape[axis], np.abs(values).max() / 127, np.float32)
        q = np.rint(values / s[0]).astype(np.int8)
        return self.node("DequantizeLinear", self.value(q), self.value(s), axis=axis)

    def model(self, x: str) -> onnx.ModelProto:
        y = self.node("Slice", x, *(self.value(np.array([v], np.int64)) for v in (0, 1, 1)))
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv(channels: int, kernel: int, depthwise: bool) -> Step:
    def step(chain: Chain, x: str) -> str:
        w = chain.weight((channels, 1 if depthwise else channels, kernel, kernel), 0)
        y = chain.node("Conv", x, w, pads=[kernel // 2] * 4, group=channels if depthwise else 1)
        return chain.pair(chain.node("Relu", y), 4 / 255, 0)

    return step


def matrix(size: int) -> Step:
    return lambda chain, x: chain.pair(chain.node("MatMul", x, chain.weight((size, size), 1)))


def elementwise(op: str) -> Step:
    def step(chain: Chain, x: str) -> str:
        if op in ("Add", "Mul"):
            return chain.pair(chain.node(op, x, chain.first))
        if op == "HardSigmoid" and chain.int8:  # as int8 writes it: a second pair of another scale
            q = chain.node("QuantizeLinear", x, chain.value(np.float32(6 / 255)), chain.value(np.uint8(127)))
            gate = chain.node("DequantizeLinear", q, chain.value(np.float32(1 / 255)), chain.value(np.uint8(0)))
            return chain.pair(chain.node("Mul", x, gate))
        if op == "HardSigmoid":
            return chain.node("Mul", x, chain.node(op, x, alpha=1 / 6, beta=0.5))
        scale, zero = (1 / 255, 0) if op == "Sigmoid" else (8 / 255, 128)
        return chain.pair(chain.node(op, x), scale, zero)

    return step


def pool(op: str) -> Step:
    """Return a step of a Conv, which brings ONNX Runtime to the channels-last kernels, and a pool behind it."""
    before = conv(SHAPE[1], 1, False)
    return lambda chain, x: chain.pair(chain.node(op, before(chain, x), kernel_shape=[3, 3], pads=[1] * 4), 4 / 255, 0)


def negated(chain: Chain, x: str) -> str:
    """Append a step that runs in float: in int8 a Q and a DQ come on top."""
    return chain.pair(chain.node("Neg", x))


def sessions(shape: Sequence[int], step: Step, int8: bool) -> list[Session]:
    made = []
    for length in LENGTHS:
        chain = Chain(shape, int8)
        x = chain.first
        for _ in range(length):
            x = step(chain, x)
        made.append(Session(chain.model(x), threads=1))
    return made


def nanoseconds(shape: Sequence[int], steps: Sequence[tuple[Step, bool]]) -> list[float]:
    """Return the time of one step of each chain."""
    feed = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    chains = [session for step, int8 in steps for session in sessions(shape, step, int8)]
    least = [float("inf")] * len(chains)
    for _ in range(RUNS):
        for i, session in enumerate(chains):
            start = time.perf_counter()
            session.run(feed)
            least[i] = min(least[i], time.perf_counter() - start)
    more = LENGTHS[1] - LENGTHS[0]
    return [1e9 * (least[i + 1] - least[i]) / more for i in range(0, len(chains), 2)]


def row(what: str, reads: int, outputs: int, times: Sequence[float]) -> None:
    one, other = (t / outputs for t in times)
    print(f"{what:24} {reads:6} {one:10.3f} {other:10.3f} {other / one if one > 0 else float('nan'):7.2f}", flush=True)


def main() -> None:
    """Measure and print everything."""
    print(f"{'ns per output':24} {'reads':>6} {'float':>10} {'int8':>10} {'ratio':>7}")
    for channels, kernel, size, depthwise in CONVS:
        shape, step = (1, channels, size, size), conv(channels, kernel, depthwise)
        reads = kernel**2 * (1 if depthwise else channels)
        name = f"{'depthwise' if depthwise else 'conv'} {channels}x{size}x{size} k{kernel}"
        row(name, reads, channels * size * size, nanoseconds(shape, [(step, False), (step, True)]))
    for size in MATRICES:
        step = matrix(size)
        row(f"matmul 64x{size}", size, 64 * size, nanoseconds((64, size), [(step, False), (step, True)]))
    for op in ELEMENTWISE:
        step = elementwise(op)
        name = "x * HardSigmoid" if op == "HardSigmoid" else op
        row(name, 1, int(np.prod(SHAPE)), nanoseconds(SHAPE, [(step, False), (step, True)]))
    before = conv(SHAPE[1], 1, False)
    for op in POOLS:
        step = pool(op)
        steps = [(step, False), (step, True), (before, False), (before, True)]
        one, other, without, other_without = nanoseconds(SHAPE, steps)
        row(f"{op} 3x3", 9, int(np.prod(SHAPE)), [one - without, other - other_without])
    plain, both = nanoseconds(SHAPE, [(negated, False), (negated, True)])
    print(f"{'Q and DQ together':24} {1:6} {'':10} {(both - plain) / np.prod(SHAPE):10.3f}")
    forms()


def forms() -> None:
    """Print what ``kernel_forms`` gains: a float operator as exporters write it, and as ``canonical`` does."""
    print(f"\n{'ns per output, float':24} {'':6} {'written':>10} {'rewritten':>10} {'ratio':>7}")
    scores, inner = (1, 12, 64, 64), (1, 16, 4, 2100)
    masked = lambda op: lambda chain, x: softmax(chain, x, -1e9, op)  # noqa: E731
    row("masked Softmax", 64, int(np.prod(scores)), nanoseconds(scores, [(masked(""), False), (masked("Clip"), False)]))
    row("Softmax over axis 1", 16, int(np.prod(inner)), nanoseconds(inner, [(whole, False), (spelled, False)]))
    tokens = (8, 60, 384)
    steps = [(residual("Add"), False), (residual("Sum"), False)]
    row("Add, LayerNormalization", 1, int(np.prod(tokens)), nanoseconds(tokens, steps))


def softmax(chain: Chain, x: str, mask: float, bound: str) -> str:
    """Append a Softmax of scores whose last quarter is masked."""
    values = np.zeros(chain.shape[-1], np.float32)
    values[-len(values) // 4 :] = mask
    scores = chain.node("Add", x, chain.value(values))
    if bound:
        scores = chain.node(bound, scores, chain.value(np.float32(-64)))
    return chain.node("Softmax", scores)


def whole(chain: Chain, x: str) -> str:
    """Append a Softmax over the channels."""
    return chain.node("Softmax", x, axis=1)


def spelled(chain: Chain, x: str) -> str:
    """Append the same in five operators."""
    powers = chain.node("Exp", chain.node("Sub", x, chain.node("ReduceMax", x, axes=[1])))
    return chain.node("Div", powers, chain.node("ReduceSum", powers, chain.value(np.array([1], np.int64))))


def residual(op: str) -> Step:
    """Return a step of an addition and a normalization."""

    def step(chain: Chain, x: str) -> str:
        ones, zeros = (np.full(chain.shape[-1], v, np.float32) for v in (1, 0))
        return chain.node("LayerNormalization", chain.node(op, x, "x"), chain.value(ones), chain.value(zeros))

    return step


if __name__ == "__main__":
    main()
