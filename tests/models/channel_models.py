"""Random runnable models of every operator that channels can be followed through; see ``build``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["STEPS", "Builder", "build"]

Step = Callable[["Builder", str], "str | None"]
STEPS: dict[str, Step] = {}
UNARY = ("Abs", "Dropout", "Elu", "Erf", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Tanh")
BINARY = ("Add", "Mul", "Sub", "Max", "Min", "Sum", "Mean", "Where")


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


class Builder:
    """A model in the making: images (N, C, H, W) and sequences (N, S, D), with the number of channels of each."""

    def __init__(self, rng: np.random.Generator, dynamic: bool, opset: int = 18) -> None:
        self.rng = rng
        self.dynamic = dynamic
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {}
        self.images: list[str] = []
        self.sequences: list[str] = []
        self.read: set[str] = set()
        self.weights: list[tuple[str, tuple[int, ...]]] = []
        self.count = 0
        self.step = "first"

    def name(self, hint: str) -> str:
        self.count += 1
        return f"{hint}_{self.count}"

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = self.name("k")
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """A weight of unit gain; now and then one of that shape that is there already."""
        if len(shape) > 1 and self.rng.random() < 0.3:
            found = [name for name, other in self.weights if other == shape]
            if found:
                return found[0]
        values = self.rng.standard_normal(shape)
        name = self.constant(values * (scale or 1 / sqrt(prod(shape[1:]))))
        self.weights.append((name, shape))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        made = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, name=f"{self.step}/{made[0]}", **attrs))  # type: ignore[arg-type]
        self.read.update(inputs)
        return made[0]

    def last(self, index: int = 0) -> str:
        """The output number ``index`` of the node that was added last."""
        return str(self.nodes[-1].output[index])

    def image(self, name: str, channels: int) -> str:
        self.channels[name] = channels
        self.images.append(name)
        return name

    def sequence(self, name: str, channels: int) -> str:
        self.channels[name] = channels
        self.sequences.append(name)
        return name

    def like(self, x: str, name: str) -> str:
        """Take a new tensor down as one of the kind and with the channels of ``x``."""
        return (self.image if x in self.images else self.sequence)(name, self.channels[x])

    def pick(self, values: Sequence[str]) -> str:
        return values[int(self.rng.integers(len(values)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def axis(self, x: str) -> int:
        return 1 if x in self.images else 2


def build(steps: Sequence[str], seed: int, dynamic: bool) -> onnx.ModelProto:
    """Return a model that takes the steps one after the other on random tensors that are there.

    With ``dynamic`` all sizes but the channels are free. Whatever is left unread goes through a last layer each. The
    names of nodes begin with that of their step.
    """
    b = Builder(np.random.default_rng(seed), dynamic)
    size: list[str | int] = ["H", "W"] if dynamic else [6, 6]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *size])]
    b.image("x", 3)
    b.image(b.op("Conv", "x", b.weight(12, 3, 3, 3), b.weight(12), pads=[1, 1, 1, 1]), 12)
    to_sequence(b, b.images[-1])
    for b.step in steps:
        fresh = [t for t in (*b.images, *b.sequences) if t != "x"][-5:]
        for tensor in b.rng.permutation(fresh):
            if STEPS[b.step](b, str(tensor)) is not None:
                break
    b.step = "last"
    infos = []
    for tensor in [*b.images, *b.sequences]:
        if tensor not in b.read:
            c = b.channels[tensor]
            if tensor in b.images:
                made = b.op("Conv", tensor, b.weight(3, c, 1, 1))
            else:
                made = b.op("MatMul", tensor, b.weight(c, 3, scale=1 / sqrt(c)))
            shape: list[str | int] = ["N", 3, "h", "w"] if tensor in b.images else ["N", "s", 3]
            infos.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, shape))
    graph = helper.make_graph(b.nodes, "g", inputs, infos, b.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=9)


# -- linear layers -----------------------------------------------------------------------------------------------------


@step
def convolution(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c, o, k = b.channels[x], b.integer(4, 12), b.integer(0, 1) * 2 + 1
    pads = [k // 2] * 4
    return b.image(b.op("Conv", x, b.weight(o, c, k, k), b.weight(o), pads=pads), o)


@step
def transposed_convolution(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c, o = b.channels[x], b.integer(4, 12)
    weight = b.weight(c, o, 3, 3, scale=1 / sqrt(9 * c))
    return b.image(b.op("ConvTranspose", x, weight, b.weight(o), pads=[1] * 4), o)


@step
def depthwise(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c, m = b.channels[x], b.integer(1, 2)
    return b.image(b.op("Conv", x, b.weight(c * m, 1, 3, 3), b.weight(c * m), group=c, pads=[1] * 4), c * m)


@step
def depthwise_transposed(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c, m = b.channels[x], b.integer(1, 2)
    weight = b.weight(c, m, 3, 3, scale=1 / 3)
    return b.image(b.op("ConvTranspose", x, weight, b.weight(c * m), group=c, pads=[1] * 4), c * m)


@step
def grouped(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    groups = [g for g in (2, 3, 4) if c % g == 0]
    if x not in b.images or not groups:
        return None
    g, each = groups[-1], b.integer(1, 3)
    return b.image(b.op("Conv", x, b.weight(g * each, c // g, 1, 1), group=g), g * each)


@step
def product(b: Builder, x: str) -> str | None:
    if x not in b.sequences:
        return None
    c, o = b.channels[x], b.integer(4, 12)
    y = b.op("MatMul", x, b.weight(c, o, scale=1 / sqrt(c)))
    return b.sequence(b.op("Add", b.weight(o), y), o)


@step
def product_from_the_left(b: Builder, x: str) -> str | None:
    if x not in b.sequences:
        return None
    c, o = b.channels[x], b.integer(4, 12)
    y = b.op("MatMul", b.weight(o, c), b.op("Transpose", x, perm=[0, 2, 1]))
    return b.sequence(b.op("Transpose", y, perm=[0, 2, 1]), o)


@step
def gemm(b: Builder, x: str) -> str | None:
    """A Gemm on the pooled image, added to it as a bias per channel."""
    if x not in b.images:
        return None
    c, o = b.channels[x], b.integer(4, 10)
    pooled = b.op("Flatten", b.op("GlobalAveragePool", x))
    transposed = b.integer(0, 1)
    hidden = b.op("Gemm", pooled, b.weight(*((o, c) if transposed else (c, o))), b.weight(o), transB=transposed)
    back = b.op("Gemm", b.op("Relu", hidden), b.weight(c, o), b.weight(1, c), transB=1, alpha=0.5)
    return b.image(b.op("Add", x, b.op("Unsqueeze", back, b.ints(2, 3))), c)


@step
def flatten(b: Builder, x: str) -> str | None:
    """A layer that sees every pixel, and gates the channels."""
    if x not in b.images or b.dynamic:
        return None
    c, way = b.channels[x], b.integer(0, 2)
    if way == 0:
        flat = b.op("Flatten", x)
    elif way == 1:
        flat = b.op("Reshape", x, b.ints(-1, c * 36))
    else:
        flat = b.op("Reshape", x, b.op("Concat", b.op("Shape", x, start=0, end=1), b.ints(-1), axis=0))
    hidden = b.op("Gemm", flat, b.weight(4, c * 36), transB=1)
    gate = b.op("Sigmoid", b.op("Gemm", hidden, b.weight(4, c)))
    return b.image(b.op("Mul", b.op("Reshape", gate, b.ints(0, c, 1, 1)), x), c)


# -- channel by channel ------------------------------------------------------------------------------------------------


@step
def unary(b: Builder, x: str) -> str | None:
    return b.like(x, b.op(b.pick(UNARY), x))


@step
def cast(b: Builder, x: str) -> str | None:
    return b.like(x, b.op("Cast", b.op("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT))


@step
def batch_normalization(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    if x not in b.images:
        return None
    variance = b.constant(b.rng.random(c) + 0.5)
    return b.image(b.op("BatchNormalization", x, b.weight(c), b.weight(c), b.weight(c), variance), c)


@step
def instance_normalization(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    return b.image(b.op("InstanceNormalization", x, b.weight(c), b.weight(c)), c) if x in b.images else None


@step
def prelu(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    return b.like(x, b.op("PRelu", x, b.weight(c, 1, 1) if x in b.images else b.weight(c)))


@step
def constant_per_channel(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    shape = [(1, c, 1, 1), (c, 1, 1), (1,), ()] if x in b.images else [(1, 1, c), (c,), (1,), ()]
    return b.like(x, b.op(b.pick(["Add", "Mul", "Max"]), x, b.weight(*shape[b.integer(0, 3)])))


@step
def binary(b: Builder, x: str) -> str | None:
    same = [t for t in (b.images if x in b.images else b.sequences) if b.channels[t] == b.channels[x] and t != x]
    kind = b.pick(BINARY)
    other = b.pick(same) if same else b.op("Tanh", x)
    if kind == "Where":
        return b.like(x, b.op("Where", b.op("Greater", other, b.constant(0.1)), x, other))
    return b.like(x, b.op(kind, x, other))


@step
def pool(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    return b.like(x, b.op(b.pick(["MaxPool", "AveragePool"]), x, kernel_shape=[3, 3], pads=[1] * 4))


@step
def gate(b: Builder, x: str) -> str | None:
    """Squeeze and excitation."""
    if x not in b.images:
        return None
    c, hidden = b.channels[x], b.integer(3, 6)
    way = b.integer(0, 2)
    if way == 0:
        pooled = b.op("GlobalAveragePool", x)
    elif way == 1:
        pooled = b.op("ReduceMean", x, b.ints(2, 3))
    else:
        pooled = b.op("Unsqueeze", b.op("ReduceMax", x, b.ints(-2, -1), keepdims=0), b.ints(2, 3))
    squeezed = b.op("Relu", b.op("Conv", pooled, b.weight(hidden, c, 1, 1), b.weight(hidden)))
    opened = b.op("HardSigmoid", b.op("Conv", squeezed, b.weight(c, hidden, 1, 1), b.weight(c)))
    if b.integer(0, 1):
        opened = b.op("Expand", opened, b.op("Shape", x))
    return b.image(b.op("Mul", x, opened), c)


@step
def pad(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    padded = b.op("Pad", x, b.ints(0, 0, 1, 1, 0, 0, 1, 1))
    return b.like(x, b.op("MaxPool", padded, kernel_shape=[3, 3]))


@step
def resize(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    if b.integer(0, 1):
        larger = b.op("Resize", x, "", b.constant([1, 1, 2, 2]), mode="nearest")
    elif not b.dynamic:
        larger = b.op("Resize", x, "", "", b.ints(2, b.channels[x], 12, 12), mode="nearest")
    else:
        shape = b.op("Shape", x)
        spatial = b.op("Mul", b.op("Slice", shape, b.ints(2), b.ints(4)), b.ints(2))
        head = b.op("Slice", shape, b.ints(0), b.ints(2))
        larger = b.op("Resize", x, "", "", b.op("Concat", head, spatial, axis=0), mode="linear")
    return b.like(x, b.op("AveragePool", larger, kernel_shape=[2, 2], strides=[2, 2]))


@step
def expand(b: Builder, x: str) -> str | None:
    """A constant per channel, spread by a literal or a computed shape."""
    if x not in b.images:
        return None
    c = b.channels[x]
    row = b.weight(1, c, 1, 1)
    target = b.ints(1, c, 1, 1) if b.integer(0, 1) else b.op("Shape", x)
    zeros = b.op("ConstantOfShape", b.op("Shape", x))
    return b.image(b.op("Sum", x, b.op("Expand", row, target), zeros), c)


# -- channels that move ------------------------------------------------------------------------------------------------


@step
def concat(b: Builder, x: str) -> str | None:
    others = b.images[1:] if x in b.images else b.sequences
    parts = [x, *(b.pick(others) for _ in range(b.integer(1, 2)))]
    c = sum(b.channels[p] for p in parts)
    if c > 40:
        return None
    made = b.op("Concat", *parts, axis=b.axis(x) - b.integer(0, 1) * (4 if x in b.images else 3))
    return b.image(made, c) if x in b.images else b.sequence(made, c)


@step
def split(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    if c < 4:
        return None
    if c % 2 == 0 and b.integer(0, 1):
        first = b.op("Split", x, outputs=2, axis=b.axis(x), num_outputs=2)
        half = c // 2
    else:
        half = b.integer(1, c - 1)
        first = b.op("Split", x, b.ints(half, c - half), outputs=2, axis=b.axis(x))
    second = b.last(1)
    make = b.image if x in b.images else b.sequence
    make(first, half)
    return make(second, c - half)


@step
def cut(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    if c < 4:
        return None
    start = b.integer(0, c - 2)
    end = b.integer(start + 1, c)
    last = [end, end - c if end < c else 2**62][b.integer(0, 1)]
    made = b.op("Slice", x, b.ints(start), b.ints(last), b.ints(b.axis(x)))
    return (b.image if x in b.images else b.sequence)(made, end - start)


@step
def gather(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    picked = b.rng.permutation(c)[: b.integer(max(c - 2, 1), c)]
    made = b.op("Gather", x, b.ints(*(int(i) for i in picked)), axis=b.axis(x))
    return (b.image if x in b.images else b.sequence)(made, len(picked))


@step
def shuffle(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    if x not in b.images or c % 2 or b.dynamic:
        return None
    y = b.op("Reshape", x, b.ints(0, 2, c // 2, 6, 6))
    return b.image(b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3, 4]), b.ints(0, -1, 6, 6)), c)


@step
def to_sequence(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c = b.channels[x]
    flat = b.op("Reshape", x, b.ints(0, c, -1) if b.integer(0, 1) else b.ints(0, 0, -1))
    return b.sequence(b.op("Transpose", flat, perm=[0, 2, 1]), c)


@step
def channels_last(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    c, o = b.channels[x], b.integer(4, 12)
    y = b.op("MatMul", b.op("Transpose", x, perm=[0, 2, 3, 1]), b.weight(c, o, scale=1 / sqrt(c)))
    return b.image(b.op("Transpose", b.op("Add", y, b.weight(o)), perm=[0, 3, 1, 2]), o)


@step
def squeeze(b: Builder, x: str) -> str | None:
    if x not in b.images:
        return None
    pooled = b.op("Squeeze", b.op("GlobalMaxPool", x), b.ints(2, 3))
    return b.like(x, b.op("Add", x, b.op("Unsqueeze", pooled, b.ints(-1, -2))))


# -- sequences ---------------------------------------------------------------------------------------------------------


@step
def feed_forward(b: Builder, x: str) -> str | None:
    if x not in b.sequences:
        return None
    c, hidden = b.channels[x], b.integer(6, 12)
    y = b.op("Add", b.op("MatMul", x, b.weight(c, hidden, scale=1 / sqrt(c))), b.weight(hidden))
    y = b.op("MatMul", b.op("Relu", y), b.weight(hidden, c, scale=1 / sqrt(hidden)))
    return b.sequence(b.op("Add", x, y), c)


@step
def layer_normalization(b: Builder, x: str) -> str | None:
    c = b.channels[x]
    return b.sequence(b.op("LayerNormalization", x, b.weight(c), b.weight(c)), c) if x in b.sequences else None


@step
def softmax(b: Builder, x: str) -> str | None:
    return b.like(x, b.op("Softmax", x, axis=b.integer(0, 2)))


@step
def attention(b: Builder, x: str) -> str | None:
    if x not in b.sequences:
        return None
    c, heads, width = b.channels[x], b.integer(2, 4), b.integer(2, 3)
    inner, literal = heads * width, b.integer(0, 2)
    if literal == 0:
        shape = b.ints(0, 0, heads, width)
    elif literal == 1:
        shape = b.ints(0, 0, -1, width)
    else:
        batch = b.op("Shape", x, start=0, end=2)
        shape = b.op("Concat", batch, b.ints(heads), b.ints(width), axis=0)
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        y = b.op("MatMul", x, b.weight(c, inner, scale=1 / sqrt(c)))
        y = b.op("Add", y, b.weight(inner))
        parts.append(b.op("Transpose", b.op("Reshape", y, shape), perm=perm))
    scores = b.op("Softmax", b.op("Mul", b.op("MatMul", *parts[:2]), b.constant(0.5)), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
    flat = b.op("Reshape", mixed, b.ints(0, 0, inner) if b.integer(0, 1) else b.ints(0, 0, -1))
    out = b.op("MatMul", flat, b.weight(inner, c, scale=1 / sqrt(inner)))
    return b.sequence(b.op("Add", x, out), c)


@step
def fused_attention(b: Builder, x: str) -> str | None:
    """Queries, keys and values of one layer, cut out of (3, N, heads, S, width)."""
    if x not in b.sequences:
        return None
    c, heads, width = b.channels[x], b.integer(2, 4), b.integer(2, 3)
    inner = heads * width
    y = b.op("MatMul", x, b.weight(c, 3 * inner, scale=1 / sqrt(c)))
    y = b.op("Transpose", b.op("Reshape", y, b.ints(0, 0, 3, heads, width)), perm=[2, 0, 3, 1, 4])
    if b.integer(0, 1):
        q, k, v = (b.op("Gather", y, b.constant(i, np.int64), axis=0) for i in range(3))
    else:
        q, k, v = (b.op("Squeeze", b.op("Slice", y, b.ints(i), b.ints(i + 1), b.ints(0)), b.ints(0)) for i in range(3))
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    out = b.op("MatMul", b.op("Reshape", mixed, b.ints(0, 0, inner)), b.weight(inner, c, scale=1 / sqrt(inner)))
    return b.sequence(b.op("Add", x, out), c)


@step
def mixing_over_positions(b: Builder, x: str) -> str | None:
    """The channels are a batch axis for a product over positions."""
    if x not in b.sequences or b.dynamic:
        return None
    y = b.op("MatMul", b.op("Transpose", x, perm=[0, 2, 1]), b.weight(36, 36))
    return b.sequence(b.op("Transpose", y, perm=[0, 2, 1]), b.channels[x])
