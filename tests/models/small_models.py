"""Small runnable models, one for each shape of graph that passes meet: ``MODELS[name]()``, and feeds for them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

__all__ = ["MODELS", "Feed", "feeds", "fill", "parse"]

Array = NDArray[np.generic]
Feed = dict[str, Array]
Case = Callable[[], onnx.ModelProto]

MODELS: dict[str, Case] = {}
MASK = "-3.4028234663852886e38"


def case(function: Case) -> Case:
    MODELS[function.__name__] = function
    return function


def parse(body: str, *, ir: int = 8, opset: int = 17, domains: str = "", functions: str = "") -> onnx.ModelProto:
    """Return the model of a graph in ONNX text whose weights are declared ``<float[4, 3] w>`` without values.

    Declared tensors that no node makes become initializers with values of the size that layers have.
    """
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{domains}]> {body}\n{functions}')
    fill(model.graph, np.random.default_rng(0))
    return model


def fill(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Turn declared tensors that no node makes into initializers, in the bodies, too."""
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.output}
    kept = []
    for info in graph.value_info:
        if info.name in made:
            kept.append(info)
            continue
        kind = info.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        values = rng.standard_normal(shape) / np.sqrt(max(prod(shape[1:]), 1))
        if info.name.startswith("var"):
            values = np.abs(values) + 0.5
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        graph.initializer.append(numpy_helper.from_array(values.astype(dtype), info.name))
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                fill(attribute.g, rng)


def feeds(model: onnx.ModelProto, count: int = 6, seed: int = 0) -> list[Feed]:
    """Return random feeds: 2 for every free dimension, small whole numbers for integers, both truths for booleans.

    The channels of floats mix a third as many sources, as those of real activations do.
    """
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    made = []
    for index in range(count):
        feed: Feed = {}
        for value in model.graph.input:
            if value.name in weights:
                continue
            kind = value.type.tensor_type
            shape = [dim.dim_value or 2 for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if dtype == np.bool_:
                feed[value.name] = np.full(shape, index % 2 == 0)
            elif dtype.kind == "i":
                feed[value.name] = rng.integers(1, 8, shape).astype(dtype)
            elif value.name == "mask":
                feed[value.name] = (np.arange(shape[-1]) < shape[-1] - 2).astype(dtype) * np.ones(shape, dtype)
            else:
                feed[value.name] = _mixed(rng, shape).astype(dtype)
        made.append(feed)
    return made


def _mixed(rng: np.random.Generator, shape: list[int]) -> NDArray[np.float64]:
    axis = 1 if len(shape) > 3 else len(shape) - 1
    channels = shape[axis]
    sources = max(channels // 3, 1)
    mixing = np.random.default_rng(99).standard_normal((sources, channels))
    drawn = rng.standard_normal([*shape[:axis], *shape[axis + 1 :], sources])
    return np.moveaxis(drawn @ mixing / np.sqrt(sources) + 0.05 * rng.standard_normal(channels), -1, axis)


# -- plain networks ---------------------------------------------------------------------------------------------------


@case
def mlp() -> onnx.ModelProto:
    return parse("""g (float[N, 48] x) => (float[N, 10] y)
        <float[64, 48] w1, float[64] b1, float[64] s, float[64] o, float[64] m, float[64] var,
         float[10, 64] w2, float[10] b2> {
        h = Gemm<transB=1>(x, w1, b1)
        n = BatchNormalization(h, s, o, m, var)
        r = Relu(n)
        l = Gemm<transB=1>(r, w2, b2)
        y = Softmax(l)
    }""")


@case
def conv_bn_relu() -> onnx.ModelProto:
    return parse("""g (float[N, 3, 12, 12] x) => (float[N, 10] y)
        <float[24, 3, 3, 3] w1, float[24] s, float[24] o, float[24] m, float[24] var,
         float[32, 24, 3, 3] w2, float[32] b2, float[10, 32] w3, float[10] b3> {
        c1 = Conv<pads=[1, 1, 1, 1]>(x, w1)
        n1 = BatchNormalization(c1, s, o, m, var)
        r1 = Relu(n1)
        p1 = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(r1)
        c2 = Conv<pads=[1, 1, 1, 1]>(p1, w2, b2)
        six = Constant<value_float=6.0>()
        zero = Constant<value_float=0.0>()
        r2 = Clip(c2, zero, six)
        a = GlobalAveragePool(r2)
        f = Flatten(a)
        y = Gemm<transB=1>(f, w3, b3)
    }""")


@case
def residual() -> onnx.ModelProto:
    return parse("""g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
        <float[16, 16, 3, 3] w1, float[16] b1, float[16] s1, float[16] o1, float[16] m1, float[16] var1,
         float[16, 16, 3, 3] w2, float[16] s2, float[16] o2, float[16] m2, float[16] var2> {
        c1 = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
        n1 = BatchNormalization(c1, s1, o1, m1, var1)
        r1 = Relu(n1)
        c2 = Conv<pads=[1, 1, 1, 1]>(r1, w2)
        n2 = BatchNormalization(c2, s2, o2, m2, var2)
        a = Add(n2, x)
        y = Relu(a)
    }""")


@case
def depthwise() -> onnx.ModelProto:
    """An inverted bottleneck with HardSwish, squeeze and excitation."""
    return parse("""g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
        <float[48, 16, 1, 1] w1, float[48] b1, float[48, 1, 3, 3] w2, float[48] b2, float[12, 48, 1, 1] w3,
         float[12] b3, float[48, 12, 1, 1] w4, float[48] b4, float[16, 48, 1, 1] w5, float[16] b5> {
        e = Conv(x, w1, b1)
        h1 = HardSwish(e)
        d = Conv<group=48, pads=[1, 1, 1, 1]>(h1, w2, b2)
        h2 = HardSwish(d)
        a = GlobalAveragePool(h2)
        q1 = Conv(a, w3, b3)
        q2 = Relu(q1)
        q3 = Conv(q2, w4, b4)
        q = HardSigmoid<alpha=0.2, beta=0.5>(q3)
        m = Mul(h2, q)
        p = Conv(m, w5, b5)
        y = Add(p, x)
    }""")


@case
def spelled_out() -> onnx.ModelProto:
    """HardSwish as Add, Clip, Mul and Div, and a scale before the next layer."""
    return parse("""g (float[N, 16, 8, 8] x) => (float[N, 24, 6, 6] y)
        <float[16, 16, 1, 1] w1, float[16] b1, float[1, 16, 1, 1] k, float[24, 16, 3, 3] w2> {
        c = Conv(x, w1, b1)
        three = Constant<value_float=3.0>()
        six = Constant<value_float=6.0>()
        zero = Constant<value_float=0.0>()
        a = Add(c, three)
        l = Clip(a, zero, six)
        m = Mul(c, l)
        h = Div(m, six)
        s = Mul(h, k)
        y = Conv(s, w2)
    }""")


@case
def separable() -> onnx.ModelProto:
    """A dense convolution that is a depthwise one before a pointwise one, nearly."""
    model = parse("""g (float[N, 48, 8, 8] x) => (float[N, 48, 8, 8] y) <float[48, 48, 3, 3] w> {
        c = Conv<pads=[1, 1, 1, 1]>(x, w)
        y = Relu(c)
    }""")
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((48, 48, 1, 1)) * rng.standard_normal((1, 48, 3, 3)) / 20
    weight += 1e-3 * rng.standard_normal(weight.shape)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return model


@case
def attention() -> onnx.ModelProto:
    return parse(f"""g (float[N, 8, 32] x, float[N, 8] mask) => (float[N, 8, 32] y)
        <float[32, 32] wq, float[32] bq, float[32, 32] wk, float[32] bk, float[32, 32] wv, float[32] bv,
         float[32, 32] wo, float[32] bo, float[32] var_s, float[32] o> {{
        q1 = MatMul(x, wq)
        q2 = Add(q1, bq)
        k1 = MatMul(x, wk)
        k2 = Add(k1, bk)
        v1 = MatMul(x, wv)
        v2 = Add(v1, bv)
        heads = Constant<value_ints=[0, 8, 4, 8]>()
        q3 = Reshape(q2, heads)
        k3 = Reshape(k2, heads)
        v3 = Reshape(v2, heads)
        q4 = Transpose<perm=[0, 2, 1, 3]>(q3)
        k4 = Transpose<perm=[0, 2, 3, 1]>(k3)
        v4 = Transpose<perm=[0, 2, 1, 3]>(v3)
        s1 = MatMul(q4, k4)
        root = Constant<value_float=0.35>()
        s2 = Mul(s1, root)
        axes = Constant<value_ints=[1, 2]>()
        m1 = Unsqueeze(mask, axes)
        one = Constant<value_float=1.0>()
        m2 = Sub(one, m1)
        low = Constant<value = float {{{MASK}}}>()
        m3 = Mul(m2, low)
        s3 = Add(s2, m3)
        p = Softmax(s3)
        c1 = MatMul(p, v4)
        c2 = Transpose<perm=[0, 2, 1, 3]>(c1)
        flat = Constant<value_ints=[0, 8, 32]>()
        c3 = Reshape(c2, flat)
        o1 = MatMul(c3, wo)
        o2 = Add(o1, bo)
        r = Add(o2, x)
        y = LayerNormalization(r, var_s, o)
    }}""")


@case
def lstm() -> onnx.ModelProto:
    return parse("""g (float[6, N, 16] x) => (float[6, 2, N, 24] y)
        <float[2, 96, 16] w, float[2, 96, 24] r, float[2, 192] b> {
        y = LSTM<hidden_size=24, direction="bidirectional">(x, w, r, b)
    }""")


@case
def embedding() -> onnx.ModelProto:
    return parse("""g (int64[N, 6] ids) => (float[N, 6, 20] y) <float[40, 32] table, float[32, 20] w> {
        e = Gather(table, ids)
        y = MatMul(e, w)
    }""")


# -- forms of convolutions and Gemm -----------------------------------------------------------------------------------


@case
def auto_pad() -> onnx.ModelProto:
    return parse("""g (float[N, 8, 9, 10] x) => (float[N, 8, 2, 2] y)
        <float[16, 8, 3, 3] w1, float[16, 16, 2, 2] w2, float[8, 16, 2, 2] w3> {
        c1 = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w1)
        r1 = Relu(c1)
        c2 = Conv<auto_pad="SAME_LOWER">(r1, w2)
        y = Conv<auto_pad="VALID", strides=[3, 3]>(c2, w3)
    }""")


@case
def asymmetric_pads() -> onnx.ModelProto:
    return parse("""g (float[N, 8, 9, 10] x) => (float[N, 16, 5, 8] y) <float[16, 8, 3, 3] w, float[16] b> {
        c = Conv<pads=[0, 2, 1, 0], strides=[2, 1], dilations=[1, 2]>(x, w, b)
        e = Constant<value_ints=[0, 0, 0, 0, 0, 0, 1, 0]>()
        y = Pad(c, e)
    }""")


@case
def conv_1d() -> onnx.ModelProto:
    return parse("""g (float[N, 16, 20] x) => (float[N, 24, 9] y)
        <float[32, 16, 3] w1, float[32] b1, float[24, 32, 1] w2> {
        c = Conv<strides=[2]>(x, w1, b1)
        r = LeakyRelu<alpha=0.1>(c)
        y = Conv(r, w2)
    }""")


@case
def conv_3d() -> onnx.ModelProto:
    return parse("""g (float[N, 4, 5, 6, 7] x) => (float[N, 12, 5, 3, 4] y) <float[12, 4, 3, 3, 3] w, float[12] b> {
        c = Conv<pads=[1, 1, 1, 1, 1, 1], strides=[1, 2, 2]>(x, w, b)
        y = Sigmoid(c)
    }""")


@case
def transposed() -> onnx.ModelProto:
    """Grouped ConvTranspose with BatchNormalization and a scale."""
    return parse("""g (float[N, 24, 5, 5] x) => (float[N, 36, 11, 11] y)
        <float[24, 12, 3, 3] w, float[36] b, float[36] s, float[36] o, float[36] m, float[36] var, float[36, 1, 1] k> {
        c = ConvTranspose<group=3, strides=[2, 2]>(x, w, b)
        n = BatchNormalization(c, s, o, m, var)
        y = Mul(n, k)
    }""")


@case
def gemm_forms() -> onnx.ModelProto:
    return parse("""g (float[40, 40] x) => (float[40, 40] y)
        <float[40, 40] w1, float[40, 40] w2, float[40, 1] b2, float[40, 40] w3, float[1, 40] b3, float[40] k> {
        a = Gemm<alpha=0.5>(x, w1)
        c = Gemm<transA=1, transB=1, beta=2.0>(a, w2, b2)
        d = Add(c, k)
        e = Gemm<alpha=2.0, transB=1>(d, w3, b3)
        f = Mul(e, k)
        h = Gemm(f, w1, b2)
        y = Add(h, k)
    }""")


# -- where weights hide -----------------------------------------------------------------------------------------------


@case
def shared_weight() -> onnx.ModelProto:
    return parse("""g (float[N, 32] x, float[N, 8, 6, 6] i) => (float[N, 32] y, float[N, 8, 6, 6] j)
        <float[32, 32] w, float[32] b, float[8, 8, 3, 3] v, float[8] s, float[8] o, float[8] m, float[8] var> {
        a = MatMul(x, w)
        r = Relu(a)
        y = Gemm(r, w, b)
        c = Conv<pads=[1, 1, 1, 1]>(i, v)
        n = BatchNormalization(c, s, o, m, var)
        j = Conv<pads=[1, 1, 1, 1]>(n, v)
    }""")


@case
def hidden_weights() -> onnx.ModelProto:
    """Weights that arrive through Constant, Cast from float16, Transpose and Identity."""
    model = parse("""g (float[N, 32] x) => (float[N, 32] y) <float16[32, 32] h, float[48, 32] t, float[48, 32] i> {
        w = Cast<to=1>(h)
        a = MatMul(x, w)
        u = Transpose<perm=[1, 0]>(t)
        c = MatMul(a, u)
        r = Relu(c)
        v = Identity(i)
        d = MatMul(r, v)
        p = Dropout(d)
        e = MatMul(p, k)
        y = Identity(e)
    }""")
    values = np.random.default_rng(3).standard_normal((32, 32)).astype(np.float32) / 6
    model.graph.node.insert(7, onnx.helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(values)))
    return model


@case
def branches() -> onnx.ModelProto:
    """If bodies with weights of their own, equal names in both, and one captured weight."""
    return parse("""g (float[N, 48] x, bool c) => (float[N, 48] y) <float[48, 48] w> {
        a = MatMul(x, w)
        i = If(c) <
            then_branch = t () => (float[N, 48] p) <float[48, 48] v, float[48] b> {
                h = Gemm(a, v, b)
                q = Relu(h)
                p = MatMul(q, w)
            },
            else_branch = e () => (float[N, 48] r) <float[48, 48] v> {
                h = Identity(a)
                r = MatMul(h, v)
            }>
        y = Relu(i)
    }""")


@case
def loop() -> onnx.ModelProto:
    return parse("""g (float[N, 48] x) => (float[N, 48] y) <float[48, 48] w> {
        trips = Constant<value_int=3>()
        go = Constant<value = bool {1}>()
        s = Loop(trips, go, x) <
            body = b (int64 i, bool old, float[N, 48] before) => (bool next, float[N, 48] after) <float[48, 48] v> {
                next = Identity(old)
                h = MatMul(before, v)
                after = Tanh(h)
            }>
        y = MatMul(s, w)
    }""")


@case
def ir3() -> onnx.ModelProto:
    """The oldest form: initializers are listed as inputs, BatchNormalization of opset 8."""
    model = parse(
        """g (float[2, 16, 6, 6] x) => (float[2, 24, 6, 6] y)
        <float[24, 16, 3, 3] w, float[24] b, float[24] s, float[24] o, float[24] m, float[24] var> {
        c = Conv<pads=[1, 1, 1, 1]>(x, w, b)
        n = BatchNormalization(c, s, o, m, var)
        y = Relu(n)
    }""",
        ir=3,
        opset=8,
    )
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


@case
def opset_11() -> onnx.ModelProto:
    """Operators whose form has changed since, in the main graph and in a body."""
    return parse(
        """g (float[N, 48] x, bool c) => (float[N, 48] y) <float[48, 48] w, float[48] b> {
        a = Gemm(x, w, b)
        u = Unsqueeze<axes=[0]>(a)
        s = Squeeze<axes=[0]>(u)
        i = If(c) <
            then_branch = t () => (float[N, 48] p) { q = Unsqueeze<axes=[1]>(s) p = Squeeze<axes=[1]>(q) },
            else_branch = e () => (float[N, 48] r) { r = Softmax<axis=1>(s) }>
        m = MatMul(i, w)
        y = Softmax<axis=1>(m)
    }""",
        opset=11,
    )


@case
def sixteen_bits() -> onnx.ModelProto:
    return parse(
        """g (float[N, 8] x) => (float[N, 8] y) <float16[8] w, float16[8] b> {
        h = Cast<to = 10>(x)
        a = Mul(h, w)
        c = Add(a, b)
        y = Cast<to = 1>(c)
    }"""
    )


@case
def spare_channels() -> onnx.ModelProto:
    """Convolutions with channels that nobody needs and a weight of low rank, and many positions to know it by."""
    model = parse(
        """g (float[1, 8, 24, 24] x) => (float[1, 48, 24, 24] y)
        <float[32, 8, 3, 3] w1, float[48, 32, 1, 1] w2, float[48, 48, 1, 1] w3> {
        a = Conv<pads=[1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        c = Conv(b, w2)
        d = Relu(c)
        y = Conv(d, w3)
    }"""
    )
    rng = np.random.default_rng(0)
    for number, weight in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(weight).copy()
        if weight.name == "w1":
            values[16:] = 0
        elif weight.name == "w3":
            values[:, :, 0, 0] = rng.normal(size=(48, 8)) @ rng.normal(size=(8, 48)) / 20
        model.graph.initializer[number].CopyFrom(numpy_helper.from_array(values, weight.name))
    return model


# -- what lies outside the standard -----------------------------------------------------------------------------------


@case
def custom_domain() -> onnx.ModelProto:
    return parse(
        """g (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w, float[32] b, float[32, 32] v> {
        a = Gemm(x, w, b)
        h = com.microsoft.Gelu(a)
        y = MatMul(h, v)
    }""",
        domains=', "com.microsoft": 1',
    )


@case
def function() -> onnx.ModelProto:
    return parse(
        """g (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w, float[32] b> {
        a = Gemm(x, w, b)
        h = my.twice(a)
        y = MatMul(h, w)
    }""",
        domains=', "my": 1',
        functions='<domain: "my", opset_import: ["": 17]> twice (a) => (b) { c = Add(a, a) b = Relu(c) }',
    )
