"""Models by seed: random graphs of layers, and the tests of ONNX's backend suite with inputs frozen to weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["frozen", "generated"]

Shape = tuple[int, ...]


class Builder:
    """A graph that grows by one random layer after the other; every tensor's shape is known."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, Shape] = {}
        self.old: list[str] = []

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Add a constant: mostly normal, at times with zeros, tiny or huge channels, or one that is there already."""
        rng = self.rng
        if self.weights and rng.random() < 0.15:
            alike = [w.name for w in self.weights if tuple(w.dims) == shape]
            if alike:
                return str(rng.choice(alike))
        size = scale or 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        values = np.asarray(rng.normal(size=shape) * size)
        kind = rng.random()
        if kind < 0.05:
            values[rng.random(shape) < 0.9] = 0
        elif kind < 0.1 and len(shape) > 1:
            values[rng.integers(shape[0])] *= 10.0 ** rng.integers(-38, 12)
        elif kind < 0.13:
            values[...] = 0
        elif kind < 0.16:
            values = np.rint(values * 4)
        elif kind < 0.165:
            values.flat[0] = rng.choice([np.nan, np.inf])
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def integers(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def put(self, op: str, inputs: list[str], shape: Shape, outputs: int = 1, /, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}", *(f"t{len(self.nodes)}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        self.shapes[names[0]] = shape
        self.old.append(names[0])
        return names[0]


Layer = Callable[[Builder, str, Shape], str]


def linear(b: Builder, x: str, s: Shape) -> str:
    wide = int(b.rng.choice([1, 3, 16, 33, 64, 128]))
    if len(s) == 2 and b.rng.random() < 0.5:
        if b.rng.random() < 0.5:
            return b.put("Gemm", [x, b.weight(wide, s[1]), b.weight(wide)], (s[0], wide), transB=1)
        alpha = float(b.rng.choice([1.0, 0.5, -2.0]))
        return b.put("Gemm", [x, b.weight(s[1], wide)], (s[0], wide), alpha=alpha)
    y = b.put("MatMul", [x, b.weight(s[-1], wide)], (*s[:-1], wide))
    return b.put("Add", [y, b.weight(wide)], (*s[:-1], wide)) if b.rng.random() < 0.6 else y


def conv(b: Builder, x: str, s: Shape) -> str:
    if len(s) not in (3, 4):
        return linear(b, x, s)
    rank, rng = len(s) - 2, b.rng
    group = int(rng.choice([g for g in (1, 1, 2, s[1]) if s[1] % g == 0]))
    wide = group * int(rng.choice([1, 2, 8, 16]))
    kernel = [int(min(rng.choice([1, 3, 5]), size)) for size in s[2:]]
    stride, pad = int(rng.choice([1, 1, 2])), int(rng.integers(0, 2))
    out = tuple((n + 2 * pad - k) // stride + 1 for n, k in zip(s[2:], kernel, strict=True))
    inputs = [x, b.weight(wide, s[1] // group, *kernel)] + ([b.weight(wide)] if rng.random() < 0.6 else [])
    attrs = {"strides": [stride] * rank, "pads": [pad] * 2 * rank, "group": group}
    return b.put("Conv", inputs, (s[0], wide, *out), **attrs)


def affine(b: Builder, x: str, s: Shape) -> str:
    axis = 1 if len(s) > 2 and b.rng.random() < 0.5 else len(s) - 1
    shape = [s[a] if a == axis else 1 for a in range(len(s))]
    kinds: list[Shape] = [(), (1,), tuple(shape), tuple(shape[axis:])]
    other = b.weight(*kinds[int(b.rng.integers(len(kinds)))], scale=1.0)
    op = str(b.rng.choice(["Add", "Mul", "Sub", "Mul"]))
    return b.put(op, [x, other] if b.rng.random() < 0.7 else [other, x], s)


def activation(b: Builder, x: str, s: Shape) -> str:
    op = str(b.rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Erf", "Softplus", "swish", "hard"]))
    if op == "swish":
        return b.put("Mul", [x, b.put("Sigmoid", [x], s)], s)
    if op == "hard":
        three, six = b.weight(scale=1.0), b.weight(scale=1.0)
        return b.put("Mul", [x, b.put("Clip", [b.put("Add", [x, three], s), "", six], s)], s)
    return b.put(op, [x], s)


def attention(b: Builder, x: str, s: Shape) -> str:
    if len(s) != 3:
        return activation(b, x, s)
    d, n = 16, s[1]
    q, k, v = (b.put("MatMul", [x, b.weight(s[2], d)], (s[0], n, d)) for _ in range(3))
    scores = b.put("MatMul", [q, b.put("Transpose", [k], (s[0], d, n), perm=[0, 2, 1])], (s[0], n, n))
    if b.rng.random() < 0.5:
        mask = np.triu(np.full((n, n), b.rng.choice([-1e4, -65504.0, -3.4028235e38]), np.float32), 1)
        b.weights.append(numpy_helper.from_array(mask, f"w{len(b.weights)}"))
        scores = b.put("Add", [scores, b.weights[-1].name], (s[0], n, n))
    return b.put("MatMul", [b.put("Softmax", [scores], (s[0], n, n), axis=-1), v], (s[0], n, d))


def norm(b: Builder, x: str, s: Shape) -> str:
    if len(s) > 2 and b.rng.random() < 0.5:
        b.weights.append(numpy_helper.from_array(b.rng.uniform(0.1, 2, s[1]).astype(np.float32), f"w{len(b.weights)}"))
        variance = b.weights[-1].name
        names = [b.weight(s[1], scale=1.0) for _ in range(3)]
        return b.put("BatchNormalization", [x, *names, variance], s)
    return b.put("LayerNormalization", [x, b.weight(s[-1], scale=1.0), b.weight(s[-1])], s, axis=-1)


def moved(b: Builder, x: str, s: Shape) -> str:
    kind = int(b.rng.integers(5))
    if kind == 0 and len(s) > 2:
        perm = [0, *(int(a) + 1 for a in b.rng.permutation(len(s) - 1))]
        return b.put("Transpose", [x], tuple(s[a] for a in perm), perm=perm)
    if kind == 1 and len(s) > 2:
        return b.put("Reshape", [x, b.integers(0, -1)], (s[0], int(np.prod(s[1:]))))
    if kind == 2:
        return b.put("Concat", [x, x], (*s[:-1], 2 * s[-1]), axis=-1)
    if kind == 3 and s[-1] > 1:
        half = s[-1] // 2
        return b.put("Split", [x, b.integers(half, s[-1] - half)], (*s[:-1], half), 2, axis=-1)
    if kind == 4 and len(s) == 4 and min(s[2:]) > 1:
        return b.put("MaxPool", [x], (*s[:2], s[2] // 2, s[3] // 2), kernel_shape=[2, 2], strides=[2, 2])
    return b.put("ReduceMean", [x], (*s[:-1], 1), axes=[-1], keepdims=1)


def joined(b: Builder, x: str, s: Shape) -> str:
    alike = [name for name in b.old if b.shapes[name] == s and name != x]
    op = str(b.rng.choice(["Add", "Mul"]))
    return b.put(op, [x, str(b.rng.choice(alike))], s) if alike else affine(b, x, s)


def branch(b: Builder, x: str, s: Shape) -> str:
    """An If, each body with a MatMul on a weight of its own or the same."""
    bodies, shared = [], b.weight(s[-1], s[-1])
    for i, op in enumerate(("MatMul", "MatMul")):
        out = f"t{len(b.nodes)}_body{i}"
        node = helper.make_node(op, [x, shared if i or b.rng.random() < 0.5 else b.weight(s[-1], s[-1])], [out])
        bodies.append(helper.make_graph([node], "b", [], [helper.make_tensor_value_info(out, 1, None)]))
    condition = f"w{len(b.weights)}"
    b.weights.append(numpy_helper.from_array(np.array(bool(b.rng.integers(2))), condition))
    return b.put("If", [condition], s, then_branch=bodies[0], else_branch=bodies[1])


def recurrent(b: Builder, x: str, s: Shape) -> str:
    if len(s) != 3:
        return linear(b, x, s)
    h = 12
    w, r = b.weight(1, 4 * h, s[2]), b.weight(1, 4 * h, h)
    y = b.put("LSTM", [b.put("Transpose", [x], (s[1], s[0], s[2]), perm=[1, 0, 2]), w, r], (s[1], 1, s[0], h),
              hidden_size=h)  # fmt: skip
    y = b.put("Squeeze", [y, b.integers(1)], (s[1], s[0], h))
    return b.put("Transpose", [y], (s[0], s[1], h), perm=[1, 0, 2])


LAYERS: tuple[Layer, ...] = (linear, linear, conv, conv, affine, affine, activation, activation, norm, moved, joined,
                             attention, branch, recurrent)  # fmt: skip
WIDEST, LARGEST = 256, 50_000
"""Elements of the last axis, and of a tensor, from which on it is reduced."""
STARTS: tuple[Shape, ...] = ((64,), (7, 32), (3, 20, 20), (8, 9, 9), (5, 5))


def generated(rng: np.random.Generator) -> onnx.ModelProto:
    """Return a random chain of up to 14 layers with branches, on inputs with an open batch."""
    b = Builder(rng)
    start = (2, *STARTS[int(rng.integers(len(STARTS)))])
    x = "x"
    b.shapes[x] = start
    b.old.append(x)
    for _ in range(int(rng.integers(1, 15))):
        x = LAYERS[int(rng.integers(len(LAYERS)))](b, x, b.shapes[x])
        shape = b.shapes[x]
        if shape[-1] > WIDEST or np.prod(shape) > LARGEST:
            x = b.put("ReduceMean", [x], (*shape[:-1], 1), axes=[-1], keepdims=1)
        if rng.random() < 0.1:
            x = str(rng.choice(b.old))
    outputs = dict.fromkeys([b.old[-1], x])
    graph = helper.make_graph(
        b.nodes,
        "fuzz",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *start[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs if name != "x"],
        b.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def backend() -> Iterator[Path]:
    """Yield the tests of ONNX's backend suite that lie in its package as files."""
    import onnx.backend.test

    data = Path(onnx.backend.test.__file__).parent / "data"
    yield from sorted(path for kind in ("pytorch-*", "simple") for path in data.glob(f"{kind}/*/model.onnx"))


def frozen(rng: np.random.Generator) -> onnx.ModelProto:
    """Return a test of ONNX whose inputs but the first are weights, with the values that the test gives them."""
    paths = list(backend())
    if not paths:
        return generated(rng)
    path = paths[int(rng.integers(len(paths)))]
    model = onnx.load(path)
    for i in reversed(range(1, len(model.graph.input))):
        data = path.parent / "test_data_set_0" / f"input_{i}.pb"
        value = onnx.TensorProto.FromString(data.read_bytes()) if data.is_file() else None
        if value is not None and value.dims:
            value.name = model.graph.input[i].name
            model.graph.initializer.append(value)
            del model.graph.input[i]
    return model
