"""Every rule against central differences in float64, on generated shapes, by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from float64_kernels import OPERATORS
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.gradient import with_gradients
from onnxsqueeze.training.known import measured
from onnxsqueeze.training.rules.table import RULES

Array = NDArray[Any]
DIRECTIONS = 3
STEP = 1e-6
WORST = 1e-5


class Case:
    """A node on inputs: ``by`` are the slots to differentiate by, all floats unless said otherwise."""

    def __init__(
        self, op: str, inputs: Sequence[Array | None], by: Sequence[int] = (), outputs: int = 1, **attrs: Any
    ) -> None:
        self.op, self.inputs, self.outputs, self.attrs = op, list(inputs), outputs, attrs
        floats = [i for i, x in enumerate(inputs) if x is not None and x.dtype == np.float64]
        self.by = list(by) or floats


def loss_of(case: Case, rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of ``Σ r·y`` over all outputs, with random r, and the feed of what it is differentiated by."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(case.inputs)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    nodes = [helper.make_node(case.op, names, outputs, **case.attrs)]
    feed = {names[i]: np.asarray(case.inputs[i]) for i in case.by}
    fixed = {
        n: x for i, (n, x) in enumerate(zip(names, case.inputs, strict=True)) if x is not None and i not in case.by
    }
    forward = model_of(nodes, feed, fixed, outputs)
    answers = run(forward, feed)
    weights = [rng.standard_normal(np.shape(y)) for y in answers]
    parts = []
    for i, (name, weight) in enumerate(zip(outputs, weights, strict=True)):
        fixed[f"r{i}"] = np.asarray(weight)
        nodes.append(helper.make_node("Mul", [name, f"r{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("ReduceSum", [f"m{i}"], [f"s{i}"], keepdims=0))
        parts.append(f"s{i}")
    nodes.append(helper.make_node("Sum", parts, ["loss"]))
    return model_of(nodes, feed, fixed, ["loss"]), feed


def check(case: Case, rng: np.random.Generator) -> None:
    whole, feed = loss_of(case, rng)
    grads = run(with_gradients(whole, measured(whole, feed, run), "loss", list(feed)), feed)[1:]

    evaluator = ReferenceEvaluator(whole, new_ops=OPERATORS)
    for name, grad in zip(feed, grads, strict=True):
        assert grad.shape == feed[name].shape
        for _ in range(DIRECTIONS):
            way = rng.standard_normal(feed[name].shape)
            ahead, behind = (evaluator.run(None, {**feed, name: feed[name] + h * way})[0] for h in (STEP, -STEP))
            expected, found = float(ahead - behind) / (2 * STEP), float((grad * way).sum())
            scale = max(abs(expected), float(np.sqrt((grad**2).sum())), 1e-3)
            assert abs(expected - found) <= WORST * scale


def model_of(
    nodes: Any, feed: Mapping[str, Array], fixed: Mapping[str, Array], outputs: Sequence[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feed.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(x, n) for n, x in fixed.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Any]:
    return list(ReferenceEvaluator(model, new_ops=OPERATORS).run(None, dict(feed)))


def single(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in float32."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in small.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in small.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = onnx.TensorProto.FLOAT
    return small


def in_runtime(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Any]:
    return list(Session(model, threads=1).run(feed).values())


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
    "DepthToSpace": lambda d: Case("DepthToSpace", [d.normal(1, 8, 2, d.size())], blocksize=2, mode=d.one_of("DCR", "CRD")),
    "SpaceToDepth": lambda d: Case("SpaceToDepth", [d.normal(1, 2, 4, 2 * d.size())], blocksize=2),
    "Resize": lambda d: Case(
        "Resize", [d.normal(1, 2, d.size(), 3), None, np.array([1, 1, 2, d.one_of(2, 3)], np.float32)], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    ),
    "CumSum": lambda d: Case("CumSum", [d.normal(3, d.size()), np.array(0)], reverse=d.size(0, 1), exclusive=d.size(0, 1)),
    "DequantizeLinear": fake_quantized,
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(set(MAKERS) - {"RMSNormalization"}))
def test_onnx_runtime_gives_the_same_gradient_in_float32(op: str) -> None:
    """Opset 23 has RMSNormalization, which not every ONNX Runtime runs."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        case = MAKERS[op](Draw(rng))
        model, feed = loss_of(case, np.random.default_rng(seed))
        small, small_feed = single(model), {name: x.astype(np.float32) for name, x in feed.items()}
        expected = run(with_gradients(model, measured(model, feed, run), "loss", list(feed)), feed)
        step = with_gradients(small, measured(small, small_feed, in_runtime), "loss", list(feed))
        found = in_runtime(step, small_feed)

        for one, other in zip(expected, found, strict=True):
            assert other.dtype == np.float32
            assert np.abs(one - other).max(initial=0) <= 1e-4 * (1 + np.abs(one).max(initial=0))


@pytest.mark.parametrize("op", MAKERS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_gradient_is_the_central_difference(op: str, data: st.DataObject, seed: int) -> None:
    draw = Searched(data, seed)
    check(MAKERS[op](draw), draw.rng)


def test_every_rule_is_held_against_differences() -> None:
    assert set(RULES) - set(MAKERS) == {"QuantizeLinear"}, "that one rounds, and has no differences"
