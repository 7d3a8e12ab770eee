from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from channel_models import STEPS, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import MODELS, Feed, feeds, parse

from onnxsqueeze import squeeze
from onnxsqueeze.errors import PassError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.pruning.coupling import Coupling, couple
from onnxsqueeze.techniques.pruning.proof import disagreement, masked
from onnxsqueeze.techniques.pruning.units import Consequence, Group

SHIPPED = Path(__file__).parents[3] / "models"
TOLERANCE = 1e-4
IMAGE = np.random.default_rng(5).standard_normal((2, 3, 6, 6)).astype(np.float32)

STATIC = ("flatten", "shuffle", "mixing_over_positions")
BLOCKING = ("layer_normalization", "softmax")

Removals = dict[Group, list[int]]


def coupled(model: onnx.ModelProto) -> tuple[Graph, Coupling]:
    graph = load(model)
    return graph, couple(View(graph))


def groups(text: str, **kwargs: object) -> tuple[Group, ...]:
    return coupled(parse(text, **kwargs))[1].groups  # type: ignore[arg-type]


def members(group: Group, role: str) -> dict[str, int]:
    """The constants of a role with their axes."""
    return {slot.constant: slot.axis for slot in group.slots if slot.role == role}


def quarter(coupling: Coupling, seed: int = 0) -> Removals:
    """Random units, a quarter of each group that may be pruned."""
    rng = np.random.default_rng(seed)
    return {
        group: sorted(rng.choice(group.size, -(-group.size // 4), replace=False).tolist())
        for group in coupling.groups
        if not group.blocked
    }


def without(graph: Graph, coupling: Coupling, removals: Removals) -> Graph:
    smaller = edit.duplicate(graph)
    for group, units in removals.items():
        coupling.remove(smaller, group, units)
    edit.tidy(smaller)
    return smaller


# -- groups of known graphs --------------------------------------------------------------------------------------------


def test_a_chain_of_convolutions_has_a_group_for_each() -> None:
    first, last = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w1, float[8] b1, float[8] s, float[8] o, float[8] m, float[8] var, float[4, 8, 1, 1] w2> {
            a = Conv(x, w1, b1)
            n = BatchNormalization(a, s, o, m, var)
            r = Relu(n)
            y = Conv(r, w2)
        }""")

    assert (first.name, first.kind, first.size, first.blocked) == ("a", "channels", 8, "")
    assert members(first, "producer") == {"w1": 0}
    assert members(first, "carrier") == dict.fromkeys(["b1", "s", "o", "m", "var"], 0)
    assert members(first, "consumer") == {"w2": 1}
    assert {name: axis for name, (axis, _) in first.tensors.items()} == {"a": 1, "n": 1, "r": 1}
    assert all(np.array_equal(slot.indices, np.arange(8)[:, None]) for slot in first.slots)
    assert last.blocked == "it reaches the output 'y'"


def test_layers_joined_by_an_add_are_one_residual_group() -> None:
    stream, inner, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w0, float[5, 8, 1, 1] w1, float[8, 5, 1, 1] w2, float[4, 8, 1, 1] w3> {
            a = Conv(x, w0)
            b = Conv(a, w1)
            r = Relu(b)
            c = Conv(r, w2)
            s = Add(a, c)
            y = Conv(s, w3)
        }""")

    assert (stream.kind, stream.size, inner.kind, inner.size) == ("residual", 8, "channels", 5)
    assert members(stream, "producer") == {"w0": 0, "w2": 0}
    assert members(stream, "consumer") == {"w1": 1, "w3": 1}


def test_a_gate_computed_from_the_channels_that_it_scales_is_no_residual() -> None:
    gated, hidden, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w0, float[2, 8, 1, 1] w1, float[8, 2, 1, 1] w2, float[8] b2, float[4, 8, 1, 1] w3> {
            a = Conv(x, w0)
            p = GlobalAveragePool(a)
            h = Conv(p, w1)
            o = Conv(h, w2, b2)
            g = HardSigmoid(o)
            m = Mul(a, g)
            s = Add(a, m)
            y = Conv(s, w3)
        }""")

    assert (gated.kind, gated.size, hidden.size) == ("channels", 8, 2)
    assert members(gated, "producer") == {"w0": 0, "w2": 0}
    assert members(gated, "consumer") == {"w1": 1, "w3": 1}
    assert members(gated, "carrier") == {"b2": 0}


def test_split_and_concat_make_a_group_of_each_part() -> None:
    cut, passed, inner, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w0, float[5, 1, 1, 5] unused, float[5, 5, 1, 1] w1, float[4, 13, 1, 1] w2> {
            a = Conv(x, w0)
            sizes = Constant<value_ints=[3, 5]>()
            p, q = Split<axis=1>(a, sizes)
            b = Conv(q, w1)
            c = Concat<axis=1>(p, q, b)
            y = Conv(c, w2)
        }""")

    assert [g.name for g in (cut, passed, inner)] == ["a[0:3]", "a[3:8]", "b"]
    assert [s.indices.ravel().tolist() for s in cut.slots] == [[0, 1, 2], [0, 1, 2]]
    assert members(passed, "consumer") == {"w1": 1, "w2": 1}
    assert {s.constant: s.indices.ravel().tolist() for s in passed.slots if s.role == "consumer"} == {
        "w1": [0, 1, 2, 3, 4],
        "w2": [3, 4, 5, 6, 7],
    }
    assert {s.constant: s.indices.ravel().tolist() for s in inner.slots} == {
        "w1": [0, 1, 2, 3, 4],
        "w2": [8, 9, 10, 11, 12],
    }


def test_two_convolutions_joined_by_a_concat_share_a_consumer() -> None:
    first, second, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[3, 3, 1, 1] w0, float[4, 3, 1, 1] w1, float[4, 7, 1, 1] w2> {
            a = Conv(x, w0)
            b = Conv(x, w1)
            c = Concat<axis=-3>(a, b)
            y = Conv(c, w2)
        }""")

    assert {s.constant: s.indices.ravel().tolist() for s in first.slots} == {"w0": [0, 1, 2], "w2": [0, 1, 2]}
    assert {s.constant: s.indices.ravel().tolist() for s in second.slots} == {"w1": [0, 1, 2, 3], "w2": [3, 4, 5, 6]}


def test_channels_of_a_depthwise_convolution_follow_their_input_with_all_their_copies() -> None:
    group, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[4, 3, 1, 1] w0, float[8, 1, 3, 3] d, float[8] b, float[4, 8, 1, 1] w1> {
            a = Conv(x, w0)
            c = Conv<group=4, pads=[1, 1, 1, 1]>(a, d, b)
            y = Conv(c, w1)
        }""")

    assert group.size == 4
    assert members(group, "carrier") == {"d": 0, "b": 0}
    assert {s.constant: s.indices[1].tolist() for s in group.slots} == {
        "w0": [1],
        "d": [2, 3],
        "b": [2, 3],
        "w1": [2, 3],
    }


def test_channels_of_a_grouped_convolution_leave_by_whole_groups() -> None:
    group, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[6, 3, 1, 1] w0, float[9, 2, 1, 1] v, float[4, 9, 1, 1] w1> {
            a = Conv(x, w0)
            c = Conv<group=3>(a, v)
            y = Conv(c, w1)
        }""")

    assert group.size == 3
    assert {s.constant: s.indices[1].tolist() for s in group.slots} == {"w0": [2, 3], "v": [3, 4, 5], "w1": [3, 4, 5]}


def test_a_flattened_channel_takes_its_block_of_columns() -> None:
    group, _ = groups("""g (float[N, 3, 4, 4] x) => (float[N, 10] y)
        <float[5, 3, 1, 1] w0, float[10, 80] w1, float[10] b> {
            a = Conv(x, w0)
            f = Flatten(a)
            y = Gemm<transB=1>(f, w1, b)
        }""")
    (consumer,) = [s for s in group.slots if s.role == "consumer"]

    assert (consumer.constant, consumer.axis) == ("w1", 1)
    assert np.array_equal(consumer.indices, np.arange(80).reshape(5, 16))


def test_the_hidden_units_of_two_products_are_neurons() -> None:
    group, _ = groups("""g (float[N, 6, 8] x) => (float[N, 6, 8] y)
        <float[8, 20] w0, float[20] b, float[20, 8] w1> {
            a = MatMul(x, w0)
            c = Add(a, b)
            r = Erf(c)
            y = MatMul(r, w1)
        }""")

    assert (group.kind, group.size) == ("neurons", 20)
    assert [(s.constant, s.axis, s.role) for s in group.slots] == [
        ("w0", 1, "producer"),
        ("b", 0, "carrier"),
        ("w1", 0, "consumer"),
    ]


def test_an_attention_head_takes_its_rows_of_queries_keys_and_values_and_its_columns_behind() -> None:
    _, coupling = coupled(MODELS["attention"]())
    heads, behind = coupling.groups

    assert (heads.kind, heads.size, heads.blocked) == ("heads", 4, "")
    assert members(heads, "producer") == {"wq": 1, "wk": 1, "wv": 1}
    assert members(heads, "consumer") == {"wo": 0}
    assert all(np.array_equal(slot.indices, np.arange(32).reshape(4, 8)) for slot in heads.slots)
    assert heads.tensors["p"][0] == 1
    assert behind.blocked == "it reaches the output 'y'" or "LayerNormalization" in behind.blocked


def test_heads_of_a_fused_layer_are_blocks_of_queries_of_keys_and_of_values() -> None:
    heads, _ = groups("""g (float[N, 6, 8] x) => (float[N, 6, 8] y) <float[8, 24] w, float[24] b, float[8, 8] v> {
        a = MatMul(x, w)
        c = Add(a, b)
        shape = Constant<value_ints=[0, 6, 3, 2, 4]>()
        r = Reshape(c, shape)
        t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
        zero = Constant<value_int=0>() one = Constant<value_int=1>() two = Constant<value_int=2>()
        q = Gather(t, zero) k = Gather(t, one) u = Gather(t, two)
        l = Transpose<perm=[0, 1, 3, 2]>(k)
        s = MatMul(q, l)
        p = Softmax(s)
        m = MatMul(p, u)
        n = Transpose<perm=[0, 2, 1, 3]>(m)
        flat = Constant<value_ints=[0, 6, 8]>()
        f = Reshape(n, flat)
        y = MatMul(f, v)
    }""")

    assert (heads.kind, heads.size, heads.blocked) == ("heads", 2, "")
    assert [(s.constant, s.indices[1].tolist()) for s in heads.slots] == [
        ("w", [*range(4, 8), *range(12, 16), *range(20, 24)]),
        ("b", [*range(4, 8), *range(12, 16), *range(20, 24)]),
        ("v", [*range(4, 8)]),
    ]


def test_shuffled_channels_are_tied_as_finely_as_the_reshapes_allow() -> None:
    group, _ = groups("""g (float[N, 3, h, w] x) => (float[N, 4, h, w] y)
        <float[6, 3, 1, 1] w0, float[4, 6, 1, 1] w1> {
            a = Conv(x, w0)
            shape = Shape(a)
            from = Constant<value_ints=[2]>() to = Constant<value_ints=[4]>()
            two = Constant<value_ints=[2]>() three = Constant<value_ints=[3]>() rest = Constant<value_ints=[-1]>()
            batch = Shape<end=1>(x)
            size = Slice(shape, from, to)
            s = Concat<axis=0>(batch, two, three, size)
            b = Reshape(a, s)
            c = Transpose<perm=[0, 2, 1, 3, 4]>(b)
            t = Concat<axis=0>(batch, rest, size)
            d = Reshape(c, t)
            y = Conv(d, w1)
        }""")

    assert (group.blocked, group.size) == ("", 3)
    assert {s.constant: s.indices.tolist() for s in group.slots} == {
        "w0": [[0, 3], [1, 4], [2, 5]],
        "w1": [[0, 1], [2, 3], [4, 5]],
    }


def test_channels_that_are_normalised_in_groups_of_unknown_area_leave_by_whole_groups() -> None:
    graph, coupling = coupled(
        parse("""g (float[N, 3, h, w] x) => (float[N, 4, h, w] y)
        <float[6, 3, 1, 1] w0, float[3] one, float[3] zero, float[6, 1, 1] k, float[4, 6, 1, 1] w1> {
            a = Conv(x, w0)
            s = Constant<value_ints=[0, 3, -1]>()
            b = Reshape(a, s)
            c = InstanceNormalization(b, one, zero)
            t = Shape(a)
            d = Reshape(c, t)
            e = Mul(d, k)
            y = Conv(e, w1)
        }""")
    )
    group, _ = coupling.groups

    assert {s.constant: s.indices[1].tolist() for s in group.slots} == {
        "w0": [2, 3],
        "one": [1],
        "zero": [1],
        "k": [2, 3],
        "w1": [2, 3],
    }
    assert disagreement(graph, coupling.remove, {group: [1]}, [{"x": IMAGE}]) < TOLERANCE


def test_layers_that_share_a_weight_are_one_group() -> None:
    stream, last = groups("""g (float[N, 6, 8] x) => (float[N, 6, 4] y)
        <float[8, 8] w, float[8, 4] v> {
            a = MatMul(x, w)
            r = Relu(a)
            b = MatMul(r, w)
            y = MatMul(b, v)
        }""")

    assert stream.blocked == "it comes from the input 'x'"
    assert last.blocked == "it reaches the output 'y'"


def test_weights_are_found_behind_cast_transpose_and_identity() -> None:
    group, _ = groups("""g (float[N, 8] x) => (float[N, 4] y) <float16[20, 8] h, float[4, 20] t> {
            w = Cast<to=1>(h)
            u = Transpose<perm=[1, 0]>(w)
            a = MatMul(x, u)
            v = Identity(t)
            y = Gemm<transB=1>(a, v)
        }""")

    assert [(s.constant, s.axis, s.role, s.nodes) for s in group.slots] == [
        ("h", 0, "producer", ("a",)),
        ("t", 1, "consumer", ("y",)),
    ]


# -- what must stay, and why -------------------------------------------------------------------------------------------

BEHIND = {
    "'Softmax' runs over its axis": "s = Softmax<axis=1>(a) y = Conv(s, w1)",
    "'ReduceMean' runs over its axis": "m = ReduceMean<axes=[1]>(a) s = Sub(a, m) y = Conv(s, w1)",
    "'ArgMax' runs over its axis": "i = ArgMax<axis=1>(a) f = Cast<to=1>(i) s = Add(a, f) y = Conv(s, w1)",
    "the operator 'LRN' (s) is not known to keep channels apart": "s = LRN<size=3>(a) y = Conv(s, w1)",
    "the operator 'my.Foo' (s) is not known to keep channels apart": "s = my.Foo(a) y = Conv(s, w1)",
    "the operator 'DepthToSpace' (s) is not known to keep channels apart": (
        "s = DepthToSpace<blocksize=2>(a) y = Conv(s, w2)"
    ),
    "it is a spatial axis of 'Conv'": "s = Transpose<perm=[0, 2, 1, 3]>(a) y = Conv(s, w1)",
    "'Pad' adds to its axis": "p = Constant<value_ints=[0, 1, 0, 0, 0, 0, 0, 0]>() s = Pad(a, p) y = Conv(s, w9)",
    "'MatMul' sums over it, of two tensors that are both computed": (
        "t = Transpose<perm=[0, 3, 2, 1]>(a) u = Transpose<perm=[0, 3, 1, 2]>(a) s = MatMul(t, u) y = Conv(s, w1)"
    ),
    "its size goes into 'Sqrt' (q)": (
        "z = Shape<start=1, end=2>(a) f = Cast<to=1>(z) q = Sqrt(f) s = Div(a, q) y = Conv(s, w1)"
    ),
    "'Slice' cuts its axis with numbers that are computed or with a step": (
        "f = Constant<value_ints=[0]>() l = Constant<value_ints=[8]>() x1 = Constant<value_ints=[1]>() "
        "x2 = Constant<value_ints=[2]>() s = Slice(a, f, l, x1, x2) y = Conv(s, w4)"
    ),
    "'Resize' scales its axis": (
        "k = Constant<value_floats=[1.0, 0.5, 1.0, 1.0]>() s = Resize(a, , k) y = Conv(s, w4)"
    ),
    "its size goes into a computation that cannot be followed": (
        "z = Shape(a) o = ConstantOfShape(z) r = ReduceSum(o) s = Add(a, r) y = Conv(s, w1)"
    ),
    "the weight of 'Conv' is computed at run time": "k = Mul(w1, n) y = Conv(a, k)",
    "the body of 'If' reads it": (
        "i = If(c) <then_branch = t () => (float[N, 8, 8, 8] p) { p = Relu(a) }, "
        "else_branch = e () => (float[N, 8, 8, 8] q) { q = Neg(a) }> y = Conv(i, w1)"
    ),
}


@pytest.mark.parametrize("reason", list(BEHIND))
def test_channels_that_cannot_be_told_apart_behind_their_layer_are_blocked_with_the_reason(reason: str) -> None:
    found = groups(
        f"""g (float[N, 3, 8, 8] x, float n, bool c) => (float[N, d, e, f] y)
        <float[8, 3, 1, 1] w0, float[8, 8, 1, 1] w1, float[8, 2, 1, 1] w2, float[8, 4, 1, 1] w4,
         float[8, 9, 1, 1] w9> {{
            a = Conv(x, w0)
            {BEHIND[reason]}
        }}""",
        domains=', "my": 1',
    )

    assert found[0].name == "a"
    assert found[0].blocked == reason


def test_an_output_on_the_way_a_weight_that_is_an_input_and_a_layer_in_a_body_are_blocked() -> None:
    seen, _ = groups("""g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] a, float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w0, float[4, 8, 1, 1] w1> { a = Conv(x, w0) r = Relu(a) y = Conv(r, w1) }""")
    model = parse(
        """g (float[N, 8] x) => (float[N, 4] y) <float[8, 6] w, float[6, 4] v> { a = MatMul(x, w) y = MatMul(a, v) }"""
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [8, 6]))
    given_, _ = coupled(model)[1].groups

    assert seen.blocked == "it reaches the output 'a'"
    assert given_.blocked == "the caller may override 'w'"
    assert "it lies in the body of 'If'" in {g.blocked for g in coupled(MODELS["branches"]())[1].groups}


def test_only_what_a_gather_takes_out_must_stay() -> None:
    stays, free, _ = groups("""g (float[N, 3] x) => (float[N, 4] y) <float[3, 8] w0, float[8, 4] w1> {
        a = MatMul(x, w0)
        i = Constant<value_int=2>()
        p = Gather<axis=1>(a, i)
        k = Constant<value_ints=[1]>()
        u = Unsqueeze(p, k)
        s = Sub(a, u)
        y = MatMul(s, w1)
    }""")

    assert {g.blocked: g.size for g in (stays, free)} == {"'Gather' takes it out of its axis": 1, "": 7}


def test_what_is_cut_out_and_picked_is_tied_to_where_it_was() -> None:
    found = groups("""g (float[N, 3] x) => (float[N, 4] y) <float[3, 8] w0, float[3, 4] w1, float[3, 4] w2> {
        a = MatMul(x, w0)
        f = Constant<value_ints=[2]>() l = Constant<value_ints=[-3]>() one = Constant<value_ints=[1]>()
        s = Slice(a, f, l, one)
        i = Constant<value_ints=[5, 0, 7]>()
        p = Gather<axis=1>(a, i)
        u = MatMul(s, w1)
        v = MatMul(p, w2)
        y = Add(u, v)
    }""")
    rows = {
        tuple((s.constant, int(index)) for s in g.slots for index in s.indices[unit])
        for g in found
        for unit in range(g.size)
        if not g.blocked
    }

    assert rows == {
        *((("w0", i), ("w1", i - 2)) for i in (2, 3, 4)),
        *((("w0", i), ("w2", n)) for n, i in enumerate((5, 0, 7))),
        (("w0", 1),),
        (("w0", 6),),
    }


# -- taking channels out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "dwcnn"])
def test_a_quarter_of_all_channels_of_a_shipped_model_leaves_as_if_nothing_read_them(name: str) -> None:
    graph = squeeze(str(SHIPPED / f"{name}.onnx"), "clean,canonical", validate="none").graph
    coupling = couple(View(graph))
    with np.load(SHIPPED / f"{name}.calib.npz", allow_pickle=False) as arrays:
        feed = {key: arrays[key][:4] for key in arrays}

    assert [group.blocked for group in coupling.groups if group.blocked] == ["it reaches the output 'logits'"]
    assert disagreement(graph, coupling.remove, quarter(coupling), [feed]) < TOLERANCE


@pytest.mark.parametrize("name", list(MODELS))
def test_what_may_leave_a_small_model_leaves_as_if_nothing_read_it(name: str) -> None:
    model = MODELS[name]()
    graph, coupling = coupled(model)

    assert disagreement(graph, coupling.remove, quarter(coupling), feeds(model, 2)) < TOLERANCE


@pytest.mark.parametrize(
    ("step", "dynamic"),
    [
        (step, dynamic)
        for step, dynamic in itertools.product(STEPS, (False, True))
        if not (dynamic and step in STATIC) and step not in BLOCKING
    ],
)
def test_channels_leave_through_every_operator(step: str, dynamic: bool) -> None:
    graph, coupling = coupled(build([step], 3, dynamic))
    made = {tensor.name for node in graph.nodes if node.name.startswith(f"{step}/") for tensor in node.outputs}
    free = {name for group in coupling.groups if not group.blocked for name in group.tensors}

    assert made & free
    assert disagreement(graph, coupling.remove, quarter(coupling), [{"x": IMAGE}]) < TOLERANCE


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=9),
    seed=st.integers(0, 10**6),
    dynamic=st.booleans(),
    data=st.data(),
)
def test_any_units_leave_any_graph_as_if_nothing_read_them(
    steps: list[str], seed: int, dynamic: bool, data: st.DataObject
) -> None:
    graph, coupling = coupled(build(steps, seed, dynamic))
    removals = {
        group: sorted(data.draw(st.sets(st.integers(0, group.size - 1), max_size=group.size - 1)))
        for group in coupling.groups
        if not group.blocked
    }
    smaller = without(graph, coupling, removals)

    onnx.checker.check_model(encode(smaller), full_check=True)
    assert disagreement(graph, coupling.remove, removals, [{"x": IMAGE}]) < TOLERANCE


def test_a_masked_graph_has_zero_columns_for_what_is_masked_and_the_original_stays() -> None:
    graph, coupling = coupled(MODELS["conv_bn_relu"]())
    group = coupling.groups[0]
    before = encode(graph)
    weight = View(masked(graph, {group: [1, 3]})).graph.tensors()["w2"].values

    assert np.flatnonzero(~weight.any((0, 2, 3))).tolist() == [1, 3]
    assert encode(graph) == before


def test_groups_leave_one_after_the_other_in_any_order_and_in_several_steps() -> None:
    graph, coupling = coupled(build(["split", "convolution", "concat", "attention", "gate", "concat"], 7, True))
    removals = quarter(coupling)
    once = encode(without(graph, coupling, removals))
    backwards = encode(without(graph, coupling, dict(reversed(removals.items()))))
    smaller = edit.duplicate(graph)
    for group, units in removals.items():
        for unit in units:
            coupling.remove(smaller, group, [unit])
    edit.tidy(smaller)

    assert backwards == once
    assert encode(smaller) == once


def test_a_shape_that_several_layers_read_is_changed_for_the_one_that_lost_channels() -> None:
    graph, coupling = coupled(
        parse("""g (float[N, 6, 3] x) => (float[N, 6, 4] y)
        <float[3, 8] w0, float[3, 8] w1, float[8, 4] v0, float[8, 4] v1, float[4, 4] m> {
            batch = Shape<end=2>(x)
            sizes = Constant<value_ints=[4, 2]>() flat = Constant<value_ints=[0, 0, 8]>()
            shape = Concat<axis=0>(batch, sizes)
            a = MatMul(x, w0) b = Reshape(a, shape) c = Relu(b) d = Reshape(c, flat) e = MatMul(d, v0)
            f = MatMul(x, w1) g = Reshape(f, shape) h = Abs(g) i = Reshape(h, flat) j = MatMul(i, v1)
            y = Add(e, j)
        }""")
    )
    first, second = (group for group in coupling.groups if not group.blocked)
    removals = {first: [0], second: [1, 3]}
    feed: Feed = {"x": np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)}

    assert first.size == second.size == 4
    assert disagreement(graph, coupling.remove, removals, [feed]) < TOLERANCE


def test_what_is_left_is_told_in_original_indices() -> None:
    graph, coupling = coupled(MODELS["conv_bn_relu"]())
    first, second = coupling.groups[:2]
    coupling.remove(graph, first, [0, 5])
    coupling.remove(graph, second, [2])
    kept = coupling.kept(graph)

    assert coupling.survivors(graph, "w2", 1).tolist() == [i for i in range(24) if i not in (0, 5)]
    assert coupling.survivors(graph, "w2", 0).tolist() == [i for i in range(32) if i != 2]
    assert coupling.survivors(graph, "w1", 1).tolist() == [0, 1, 2]
    assert kept["r1"][0] == 1
    assert kept["r1"][1].tolist() == coupling.survivors(graph, "w2", 1).tolist()
    assert "w2" not in kept
    assert coupling.kept(edit.duplicate(graph)) == {}


def test_weights_and_biases_that_were_replaced_or_added_meanwhile_follow() -> None:
    graph, coupling = coupled(
        parse("""g (float[N, 6, 8] x) => (float[N, 6, 4] y)
        <float[8, 20] w0, float[20, 12] w1, float[12, 4] w2> {
            a = MatMul(x, w0) b = MatMul(a, w1) c = Relu(b) y = MatMul(c, w2)
        }""")
    )
    first, second, _ = coupling.groups
    coupling.remove(graph, first, [3])
    node, scope = edit.find(graph, "b")
    node.inputs[1] = edit.constant(graph, "w1_repaired", node.inputs[1].values * 2)
    output, raw = node.outputs[0], edit.variable(graph, "b_raw")
    node.outputs[0] = raw
    edit.insert(
        graph, scope, "Add", [raw, edit.constant(graph, "shift", np.ones(12, np.float32))], [output], after=node
    )
    coupling.remove(graph, second, [0, 1])
    coupling.remove(graph, first, [4])
    edit.tidy(graph)
    tensors = graph.tensors()

    assert tensors["w1_repaired"].shape == (18, 10)
    assert tensors["shift"].shape == (10,)
    assert Session(graph).run({"x": np.ones((1, 6, 8), np.float32)})


def test_the_last_unit_a_blocked_group_and_units_that_are_not_there_are_refused() -> None:
    graph, coupling = coupled(MODELS["mlp"]())
    before = encode(graph)

    with pytest.raises(PassError, match="must keep at least one of its 64 units"):
        coupling.remove(graph, coupling.groups[0], range(64))
    with pytest.raises(PassError, match="'Softmax' runs over its axis"):
        coupling.remove(graph, coupling.groups[-1], [0])
    with pytest.raises(PassError, match="has 64 units"):
        coupling.remove(graph, coupling.groups[0], [64])
    assert encode(graph) == before


# -- mistakes ----------------------------------------------------------------------------------------------------------


def shifted(group: Group, name: str) -> Group:
    """The group with its units one index further along a constant."""
    return replace(
        group,
        slots=tuple(replace(s, indices=np.roll(s.indices, 1, 0)) if s.constant == name else s for s in group.slots),
    )


def other_blocks(group: Group, name: str) -> Group:
    """The group with the inner axis of a flattened image taken for the outer one."""
    return replace(
        group,
        slots=tuple(
            replace(s, indices=s.indices.reshape(-1, len(s.indices)).T) if s.constant == name else s
            for s in group.slots
        ),
    )


def forgotten(group: Group, name: str) -> Group:
    return replace(group, slots=tuple(s for s in group.slots if s.constant != name))


FLATTENED = """g (float[N, 3, 6, 6] x) => (float[N, 10] y)
    <float[4, 3, 1, 1] w0, float[1, 4, 1, 1] k, float[5, 3, 1, 1] w1, float[10, 324] w2> {
        d = Conv(x, w0)
        a = Add(d, k)
        b = Conv(x, w1)
        c = Concat<axis=1>(a, b)
        t = Constant<value_ints=[-1, 324]>()
        f = Reshape(c, t)
        y = Gemm<transB=1>(f, w2)
    }"""


@pytest.mark.parametrize(
    ("mistake", "constant"),
    [(shifted, "w2"), (shifted, "k"), (other_blocks, "w2"), (forgotten, "k"), (forgotten, "w2"), (forgotten, "w0")],
)
def test_a_wrong_index_map_and_a_forgotten_member_are_noticed(
    mistake: Callable[[Group, str], Group], constant: str
) -> None:
    graph, coupling = coupled(parse(FLATTENED))
    right = coupling.groups[0]
    wrong = mistake(right, constant)

    assert disagreement(graph, coupling.remove, {right: [1]}, [{"x": IMAGE}]) < TOLERANCE
    assert disagreement(graph, coupling.remove, {wrong: [1]}, [{"x": IMAGE}]) > 0.01


@pytest.mark.parametrize("kind", ["number", "group", "sizes", "indices"])
def test_a_forgotten_size_is_noticed(kind: str) -> None:
    steps: dict[str, Sequence[str]] = {
        "number": ["flatten", "to_sequence", "attention", "cut"],
        "group": ["depthwise", "convolution"],
        "sizes": ["split"],
        "indices": ["gather"],
    }
    graph, coupling = coupled(build(steps[kind], 1, dynamic=False))
    left: tuple[Consequence, ...] = tuple(c for c in coupling.consequences if c.kind != kind)
    removals = quarter(coupling)

    assert len(left) < len(coupling.consequences)
    assert disagreement(graph, coupling.remove, removals, [{"x": IMAGE}]) < TOLERANCE
    assert disagreement(graph, replace(coupling, consequences=left).remove, removals, [{"x": IMAGE}]) > 0.01
