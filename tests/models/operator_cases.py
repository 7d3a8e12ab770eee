"""One node of every operator that has a rule, with inputs of drawn shapes: what gradients are tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray

__all__ = ["MAKERS", "Case", "Draw", "Searched"]

Array = NDArray[Any]


class Case:
    """A node on inputs: ``by`` are the slots to differentiate by, all floats unless said otherwise."""

    def __init__(
        self, op: str, inputs: Sequence[Array | None], by: Sequence[int] = (), outputs: int = 1, **attrs: Any
    ) -> None:
        self.op, self.inputs, self.outputs, self.attrs = op, list(inputs), outputs, attrs
        floats = [i for i, x in enumerate(inputs) if x is not None and x.dtype == np.float64]
        self.by = list(by) or floats


Make = Callable[["Draw"], Case]


class Draw:
    """Shapes and numbers of one example, by a generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def size(self, low: int = 1, high: int = 4) -> int:
        return int(self.rng.integers(low, high + 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.size(0, len(choices) - 1)]

    def shape(self, low: int = 1, high: int = 3) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self.size(low, high)))

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape)

    def apart(self, *shape: int) -> Array:
        """Numbers all of which are far from each other and from the integers and 0, where functions may have a kink."""
        count = int(np.prod(shape))
        return ((self.rng.permutation(count) - count // 2) * 0.37 + 0.113).reshape(shape)

    def positive(self, *shape: int) -> Array:
        return self.rng.uniform(0.5, 2, shape)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to another one."""
        cut = self.size(0, len(shape))
        return tuple(d if self.one_of(True, False) else 1 for d in shape[cut:])


class Searched(Draw):
    """The same with sizes that Hypothesis chooses, and makes small where something fails."""

    def __init__(self, data: st.DataObject, seed: int) -> None:
        super().__init__(np.random.default_rng(seed))
        self.data = data

    def size(self, low: int = 1, high: int = 4) -> int:
        return int(self.data.draw(st.integers(low, high)))


def unary(op: str, how: str = "apart", **attrs: Any) -> Make:
    return lambda d: Case(op, [getattr(d, how)(*d.shape())], **attrs)


def binary(op: str, how: str = "normal") -> Make:
    def make(d: Draw) -> Case:
        shape = d.shape()
        sides = [getattr(d, how)(*shape), getattr(d, how)(*d.broadcast(shape)) + 0.01]
        return Case(op, sides if d.one_of(True, False) else sides[::-1])

    return make


def matmul(d: Draw) -> Case:
    m, k, n = d.size(), d.size(), d.size()
    batch = d.shape(0, 2)
    kind = d.one_of("2d", "batch", "shared", "broadcast", "row", "column")
    one, two = {
        "2d": ((m, k), (k, n)), "batch": ((*batch, m, k), (*batch, k, n)), "shared": ((*batch, m, k), (k, n)),
        "broadcast": ((*d.broadcast(batch), m, k), (*batch, k, n)), "row": ((k,), (*batch, k, n)),
        "column": ((*batch, m, k), (k,)),
    }[kind]  # fmt: skip
    return Case("MatMul", [d.normal(*one), d.normal(*two)])


def gemm(d: Draw) -> Case:
    m, k, n, ta, tb = d.size(), d.size(), d.size(), d.size(0, 1), d.size(0, 1)
    a, b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
    c = d.one_of((n,), (1, n), (m, 1), (m, n), (), None)
    inputs = [d.normal(*a), d.normal(*b), *([] if c is None else [np.asarray(d.normal(*c))])]
    return Case("Gemm", inputs, alpha=0.5, beta=1.5, transA=ta, transB=tb)


def conv(d: Draw) -> Case:
    rank, group = d.size(1, 2), d.one_of(1, 2, 3)
    per, outputs = d.size(1, 2), d.size(1, 2)
    kernel = [d.size(1, 3) for _ in range(rank)]
    strides, dilations = [d.size(1, 2) for _ in range(rank)], [d.size(1, 2) for _ in range(rank)]
    pads = [d.size(0, 2) for _ in range(2 * rank)]
    size = [(k - 1) * e + 1 + d.size(0, 3) for k, e in zip(kernel, dilations, strict=True)]
    x, w = d.normal(d.size(1, 2), group * per, *size), d.normal(group * outputs, per, *kernel)
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group, "kernel_shape": kernel}
    auto = d.one_of("NOTSET", "SAME_UPPER", "VALID") if dilations == [1] * rank else "NOTSET"
    attrs |= {"pads": pads} if auto == "NOTSET" else {"auto_pad": auto}
    return Case("Conv", [x, w, *([d.normal(group * outputs)] if d.one_of(True, False) else [])], **attrs)


def conv_transpose(d: Draw) -> Case:
    kernel, stride = d.size(1, 3), d.size(1, 2)
    pad, left = d.size(0, (kernel - 1) // 2), d.size(0, stride - 1)
    x, w = d.normal(d.size(1, 2), 2, d.size(2, 4), d.size(2, 4)), d.normal(2, d.size(1, 3), kernel, kernel)
    return Case(
        "ConvTranspose", [x, w, d.normal(w.shape[1])], strides=[stride] * 2, pads=[pad] * 4, output_padding=[left] * 2,
        kernel_shape=[kernel] * 2,
    )  # fmt: skip


def softmax(op: str) -> Make:
    def make(d: Draw) -> Case:
        x = d.normal(*d.shape())
        return Case(op, [x], axis=d.size(-x.ndim, x.ndim - 1))

    return make


def layer_norm(op: str) -> Make:
    def make(d: Draw) -> Case:
        x = d.normal(*d.shape(2, 3)[:-1], d.size(2, 5))
        axis = d.size(1, x.ndim - 1)
        sides = [d.normal(*x.shape[axis:]) for _ in range(2 if op == "LayerNormalization" and d.one_of(0, 1) else 1)]
        return Case(op, [x, *sides], axis=axis, epsilon=1e-2)

    return make


def batch_norm(d: Draw) -> Case:
    x = d.normal(d.size(), d.size(), *d.shape(0, 2))
    c = x.shape[1]
    return Case("BatchNormalization", [x, d.normal(c), d.normal(c), d.normal(c), d.positive(c)], by=[0, 1, 2])


def instance_norm(d: Draw) -> Case:
    x = d.normal(d.size(), d.size(), d.size(2, 4), d.size(2, 3))
    return Case("InstanceNormalization", [x, d.normal(x.shape[1]), d.normal(x.shape[1])], epsilon=1e-2)


def group_norm(d: Draw) -> Case:
    x = d.normal(d.size(), 4, d.size(2, 3), d.size(2, 3))
    return Case("GroupNormalization", [x, d.normal(4), d.normal(4)], num_groups=d.one_of(1, 2), epsilon=1e-2)


def reduction(op: str, how: str = "apart") -> Make:
    def make(d: Draw) -> Case:
        x = getattr(d, how)(*d.shape())
        axes = d.one_of(None, [0], [-1], list(range(x.ndim)))
        return Case(op, [x, *([] if axes is None else [np.array(axes)])], keepdims=d.size(0, 1))

    return make


def pool(op: str) -> Make:
    def make(d: Draw) -> Case:
        kernel, stride = [d.size(1, 3), d.size(1, 3)], [d.size(1, 2), d.size(1, 3)]
        size = [k + d.size(0, 4) for k in kernel]
        pads = [d.size(0, k - 1) for k in kernel]
        attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": [*pads, *pads]}
        if op == "AveragePool":
            attrs["count_include_pad"] = d.size(0, 1)
        return Case(op, [d.apart(d.size(1, 2), d.size(1, 2), *size)], **attrs)

    return make


def reshape(d: Draw) -> Case:
    x = d.normal(*d.shape())
    return Case("Reshape", [x, np.array([-1, x.shape[0]])])


def squeeze(op: str) -> Make:
    return lambda d: Case(op, [d.normal(1, d.size(), 1), np.array([0, 2])])


def transpose(d: Draw) -> Case:
    x = d.normal(*d.shape())
    return Case("Transpose", [x], perm=[int(i) for i in d.rng.permutation(x.ndim)])


def concat(d: Draw) -> Case:
    return Case("Concat", [d.normal(2, d.size(), 3) for _ in range(d.size())], axis=d.one_of(1, -2))


def split(d: Draw) -> Case:
    sizes = [d.size() for _ in range(d.size(2, 3))]
    return Case("Split", [d.normal(2, sum(sizes)), np.array(sizes)], axis=1, outputs=len(sizes))


def sliced(d: Draw) -> Case:
    x = d.normal(d.size(3, 5), d.size(2, 4))
    step = d.one_of(1, 1, 2, -1)
    start, end = (0, x.shape[0] - 1) if step > 0 else (-1, -x.shape[0] - 1)
    return Case("Slice", [x, *(np.array([value]) for value in (start, end, 0, step))])


def pad(d: Draw) -> Case:
    x = d.normal(d.size(3, 4), d.size(3, 4))
    mode = d.one_of("constant", "reflect", "edge")
    return Case("Pad", [x, np.array([d.size(0, 2) for _ in range(4)])], mode=mode)


def gather(d: Draw) -> Case:
    x = d.normal(d.size(2, 4), 3)
    axis = d.size(0, 1)
    at = d.rng.integers(-x.shape[axis], x.shape[axis], d.shape(0, 2))
    return Case("Gather", [x, np.asarray(at)], axis=axis)


def where(d: Draw) -> Case:
    shape = d.shape()
    return Case("Where", [d.normal(*shape) > 0, d.normal(*shape), d.normal(*d.broadcast(shape))])


def fake_quantized(d: Draw) -> Case:
    """The scale of stored integers."""
    q = d.rng.integers(-8, 8, (d.size(), d.size())).astype(np.int8)
    scale = d.positive(q.shape[0]) if d.one_of(True, False) else np.asarray(d.positive())
    zero = np.zeros(scale.shape, np.int8)
    return Case("DequantizeLinear", [q, scale, zero], axis=0)


MAKERS: dict[str, Make] = {
    "Add": binary("Add"), "Sub": binary("Sub"), "Mul": binary("Mul"), "Div": binary("Div", "positive"),
    "Sum": lambda d: Case("Sum", [d.normal(2, 3), d.normal(3), d.normal(2, 1)]),
    "Pow": lambda d: Case("Pow", [d.positive(*d.shape()), np.asarray(d.one_of(2.0, 3.0, 0.5))], by=[0]),
    "Max": binary("Max"), "Min": binary("Min"), "Where": where,
    "PRelu": lambda d: Case("PRelu", [d.apart(2, d.size(), 3), d.normal(1, 3)]),
    "Identity": unary("Identity"), "Dropout": unary("Dropout"), "Cast": unary("Cast", to=onnx.TensorProto.DOUBLE),
    "Neg": unary("Neg"), "Relu": unary("Relu"), "LeakyRelu": unary("LeakyRelu", alpha=0.2),
    "Clip": lambda d: Case("Clip", [d.apart(*d.shape()), np.asarray(-0.5), np.asarray(0.6)], by=[0]),
    "Sigmoid": unary("Sigmoid"), "Tanh": unary("Tanh"), "Erf": unary("Erf"),
    "Gelu": lambda d: Case("Gelu", [d.normal(*d.shape())], approximate=d.one_of("none", "tanh")),
    "HardSigmoid": unary("HardSigmoid", alpha=0.3, beta=0.4), "HardSwish": unary("HardSwish"),
    "Elu": unary("Elu", alpha=0.7), "Softplus": unary("Softplus"), "Exp": unary("Exp", "normal"),
    "Log": unary("Log", "positive"), "Sqrt": unary("Sqrt", "positive"), "Reciprocal": unary("Reciprocal", "positive"),
    "Abs": unary("Abs"), "Sin": unary("Sin"), "Cos": unary("Cos"),
    "MatMul": matmul, "Gemm": gemm, "Conv": conv, "ConvTranspose": conv_transpose,
    "Softmax": softmax("Softmax"), "LogSoftmax": softmax("LogSoftmax"),
    "LayerNormalization": layer_norm("LayerNormalization"), "RMSNormalization": layer_norm("RMSNormalization"),
    "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "ReduceSum": reduction("ReduceSum"), "ReduceMean": reduction("ReduceMean"), "ReduceMax": reduction("ReduceMax"),
    "ReduceMin": reduction("ReduceMin"), "ReduceSumSquare": reduction("ReduceSumSquare", "normal"),
    "ReduceL2": reduction("ReduceL2", "positive"),
    "GlobalAveragePool": lambda d: Case("GlobalAveragePool", [d.normal(2, d.size(), d.size(), 2)]),
    "GlobalMaxPool": lambda d: Case("GlobalMaxPool", [d.apart(2, d.size(), d.size(), 2)]),
    "MaxPool": pool("MaxPool"), "AveragePool": pool("AveragePool"),
    "Reshape": reshape, "Flatten": lambda d: Case("Flatten", [d.normal(*d.shape(2, 3))], axis=1),
    "Squeeze": squeeze("Squeeze"), "Unsqueeze": lambda d: Case("Unsqueeze", [d.normal(d.size()), np.array([0, 2])]),
    "Transpose": transpose, "Concat": concat, "Split": split,
    "Expand": lambda d: Case("Expand", [d.normal(1, d.size()), np.array([d.size(), 3, 1])]),
    "Tile": lambda d: Case("Tile", [d.normal(2, d.size()), np.array([d.size(1, 2), d.size(1, 3)])]),
    "Slice": sliced, "Pad": pad, "Gather": gather,
    "GatherElements": lambda d: Case("GatherElements", [d.normal(4, 3), d.rng.integers(0, 4, (d.size(), 3))], axis=0),
    "GatherND": lambda d: Case("GatherND", [d.normal(4, 3), d.rng.integers(0, 3, (d.size(), 2))]),
    "DepthToSpace": lambda d: Case(
        "DepthToSpace", [d.normal(1, 8, 2, d.size())], blocksize=2, mode=d.one_of("DCR", "CRD")
    ),
    "SpaceToDepth": lambda d: Case("SpaceToDepth", [d.normal(1, 2, 4, 2 * d.size())], blocksize=2),
    "Resize": lambda d: Case(
        "Resize", [d.normal(1, 2, d.size(), 3), None, np.array([1, 1, 2, d.one_of(2, 3)], np.float32)], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "CumSum": lambda d: Case(
        "CumSum", [d.normal(3, d.size()), np.array(0)], reverse=d.size(0, 1), exclusive=d.size(0, 1)
    ),
    "DequantizeLinear": fake_quantized,
}  # fmt: skip
