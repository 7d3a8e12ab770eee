from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log10

import numpy as np
import onnx
import pytest
from linear_models import Array, constant, correlated, model
from numpy.typing import NDArray
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.quantization.precision import COSTLY
from onnxsqueeze.techniques.quantization.search import INACCURATE, NOT_FASTER, Search, Settings

Feeds = list[dict[str, Array]]
CHANNELS = 48


class Planned:
    """The plan of int8 for a model, as it is chosen where a clock says ``ratio`` of integer arithmetic, and 1 later."""

    def __init__(self, proto: onnx.ModelProto, feeds: Feeds, pass_: Int8 | None = None, ratio: float = 0.5) -> None:
        self.pass_ = pass_ or Int8()
        graph = load(proto)
        self.bench = Bench(graph, feeds, 0, lambda *step: None, known=[ratio, 1.0, 1.0])
        self.bench.stats = collect(graph, self.pass_.needs(View(graph)), feeds)
        first = list(self.pass_.plan(View(graph), self.bench.stats))
        settings = Settings(self.pass_.form, self.pass_.max_drop, self.pass_.wants)
        self.search = Search(settings, first, self.bench)
        self.plan = self.search.best()

    @property
    def sites(self) -> dict[str, Site]:
        return {entry.key: entry for entry in self.plan if isinstance(entry, Site)}

    @property
    def skips(self) -> dict[str, str]:
        return {entry.key: entry.reason for entry in self.plan if isinstance(entry, Skip)}

    @property
    def actions(self) -> Counter[str]:
        return Counter(site.action for site in self.sites.values())

    @property
    def sqnr(self) -> float:
        return self.bench.sqnr(self.bench.variant(self.pass_.apply, self.sites.values()))


def convs(count: int, gain: dict[int, NDArray[np.float64]] | None = None) -> onnx.ModelProto:
    """Return a chain of Convs ``x`` → ``c0`` → ``c1`` …; a gain multiplies channels of c_i, which c_{i+1} undoes."""
    rng = np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(count):
        weight = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)) / np.sqrt(9 * CHANNELS)
        weight *= (gain or {}).get(i, np.ones(CHANNELS))[:, None, None, None]
        weight /= (gain or {}).get(i - 1, np.ones(CHANNELS))[None, :, None, None]
        constants.append(constant(f"w{i}", weight))
        nodes.append(helper.make_node("Conv", [f"c{i - 1}" if i else "x", f"w{i}"], [f"c{i}"], pads=[1] * 4))
    nodes[-1].output[0] = "y"
    return model(nodes, constants, {"x": [1, CHANNELS, 12, 12]}, {"y": [1, CHANNELS, 12, 12]})


def feeds(count: int = 6) -> Feeds:
    return correlated(count, (CHANNELS, 12, 12))


def residual() -> onnx.ModelProto:
    """Conv, Sigmoid, Conv and an Add: operators with a weight and without."""
    proto = convs(2)
    proto.graph.node.insert(1, helper.make_node("Sigmoid", ["c0"], ["s"]))
    proto.graph.node[2].input[0] = "s"
    proto.graph.node[2].output[0] = "c1"
    proto.graph.node.append(helper.make_node("Add", ["c0", "c1"], ["y"]))
    return proto


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("drop", [0.3, 0.03, 0.012, 0.004])
def test_max_drop_is_kept_on_calibration_feeds(drop: float) -> None:
    found = Planned(convs(4), feeds(), Int8(max_drop=drop))

    assert found.sqnr >= -20 * log10(drop)


@pytest.mark.parametrize("drop", [0.01, 1e-3, 1e-5])
def test_max_drop_bounds_stored_weights_too(drop: float) -> None:
    gain = {1: np.where(np.arange(CHANNELS) < 2, 24.0, 1.0)}
    found = Planned(convs(5, gain), feeds(), Int8(max_drop=drop))

    assert found.sqnr >= -20 * log10(drop)
    if drop == 1e-3:
        assert found.actions["stored in 16 bits"] > 0


def test_a_smaller_max_drop_leaves_fewer_layers_in_integers() -> None:
    gain = {i: np.where(np.arange(CHANNELS) < 2, 8.0, 1.0) for i in range(4)}
    counts = [Planned(convs(5, gain), feeds(), Int8(max_drop=drop)).actions["static"] for drop in (0.3, 0.001)]

    assert counts[0] > counts[1]


def test_a_tensor_that_harms_returns_to_float_and_the_others_stay_in_integers() -> None:
    gain = {2: np.where(np.arange(CHANNELS) < 1, 30.0, 1.0)}
    found = Planned(convs(7, gain), feeds(), Int8(max_drop=0.1))
    first = {entry.key for entry in found.search.first if isinstance(entry, Site) and entry.action == "static"}
    static = {key for key, site in found.sites.items() if site.action == "static"}

    assert first == {"c0", "c1", "c2", "c3", "c4", "c5", "y"}
    assert static == first - {"c2", "c3"}  # the one that makes c2 and the one that reads it
    assert max(found.search.arithmetic.errors.items(), key=lambda each: each[1])[0] == "c2"
    assert found.sqnr > 26


# ------------------------------------------------------------------------------------------------ reasons


def test_where_int8_arithmetic_costs_too_much_weights_are_stored_for_that_reason() -> None:
    gain = {0: np.where(np.arange(CHANNELS) < 1, 20.0, 1.0)}
    found = Planned(convs(2, gain), feeds())

    assert set(found.actions) <= {"stored", "stored in 16 bits"}
    assert {site.detail["float"] for site in found.sites.values()} == {INACCURATE}


@pytest.mark.parametrize(("ratio", "faster"), [(0.9, True), (0.99, False), (1.5, False)])
def test_what_is_not_faster_by_the_clock_is_stored_for_that_reason(ratio: float, faster: bool) -> None:
    found = Planned(residual(), feeds(), ratio=ratio)

    assert found.bench.measured == ([ratio] if faster else [ratio, 1.0])
    assert (found.actions["static"] == 2) == faster
    if not faster:
        assert set(found.actions) <= {"stored", "stored in 16 bits"}
        assert {site.detail["float"] for site in found.sites.values()} == {NOT_FASTER}
        assert set(found.skips) == {"s", "y"}
        assert set(found.skips.values()) == {NOT_FASTER}


def test_symmetric_forms_are_not_held_against_the_clock() -> None:
    found = Planned(convs(2), feeds(), Int8(symmetric=True), ratio=2.0)

    assert found.bench.measured == []
    assert found.actions["static"] == 2


def test_every_node_that_was_planned_is_in_the_result_once() -> None:
    for ratio in (0.5, 1.5):
        found = Planned(residual(), feeds(), ratio=ratio)
        keys = [entry.key for entry in found.plan]

        assert len(keys) == len(set(keys))
        assert set(keys) == {entry.key for entry in found.search.first}


def test_a_layer_in_float_does_not_make_others_look_unfused_where_no_node_has_a_name() -> None:
    proto = convs(2)
    proto.graph.node[-1].output[0] = "c1"
    proto.graph.node.append(helper.make_node("GlobalAveragePool", ["c1"], ["g"]))
    proto.graph.node.append(helper.make_node("Flatten", ["g"], ["f"]))
    proto.graph.node.append(helper.make_node("Gemm", ["f", "v"], ["y"]))
    proto.graph.initializer.append(constant("v", np.random.default_rng(0).normal(size=(CHANNELS, 10))))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [1, 10]))
    found = Planned(proto, feeds(), Int8(exclude=("y",), max_drop=0.2))

    assert found.actions["static"] == 2


# ------------------------------------------------------------------------------------------------ stored weights


def banks(sizes: Sequence[tuple[int, int]], gains: Sequence[float]) -> onnx.ModelProto:
    """Return matrices side by side in which weights that nobody looks at make the steps of the others coarse."""
    rng = np.random.default_rng(0)
    nodes, constants, inputs = [], [], {}
    for i, ((rows, columns), gain) in enumerate(zip(sizes, gains, strict=True)):
        weight, seen = rng.normal(size=(rows, columns)), np.ones(columns)
        weight[:, ::32], seen[::32] = 20, 0
        constants += [constant(f"w{i}", gain * weight), constant(f"s{i}", seen)]
        inputs[f"x{i}"] = [4, rows]
        nodes.append(helper.make_node("Einsum", [f"x{i}", f"w{i}"], [f"p{i}"], equation="bi,ij->bj"))
        nodes.append(helper.make_node("Mul", [f"p{i}", f"s{i}"], [f"m{i}"]))
    nodes.append(helper.make_node("Concat", [f"m{i}" for i in range(len(sizes))], ["side_by_side"], axis=1))
    nodes.append(helper.make_node("Flatten", ["side_by_side"], ["y"]))  # so that all channels are of one kind
    return model(nodes, constants, inputs, {"y": [4, sum(columns for _, columns in sizes)]})


def bank_feeds(sizes: Sequence[tuple[int, int]], count: int = 6) -> Feeds:
    rng = np.random.default_rng(1)
    return [
        {f"x{i}": rng.normal(size=(4, rows)).astype(np.float32) for i, (rows, _) in enumerate(sizes)}
        for _ in range(count)
    ]


def wide(found: Planned) -> set[str]:
    return {key for key, site in found.sites.items() if site.action == "stored in 16 bits"}


def test_16_bits_go_where_they_do_most_for_their_size() -> None:
    sizes = [(64, 64)] * 3 + [(64, 32)]
    found = Planned(banks(sizes, [1, 3, 1, 1]), bank_feeds(sizes))

    assert wide(found) == {"p1"}


def test_16_bits_go_on_past_a_weight_that_is_too_large_for_them() -> None:
    """Two filter banks that each hold half of the weights, and a small one that harms less for its size."""
    sizes = [(128, 128), (128, 128), (64, 32)]
    even = Planned(banks(sizes, [1, 1, 1]), bank_feeds(sizes)).search.effects
    gain = float(np.sqrt(0.05 * min(even["p0"], even["p1"]) / even["p2"]))
    found = Planned(banks(sizes, [1, 1, gain]), bank_feeds(sizes))
    effects = found.search.effects

    assert effects["p2"] / (64 * 32) < min(effects["p0"], effects["p1"]) / 128**2
    assert wide(found) == {"p2"}


def test_16_bits_take_at_most_their_share_of_the_weights() -> None:
    sizes = [(64, 32)] * 10
    found = Planned(banks(sizes, [1] * 10), bank_feeds(sizes))

    assert 1 <= len(wide(found)) <= 4


def test_where_8_bits_are_enough_none_get_16() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="bi,ij->bj")]
    proto = model(nodes, [constant("w", rng.choice([-1.0, 1.0], size=(64, 64)))], {"x": [4, 64]}, {"y": [4, 64]})
    found = Planned(proto, [{"x": rng.normal(size=(4, 64)).astype(np.float32)}] * 3)

    assert found.actions == {"stored": 1}
    assert found.sqnr > 44


def test_stored_weights_of_a_matmul_are_rounded_for_the_inputs_that_occur() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 96))
    data: Feeds = [{"x": (rng.normal(size=(1, 1, 12)) @ mixing).astype(np.float32)} for _ in range(300)]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = model(nodes, [constant("w", rng.normal(size=(96, 64)))], {"x": [1, 1, 96]}, {"y": [1, 1, 64]})
    pass_ = Int8(max_drop=1e-6)
    results = [squeeze(proto, pass_, feeds_, validate="none") for feeds_ in (data[:200], None)]
    answers = [[Session(each).run(f) for f in data[200:]] for each in (proto, *(r.model for r in results))]
    calibrated, nearest = (worst(compare(answers[0], each)) for each in answers[1:])

    assert [[s.action for s in r.report.steps[-1].done] for r in results] == [["stored"]] * 2
    assert calibrated > nearest + 3


# ------------------------------------------------------------------------------------------------ awkward cases


def tiny(op: str = "Conv") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    if op == "Conv":
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        return model([node], [constant("w", rng.normal(size=(2, 2, 1, 1)))], {"x": [1, 2, 4, 4]}, {"y": [1, 2, 4, 4]})
    node = helper.make_node(op, ["x", "w"], ["y"])
    return model([node], [constant("w", rng.normal(size=(3, 2)))], {"x": [1, 3]}, {"y": [1, 2]})


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_a_tiny_model_is_left_alone_or_keeps_its_answers(op: str) -> None:
    proto = tiny(op)
    rng = np.random.default_rng(0)
    shape = [1, 2, 4, 4] if op == "Conv" else [1, 3]
    data: Feeds = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(4)]
    result = squeeze(proto, "int8", data)

    assert result.report.steps[-1].kept
    assert result.report.after.bytes <= result.report.before.bytes
    assert result.report.sqnr_db is None or result.report.sqnr_db > 28


def test_where_everything_is_excluded_nothing_is_done() -> None:
    result = squeeze(convs(3), "int8{exclude=*}", feeds(3))

    assert result.report.steps[-1].done == ()
    assert result.model.graph.node == convs(3).graph.node


def unlike(kind: str) -> tuple[onnx.ModelProto, Feeds]:
    """Return the chain of Convs with an end that makes zeros, equal values, NaN or infinities on some feeds or all."""
    proto, data = convs(3), feeds(6)
    end = {
        "zeros": [
            helper.make_node("Abs", ["last"], ["a"]),
            helper.make_node("Neg", ["a"], ["n"]),
            helper.make_node("Relu", ["n"], ["y"]),
        ],
        "equal": [
            helper.make_node("Tanh", ["last"], ["t"]),
            helper.make_node("Sign", ["t"], ["g"]),
            helper.make_node("Abs", ["g"], ["y"]),
        ],
        "nan": [helper.make_node("Log", ["last"], ["y"])],
        "infinite": [helper.make_node("Reciprocal", ["last"], ["y"])],
        "zero input": [helper.make_node("Identity", ["last"], ["y"])],
        "nan input": [helper.make_node("Identity", ["last"], ["y"])],
        "all zero input": [helper.make_node("Identity", ["last"], ["y"])],
    }[kind]
    proto.graph.node[-1].output[0] = "last"
    proto.graph.node.extend(end)
    if kind == "zero input":
        data[0] = {"x": np.zeros_like(data[0]["x"])}
    if kind == "all zero input":
        data = [{"x": np.zeros_like(each["x"])} for each in data]
    if kind == "nan input":
        data[1] = {"x": np.full_like(data[1]["x"], np.nan)}
    return proto, data


@pytest.mark.parametrize("kind", ["zeros", "equal", "nan", "infinite", "zero input", "nan input", "all zero input"])
def test_answers_that_say_little_lead_to_a_plan_all_the_same(kind: str) -> None:
    proto, data = unlike(kind)
    found = Planned(proto, data)

    layers = {"c0", "c1", "last"}
    if kind == "infinite":  # any rounding makes infinities elsewhere
        assert {key: found.skips.get(key) for key in layers} == dict.fromkeys(layers, COSTLY)
    else:
        assert layers <= set(found.sites)
    assert not any(np.isnan(each) for each in found.search.effects.values())
    assert found.actions["static"] == 0 or found.sqnr >= 28


@pytest.mark.parametrize("kind", ["zeros", "zero input"])
def test_a_model_with_such_answers_is_squeezed_without_a_crash(kind: str) -> None:
    proto, data = unlike(kind)
    result = squeeze(proto, "int8", data)

    assert result.report.after.bytes < 0.5 * result.report.before.bytes


def test_where_rounding_to_8_bits_makes_nan_more_bits_are_taken() -> None:
    proto, data = unlike("nan")
    result = squeeze(proto, "int8", data)
    step = result.report.steps[-1]

    assert step.kept
    assert {site.action for site in step.done} == {"stored in 16 bits"}
    assert (step.sqnr_db or 0) > 40
