from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_models import Array, constant, correlated, model
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Need, Range
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.targets.profiles import default
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.grids import Grids
from onnxsqueeze.techniques.quantization.layers import Layers

PLAIN = Grids()
SHAPE: list[Any] = [1, 32, 8, 8]
WEIGHT = constant("w", np.random.default_rng(0).normal(size=(32, 32, 3, 3)) / 17)
OPERATORS = ("Conv", "Conv+Relu", "Add", "Mul", "MaxPool", "Sigmoid", "Transpose", "Neg")


def arithmetic(proto: onnx.ModelProto, stats: Statistics, form: Grids = PLAIN) -> Arithmetic:
    return Arithmetic(Layers(View(load(proto))), stats, form, Kept())


def needs(proto: onnx.ModelProto) -> list[Need]:
    return list(Int8().needs(View(load(proto))))


def measured(proto: onnx.ModelProto, feeds: list[dict[str, Array]]) -> Statistics:
    return collect(load(proto), needs(proto), feeds)


def histogram(values: Array, elements: int = 0) -> Histogram:
    made = Histogram()
    made.update(values)
    made.elements = elements or made.elements
    return made


def key(found: Arithmetic, node: int) -> str:
    return next(key_of(n) for n in found.nodes if id(n) == node)


def node_of(found: Arithmetic, name: str) -> gs.Node:
    return next(n for n in found.view.nodes if key_of(n) == name)


def chosen(found: Arithmetic, *names: str) -> set[int]:
    return {id(node_of(found, name)) for name in names}


def works(found: Arithmetic, nodes: set[int]) -> dict[str, Quantized]:
    return {key_of(node): work for node, work in found.work(nodes)}


# ------------------------------------------------------------------------------------------------ the choice


@st.composite
def nets(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, int], dict[str, float]]:
    """A net of up to 7 operators with a Conv among them, sizes of its tensors (as if measured), and their errors."""
    kinds = [draw(st.sampled_from(OPERATORS)) for _ in range(draw(st.integers(1, 6)))]
    kinds.insert(draw(st.integers(0, len(kinds))), "Conv")
    nodes: list[onnx.NodeProto] = []
    known = ["x", "z"]
    for i, kind in enumerate(kinds):
        one, two = (draw(st.sampled_from(known[-3:])) for _ in range(2))
        y = f"t{i}"
        if kind.startswith("Conv"):
            made = f"{y}_conv" if kind == "Conv+Relu" else y
            nodes.append(helper.make_node("Conv", [one, "w"], [made], pads=[1] * 4))
            if kind == "Conv+Relu":
                nodes.append(helper.make_node("Relu", [made], [y]))
        elif kind in ("Add", "Mul"):
            nodes.append(helper.make_node(kind, [one, two], [y]))
        elif kind == "MaxPool":
            nodes.append(helper.make_node(kind, [one], [y], kernel_shape=[3, 3], pads=[1] * 4))
        elif kind == "Transpose":
            nodes.append(helper.make_node(kind, [one], [y], perm=[0, 1, 3, 2]))
        else:
            nodes.append(helper.make_node(kind, [one], [y]))
        known.append(y)
    unread = {t for n in nodes for t in n.output} - {t for n in nodes for t in n.input}
    outputs = sorted(unread | set(draw(st.lists(st.sampled_from(known[2:]), max_size=1))))
    weight = [constant("w", np.random.default_rng(0).normal(size=(32, 32, 3, 3)))]
    proto = model(nodes, weight, {"x": SHAPE, "z": SHAPE}, dict.fromkeys(outputs, SHAPE))
    names = sorted({need.tensor for need in needs(proto) if isinstance(need, Range)})
    sizes = {name: draw(st.sampled_from([1_000, 2_000, 4_000, 10_000])) for name in names}
    errors = {name: draw(st.sampled_from([0.0, 1e-4, 1e-3, 1e-2])) for name in names}
    return proto, sizes, errors


def synthetic(sizes: dict[str, int]) -> Statistics:
    values = np.random.default_rng(0).normal(size=256)
    return Statistics({Range(name): histogram(values, elements) for name, elements in sizes.items()})


def subsets(found: Arithmetic) -> list[set[int]]:
    ids = [id(node) for node in found.nodes]
    return [set(some) for count in range(len(ids) + 1) for some in combinations(ids, count)]


@settings(max_examples=40)
@given(nets())
def test_no_other_set_of_nodes_takes_less_time(case: tuple[onnx.ModelProto, dict[str, int], dict[str, float]]) -> None:
    proto, sizes, errors = case
    found = arithmetic(proto, synthetic(sizes))
    found.errors = errors

    assert found.time(found.choose(0.0)) == pytest.approx(min(found.time(some) for some in subsets(found)))


@settings(max_examples=40)
@given(nets(), st.sampled_from([1e5, 1e6, 1e7, 1e8]))
def test_no_other_set_of_nodes_is_better_when_errors_have_a_price(
    case: tuple[onnx.ModelProto, dict[str, int], dict[str, float]], price: float
) -> None:
    proto, sizes, errors = case
    found = arithmetic(proto, synthetic(sizes))
    found.errors = errors

    def loss(some: set[int]) -> float:
        return found.time(some) + price * found.total_error(some)

    assert loss(found.choose(price)) == pytest.approx(min(loss(some) for some in subsets(found)))


def test_a_dear_error_keeps_a_tensor_in_float_and_leaves_the_rest_in_integers() -> None:
    proto = chain("Sigmoid", "MaxPool", "Neg", "Sigmoid")
    found = arithmetic(proto, synthetic(dict.fromkeys(("x", "y0", "y1", "y2", "y3", "y4", "y5"), 500_000)))
    found.errors = {"y3": 1.0}
    free, dear = found.choose(0.0), found.choose(1e9)

    assert "y5" in {key(found, node) for node in dear}
    assert found.roundings(free).keys() >= {"x", "y5"}
    assert "y3" not in found.roundings(dear)


def test_a_tensor_that_must_not_be_rounded_is_left_in_float_at_every_price_but_none() -> None:
    proto = chain("AveragePool")
    found = arithmetic(proto, synthetic(dict.fromkeys(("x", "y0", "y1", "y2"), 10_000)))
    found.errors = {"y0": inf, "y1": inf}

    assert {key(found, node) for node in found.choose(0.0)} == {"y0", "y2"}
    assert {key(found, node) for node in found.choose(1e-9)} == set()


# ------------------------------------------------------------------------------------------------ parameters


def chain(*between: str, output: str = "") -> onnx.ModelProto:
    """Return Conv, the operators, Conv: ``x`` → ``y0`` → ``y1`` … → the last."""
    attrs: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [3, 3], "pads": [1] * 4},
        "AveragePool": {"kernel_shape": [3, 3], "pads": [1] * 4},
        "Transpose": {"perm": [0, 1, 3, 2]},
        "DepthToSpace": {"blocksize": 1},
        "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["y0"], pads=[1] * 4)]
    for i, op in enumerate(between):
        nodes.append(helper.make_node(op, [f"y{i}"], [f"y{i + 1}"], **attrs.get(op, {})))
    nodes.append(helper.make_node("Conv", [f"y{len(between)}", "w"], [f"y{len(between) + 1}"], pads=[1] * 4))
    weight = [WEIGHT]
    outputs: dict[str, list[str | int]] = {f"y{len(between) + 1}": SHAPE, **({output: SHAPE} if output else {})}
    return model(nodes, weight, {"x": SHAPE}, outputs)


FEEDS = correlated(4, (32, 8, 8))


def test_operators_that_only_move_values_share_the_parameters_of_their_root() -> None:
    proto = chain("MaxPool", "Transpose", "DepthToSpace", "LeakyRelu", "Transpose")
    found = arithmetic(proto, measured(proto, FEEDS))
    tensors = {t.name: t for node in found.view.nodes for t in node.outputs}
    roots = {name: str(found.layers.root(t).name) for name, t in tensors.items()}

    assert roots == {"y0": "y0", "y1": "y0", "y2": "y0", "y3": "y0", "y4": "y4", "y5": "y4", "y6": "y6"}
    assert found.affine(tensors["y3"]) == found.affine(tensors["y0"]) != found.affine(tensors["y4"])
    assert set(found.roundings({id(n) for n in found.nodes})) == {"x", "y0", "y4", "y6"}


def test_a_conv_with_clip_gives_its_narrower_parameters_to_what_moves_its_values() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Clip", ["c", "low", "high"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["p", "w"], ["y"], pads=[1] * 4),
    ]
    constants = [WEIGHT, constant("low", np.array(-1.0)), constant("high", np.array(2.0))]
    proto = model(nodes, constants, {"x": SHAPE}, {"y": SHAPE})
    found = arithmetic(proto, measured(proto, FEEDS))
    work = works(found, chosen(found, "c", "p", "y"))
    after = work["c"].output

    assert after is not None
    assert after.high < 2 < found.affine(node_of(found, "r").outputs[0]).high
    assert work["p"].inputs == (after,)
    assert work["p"].output == after == work["y"].input


@pytest.mark.parametrize(
    ("form", "scale", "zero"),
    [(Grids(), 1 / 255, 0), (Grids(signed=True), 1 / 255, 0), (Grids(symmetric=True), 1 / 127, 128)],
)
def test_a_sigmoid_makes_values_from_0_to_1_whatever_was_measured(form: Grids, scale: float, zero: int) -> None:
    proto = chain("Sigmoid")
    proto.graph.initializer[0].CopyFrom(constant("w", np.full((32, 32, 3, 3), 1e-4)))
    found = arithmetic(proto, measured(proto, FEEDS), form)
    affine = found.affine(node_of(found, "y1").outputs[0])

    assert affine.scale == pytest.approx(scale)
    assert affine.zero_point == zero
    assert affine.signed == form.signed


def gated() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("HardSigmoid", ["c"], ["h"], alpha=0.2, beta=0.5),
        helper.make_node("Mul", ["c", "h"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["y"], pads=[1] * 4),
    ]
    return model(nodes, [WEIGHT], {"x": SHAPE}, {"y": SHAPE})


def test_a_gate_needs_a_form_in_which_0_is_the_smallest_integer() -> None:
    stats = measured(gated(), FEEDS)
    plain = arithmetic(gated(), stats)
    others = [
        arithmetic(gated(), stats, form) for form in (Grids(signed=True), Grids(symmetric=True), Grids(True, True))
    ]

    assert [key_of(n) for n in plain.nodes] == ["c", "y", "h", "m"]
    assert [[key_of(n) for n in each.nodes] for each in others] == [["c", "y", "m"]] * 3
    assert works(plain, chosen(plain, "h"))["h"].form == "gate"
    assert plain.affine(node_of(plain, "h").outputs[0]).scale == pytest.approx(1 / 255)


def test_what_only_a_gate_closes_need_not_be_represented() -> None:
    proto = gated()
    wide = np.random.default_rng(0).normal(size=(32, 32, 3, 3))  # so that many values are under −2.5
    proto.graph.initializer[0].CopyFrom(constant("w", wide))
    stats = measured(proto, FEEDS)
    gate = arithmetic(proto, stats)
    plain = arithmetic(
        chain("Neg"), Statistics({Range("x"): stats.ranges[Range("x")], Range("y0"): stats.ranges[Range("c")]})
    )
    low = gate.affine(node_of(gate, "c").outputs[0]).low

    assert -8 < low < -2
    assert plain.affine(node_of(plain, "y0").outputs[0]).low < 2 * low


def test_signed_parameters_are_the_unsigned_ones_moved_by_128() -> None:
    proto = chain("Sigmoid", "MaxPool")
    stats = measured(proto, FEEDS)
    one, two = arithmetic(proto, stats), arithmetic(proto, stats, Grids(signed=True))
    pairs = [
        (a[0], two.roundings({id(n) for n in two.nodes})[name][0])
        for name, a in one.roundings({id(n) for n in one.nodes}).items()
    ]

    assert len(pairs) == 4
    for unsigned, signed in pairs:
        assert (signed.scale, signed.zero_point) == (unsigned.scale, unsigned.zero_point)
        assert signed.zero.dtype == np.int8
        assert int(signed.zero) == int(unsigned.zero) - 128


@pytest.mark.parametrize("signed", [False, True])
def test_symmetric_parameters_have_their_zero_in_the_middle_even_after_relu(signed: bool) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["y"])]
    proto = model(nodes, [WEIGHT], {"x": SHAPE}, {"y": SHAPE})
    stats = measured(proto, FEEDS)
    found = arithmetic(proto, stats, Grids(signed, symmetric=True))
    work = works(found, chosen(found, "c"))["c"]

    assert work.input is not None
    assert work.output is not None
    assert [int(a.zero) for a in (work.input, work.output)] == [0 if signed else 128] * 2
    measured_high = stats.ranges[Range("y")].high
    assert 0.6 * measured_high < work.output.high <= 1.01 * measured_high


# ------------------------------------------------------------------------------------------------ what stays out


def runs(proto: onnx.ModelProto, feeds: list[dict[str, Array]]) -> tuple[set[str], float]:
    """Return what int8 makes integer operators of, and the SQNR of the result."""
    result = squeeze(proto, "int8", feeds, validate="none")
    answers = [[Session(each).run(feed) for feed in feeds[:2]] for each in (proto, result.model)]
    done = {site.key for site in result.report.steps[-1].done if site.action == "integer"}
    return done, worst(compare(*answers))


def net(middle: list[onnx.NodeProto], channels: int) -> onnx.ModelProto:
    """Return a Conv ``x`` → ``c``, the middle ``c`` → ``m`` and a Conv ``m`` → ``y``, large enough to be worth it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1] * 4),
        *middle,
        helper.make_node("Conv", ["m", "w2"], ["y"], pads=[1] * 4),
    ]
    constants = [
        constant("w1", rng.normal(size=(64, 32, 3, 3)) / 17),
        constant("w2", rng.normal(size=(32, channels, 3, 3)) / 24),
    ]
    return model(nodes, constants, {"x": [1, 32, 16, 16]}, {"y": [1, 32, "h", "w"]})


@pytest.mark.parametrize("read", [True, False])
def test_a_split_follows_only_if_all_of_its_outputs_are_read(read: bool) -> None:
    middle = [helper.make_node("Split", ["c"], ["m1", "m2"], axis=1)]
    middle += [helper.make_node("Concat", ["m1", "m2" if read else "m1"], ["m"], axis=1)]
    done, sqnr = runs(net(middle, 64), correlated(4, (32, 16, 16)))

    assert ("m1" in done) == read
    assert sqnr > 30


@pytest.mark.parametrize("opset", [17, 19])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"count_include_pad": 1},
        {"ceil_mode": 1},
        {"ceil_mode": 1, "count_include_pad": 1},
        {"dilations": [2, 2]},
    ],
)
def test_average_pooling_works_in_every_form_even_where_it_would_be_quantized(
    attrs: dict[str, Any], opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "dilations" in attrs and opset < 19:
        pytest.skip("dilations came with opset 19")
    monkeypatch.setitem(default().times.carry, "AveragePool", (1.0, 0.1))
    pool = helper.make_node("AveragePool", ["c"], ["m"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2], **attrs)
    proto = net([pool], 64)
    proto.opset_import[0].version = opset
    done, sqnr = runs(proto, [{"x": f["x"] + np.float32(2)} for f in correlated(4, (32, 16, 16))])

    assert ("m" in done) == (attrs not in ({"ceil_mode": 1, "count_include_pad": 1}, {"dilations": [2, 2]}))
    assert sqnr > 28


@pytest.mark.parametrize(("include", "rectified"), [(0, False), (1, False), (1, True)])
def test_average_pooling_between_integer_layers_is_not_fused_and_shared_by_all_readers(
    include: int, rectified: bool, tmp_path: Path
) -> None:
    """Fused, it would take several times as long as in float."""
    pool = helper.make_node("AveragePool", ["c"], ["m"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=include)
    proto = net([pool], 64)
    if rectified:
        pool.output[0] = "p"
        proto = net([pool, helper.make_node("Relu", ["p"], ["m"])], 64)
    proto.graph.node.append(helper.make_node("Conv", ["m", "w2"], ["y2"], pads=[1] * 4))
    proto.graph.output.append(helper.make_tensor_value_info("y2", 1, None))
    result = squeeze(proto, "int8", correlated(4, (32, 16, 16)), validate="none")
    Session(result.graph, optimized=tmp_path / "optimized.onnx")
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert found["QLinearConv"] == 3
    assert (found["AveragePool"], found["QLinearAveragePool"]) == (1, 0)
    assert found["Sum"] == 1
    assert found["QuantizeLinear"] == 2  # of x and of what the pooling makes


def test_an_operator_whose_result_8_bits_cannot_hold_stays_in_float() -> None:
    shape: list[Any] = [1, 128, 32, 32]
    weights = [constant("w", np.eye(128)[:, :, None, None])]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "a"], ["y"])]
    proto = model(nodes, weights, {"x": shape}, {"y": shape})
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x[0, 0, 0, 0] = 20  # its square makes the step of y larger than most of y
    found = arithmetic(proto, measured(proto, [{"x": x}] * 3))

    assert [key_of(n) for n in found.nodes] == ["a"]
    assert runs(proto, [{"x": x}] * 3)[0] == set()
