from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import Array, constant, conv_model, correlated, model
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.report.run import StepReport
from onnxsqueeze.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"
SHIPPED = ("mlp", "cnn", "dwcnn", "resnet")
Feeds = list[dict[str, Array]]


def actions(result: Result) -> Counter[str]:
    return Counter(site.action for site in result.report.steps[-1].done)


def reasons(result: Result) -> dict[str, str]:
    return {skip.key: skip.reason for skip in result.report.steps[-1].skipped}


def ops(result: Result) -> Counter[str]:
    return Counter(node.op for node in result.graph.nodes)


def sqnr(one: onnx.ModelProto, two: onnx.ModelProto, feeds: Feeds, levels: tuple[str, str] = ("all", "all")) -> float:
    sessions = [Session(m, optimize=level) for m, level in zip((one, two), levels, strict=True)]
    answers = [[session.run(feed) for feed in feeds] for session in sessions]
    return worst(compare(*answers))


def size(proto: onnx.ModelProto) -> int:
    return int(proto.ByteSize())


def shipped(name: str) -> tuple[onnx.ModelProto, Feeds]:
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        return onnx.load(MODELS / f"{name}.onnx"), [{"input": arrays["input"][i : i + 8]} for i in range(0, 96, 8)]


def small_net(seed: int = 0) -> onnx.ModelProto:
    """Conv, Relu, Conv with a residual, MaxPool, Flatten, Gemm: what a small CNN is made of."""
    rng = np.random.default_rng(seed)
    constants = [
        constant("w1", rng.normal(size=(64, 16, 3, 3)) / 12),
        constant("b1", rng.normal(size=64) / 5),
        constant("w2", rng.normal(size=(64, 64, 3, 3)) / 24),
        constant("w3", rng.normal(size=(10, 1024)) / 32),
        constant("b3", rng.normal(size=10)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Add", ["r1", "c2"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    return model(nodes, constants, {"x": [1, 16, 16, 16]}, {"y": [1, 10]})


def small_feeds(count: int = 8) -> Feeds:
    return correlated(count, (16, 16, 16))


def token_net(outliers: float = 1.0) -> onnx.ModelProto:
    """Two MatMuls on tokens with a bias and Tanh between."""
    rng = np.random.default_rng(0)
    gain = np.ones(256)
    gain[:3] = outliers
    constants = [
        constant("g", gain), constant("w1", rng.normal(size=(256, 384)) / 16), constant("b1", rng.normal(size=384)),
        constant("w2", rng.normal(size=(384, 256)) / 20),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Mul", ["t", "g"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Tanh", ["a1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    return model(nodes, constants, {"x": [2, 20, 256]}, {"y": [2, 20, 256]})


def token_feeds(count: int = 4) -> Feeds:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(2, 20, 256)).astype(np.float32)} for _ in range(count)]


class Unclean(Int8):
    """Takes the graph as it comes, where ``clean`` would have folded constants."""

    cleans_first = False


def blindly(proto: onnx.ModelProto, pipeline: str | Int8, feeds: Feeds | None) -> Result:
    """Quantize without measuring the result, so that no clock has a say."""
    return squeeze(proto, pipeline, feeds, validate="none")


# ------------------------------------------------------------------------------------------------ what it achieves


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_shrinks_and_keeps_its_answers(name: str) -> None:
    proto, feeds = shipped(name)
    result = squeeze(proto, "int8", feeds)

    assert result.report.after.bytes < 0.45 * result.report.before.bytes  # 0.44 where weights are only stored
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 24


@pytest.mark.parametrize("name", SHIPPED)
def test_the_runtimes_optimizations_change_a_quantized_model_by_rounding_only(name: str) -> None:
    proto, feeds = shipped(name)
    result = blindly(proto, "int8", feeds)

    assert sqnr(result.model, result.model, feeds[:2], ("none", "all")) >= 35


@pytest.mark.parametrize("rectified", [False, True])
def test_a_layer_that_is_left_in_float_between_integers_stays_there(rectified: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = [constant(f"w{i}", rng.normal(size=(64, 64, 3, 3)) / 24) for i in range(3)]
    nodes = [
        helper.make_node("Conv", [f"x{i}" if i else "x", f"w{i}"], [f"c{i}"], pads=[1] * 4, name=f"n{i}")
        for i in range(3)
    ]
    after = "Relu" if rectified else "Identity"
    nodes += [helper.make_node(after, [f"c{i}"], [f"x{i + 1}" if i < 2 else "y"]) for i in range(3)]
    proto = model([nodes[i // 2 + 3 * (i % 2)] for i in range(6)], constants, {"x": [1, 64, 12, 12]}, {"y": ["n"]})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = correlated(6, (64, 12, 12))
    result = blindly(proto, "int8{exclude=n1}", feeds)
    Session(result.graph, optimized=tmp_path / "optimized.onnx")
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (2, 1)
    assert sqnr(result.model, result.model, feeds[:2], ("none", "all")) > 50


@pytest.mark.parametrize("rectified", [False, True])
def test_a_small_net_runs_in_integers_from_end_to_end(rectified: bool, tmp_path: Path) -> None:
    proto = small_net()
    if rectified:  # as a residual network has it
        proto.graph.node.insert(4, helper.make_node("Relu", ["a"], ["r2"]))
        proto.graph.node[5].input[0] = "r2"
    result = blindly(proto, "int8", small_feeds())
    Session(result.graph, optimized=tmp_path / "optimized.onnx")
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert actions(result)["static"] == 3
    assert found["QLinearConv"] == 2
    assert found["QGemm"] == found["QLinearAdd"] == 1
    assert found["Conv"] + found["Gemm"] + found["Add"] + found["Relu"] + found["FusedConv"] == 0
    assert found["QuantizeLinear"] == 1
    assert sqnr(proto, result.model, small_feeds(3)) > 30
    assert sqnr(result.model, result.model, small_feeds(3), ("none", "all")) >= 35


def test_tokens_are_quantized_at_run_time_and_outliers_are_smoothed() -> None:
    even, uneven = (blindly(token_net(outliers), "int8", token_feeds()) for outliers in (1.0, 80.0))

    assert actions(even)["dynamic"] == actions(uneven)["dynamic"] == 2
    assert ops(uneven)["MatMulInteger"] == ops(uneven)["DynamicQuantizeLinear"] == 2
    assert sqnr(token_net(), even.model, token_feeds()) > 30
    assert sqnr(token_net(80.0), uneven.model, token_feeds()) > 30


@pytest.mark.parametrize("feeds", [False, True])
@pytest.mark.parametrize("net", ["small", "tokens"])
def test_the_same_input_gives_the_same_bytes(net: str, feeds: bool) -> None:
    proto, data = (small_net(), small_feeds()) if net == "small" else (token_net(50.0), token_feeds())
    one, two = (blindly(proto, "int8", data if feeds else None).model.SerializeToString() for _ in range(2))

    assert one == two


@pytest.mark.parametrize("group", [1, 2])
def test_the_mean_error_of_the_weights_comes_off_the_bias(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 64 // group, 3, 3)) / 24
    weight[:, 0, 0, 0] = 4  # outliers, so that the others are rounded coarsely
    proto = conv_model(weight, [12, 12], group=group)
    feeds = [{"x": f["x"] + np.float32(4)} for f in correlated(8, (64, 12, 12))]
    expected = [np.asarray(Session(proto).run(f)["y"]) for f in feeds]
    gaps = []
    for corrected in (True, False):
        if not corrected:
            monkeypatch.setattr(
                "onnxsqueeze.techniques.quantization.apply._mean_error", lambda node, values, *_: np.zeros(len(values))
            )
        result = blindly(proto, "int8", feeds)
        assert actions(result) == {"static": 1}
        session = Session(result.graph)
        found = [np.asarray(session.run(f)["y"]) for f in feeds]
        gap = np.mean([a - b for a, b in zip(found, expected, strict=True)], axis=(0, 1, 3, 4))
        gaps.append(float(np.sqrt(np.mean(gap**2))))

    assert gaps[0] < 0.3 * gaps[1]


# ------------------------------------------------------------------------------------------------ options


def test_only_and_exclude_choose_layers_by_pattern() -> None:
    feeds = small_feeds()
    only = blindly(small_net(), "int8{only=c1,y}", feeds)
    without = blindly(small_net(), 'int8{exclude="c*"}', feeds)

    assert {s.key for s in only.report.steps[-1].done} == {"c1", "y"}
    assert not {s.key for s in without.report.steps[-1].done} & {"c1", "c2"}
    assert "y" in {s.key for s in without.report.steps[-1].done}
    assert ops(without)["Conv"] == 2


@pytest.mark.parametrize("value", ["0", "-0.1", "1.5"])
def test_a_max_drop_that_is_no_share_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="max-drop"):
        squeeze(small_net(), f"int8{{max-drop={value}}}", validate="none")


def test_a_smaller_max_drop_leaves_less_in_integers_and_is_kept() -> None:
    proto, feeds = shipped("mlp")
    loose, tight = (squeeze(proto, f"int8{{max-drop={drop}}}", feeds) for drop in ("0.5", "0.005"))

    assert actions(tight)["static"] <= actions(loose)["static"]
    assert loose.report.sqnr_db is not None
    assert tight.report.sqnr_db is not None
    assert tight.report.sqnr_db >= loose.report.sqnr_db - 1
    assert loose.report.sqnr_db >= 6


# ------------------------------------------------------------------------------------------------ without data


@pytest.mark.parametrize("net", ["small", "tokens", *SHIPPED])
def test_without_calibration_the_result_is_smaller_and_runs(net: str) -> None:
    if net in SHIPPED:
        proto, feeds = shipped(net)
    else:
        proto, feeds = (small_net(), small_feeds()) if net == "small" else (token_net(), token_feeds())
    result = blindly(proto, "int8", None)

    assert actions(result)["static"] == 0
    assert size(result.model) < 0.4 * size(proto)
    assert sqnr(proto, result.model, feeds[:3]) > 25


def test_a_float16_weight_is_quantized_like_any_other() -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float16), "h")
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["xh", "h"], ["mh"]),
        helper.make_node("Cast", ["mh"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    proto = model(nodes, [weight, constant("w", np.ones((64, 64)))], {"x": [2, 64]}, {"y": [2, 64]})
    result = squeeze(proto, "int8")

    assert reasons(result) == {}
    assert {site.key for site in result.report.steps[-1].done} == {"mh", "y"}


def test_a_quantized_model_is_refused() -> None:
    result = blindly(token_net(), "int8", None)

    with pytest.raises(UsageError, match="already quantized"):
        squeeze(result.model, "int8")


# ------------------------------------------------------------------------------------------------ awkward graphs


@pytest.mark.parametrize("feeds", [False, True])
def test_two_convs_may_share_a_weight(feeds: bool) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1] * 4),
    ]
    proto = model(
        nodes, [constant("w", rng.normal(size=(32, 32, 3, 3)) / 17)], {"x": [1, 32, 12, 12]}, {"y": [1, 32, 12, 12]}
    )
    data = correlated(6, (32, 12, 12))
    result = blindly(proto, "int8", data if feeds else None)

    assert size(result.model) < 0.7 * size(proto)
    assert sqnr(proto, result.model, data[:2]) > 28


@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("table_first", [True, False])
def test_a_table_may_be_the_weight_of_the_last_layer_too(form: str, table_first: bool) -> None:
    rng = np.random.default_rng(0)
    look = helper.make_node("Gather", ["e", "i"], ["v"])
    shape = [256] if form == "static" else [1, 256]
    if form == "static":
        last = [helper.make_node("Gemm", ["x", "e"], ["y"], transB=1)]
    else:
        last = [helper.make_node("Transpose", ["e"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    nodes = [look, *last] if table_first else [*last, look]
    tables = [constant("e", rng.normal(size=(300, 64)))]
    proto = model(nodes, tables, {"x": [*shape, 64]}, {"y": [*shape, 300], "v": [3, 64]})
    proto.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, [3]))
    feed = {"x": rng.normal(size=(*shape, 64)).astype(np.float32), "i": np.array([1, 5, 7])}
    result = blindly(proto, Unclean(), [feed, feed])

    assert actions(result)[form] == 1
    assert sqnr(proto, result.model, [feed]) > 30
    assert size(result.model) < 0.7 * size(proto)


@pytest.mark.parametrize("way", ["Cast", "Transpose", "Constant", "Identity"])
@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_weights_that_come_through_other_nodes_are_read(way: str, form: str) -> None:
    values = (np.random.default_rng(0).normal(size=(64, 300)) / 8).astype(np.float32)
    constants: list[onnx.TensorProto] = []
    if way == "Constant":
        source = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values))
    else:
        kind = values.astype(np.float16) if way == "Cast" else values
        constants.append(numpy_helper.from_array(kind.T.copy() if way == "Transpose" else kind, "v"))
        source = helper.make_node(way, ["v"], ["w"])
        if way == "Cast":
            source.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    shape = [256] if form == "static" else [1, 256]
    layer = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([source, layer], constants, {"x": [*shape, 64]}, {"y": [*shape, 300]})
    rng = np.random.default_rng(0)
    data: Feeds = [{"x": rng.normal(size=(*shape, 64)).astype(np.float32)} for i in range(4)]
    result = blindly(proto, Unclean(), data)

    assert actions(result)[form] == 1
    assert ops(result)[way] == 0 or way == "Cast"
    assert sqnr(proto, result.model, data) > 28


@pytest.mark.parametrize("bias", [(40, 1), (40, 64), (1, 64), (64,), (1,), ()])
def test_a_gemm_may_have_a_bias_of_any_shape(bias: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    constants = [constant("w", rng.normal(size=(64, 64))), constant("c", 5 * rng.normal(size=bias))]
    proto = model([helper.make_node("Gemm", ["x", "w", "c"], ["y"])], constants, {"x": [40, 64]}, {"y": [40, 64]})
    data: Feeds = [{"x": np.random.default_rng(i).normal(size=(40, 64)).astype(np.float32)} for i in range(4)]

    assert sqnr(proto, blindly(proto, "int8", data).model, data) > 30


def test_a_matrix_in_the_branch_of_an_if_is_quantized_or_stored() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [4, 64])
        return helper.make_graph([helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}_y"])], name, [], [out])

    rng = np.random.default_rng(0)
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    constants = [constant(f"w{n}", rng.normal(size=(64, 64))) for n in "ab"]
    proto = model([node], constants, {"x": [4, 64]}, {"y": [4, 64]})
    proto.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    result = blindly(proto, "int8", None)
    x = rng.normal(size=(4, 64)).astype(np.float32)

    assert size(result.model) < 0.6 * size(proto)
    assert sqnr(proto, result.model, [{"x": x, "yes": np.array(v)} for v in (True, False)]) > 30


def test_a_weight_that_the_caller_may_override_stays_an_input() -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [constant("w", np.ones((64, 64)))],
        {"x": [2, 64]},
        {"y": [2, 64]},
    )
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64]))
    result = blindly(proto, "int8", None)

    assert "override" in reasons(result)["y"]
    assert [t.name for t in result.model.graph.initializer] == ["w"]


def test_of_a_recurrent_layers_weights_only_the_fixed_one_is_stored() -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=32)
    constants = [constant("w", rng.normal(size=(1, 128, 32)) / 6), constant("r", rng.normal(size=(1, 128, 32)) / 6)]
    proto = model([node], constants, {"x": [5, 1, 32]}, {"y": [5, 1, 1, 32]})
    proto.graph.input.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 128, 32]))
    result = blindly(proto, "int8", None)
    x = rng.normal(size=(5, 1, 32)).astype(np.float32)

    assert [i.name for i in result.model.graph.input] == ["x", "r"]
    assert sqnr(proto, result.model, [{"x": x}, {"x": x, "r": np.zeros((1, 128, 32), np.float32)}]) > 30


def test_a_masked_input_keeps_a_layer_in_float() -> None:
    rng = np.random.default_rng(0)
    proto = model(
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        [constant("w", rng.normal(size=(64, 64)))],
        {"x": [4, 64]},
        {"y": [4, 64]},
    )
    x = rng.normal(size=(4, 64)).astype(np.float32)
    x[:, :20] = -10000
    result = blindly(proto, "int8", [{"x": x}] * 3)

    assert actions(result) == {"stored": 1}


def test_an_input_that_is_read_twice_by_one_operator_is_quantized_once() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Mul", ["c", "c"], ["m"]),
        helper.make_node("Conv", ["m", "w2"], ["y"], pads=[1] * 4),
    ]
    constants = [constant(n, rng.normal(size=(64, 64, 3, 3)) / 24) for n in ("w1", "w2")]
    proto = model(nodes, constants, {"x": [1, 64, 12, 12]}, {"y": [1, 64, 12, 12]})
    data = correlated(6, (64, 12, 12))
    result = blindly(proto, "int8", data)

    assert actions(result)["integer"] == 1
    assert sqnr(proto, result.model, data[:2]) > 25
    assert sqnr(result.model, result.model, data[:2], ("none", "all")) >= 35


@pytest.mark.parametrize("include", [0, 1])
def test_average_pooling_stays_in_float_since_its_integer_kernel_is_slow(include: int) -> None:
    rng = np.random.default_rng(0)
    pool = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": include}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("AveragePool", ["c"], ["m"], **pool),  # type: ignore[arg-type]
        helper.make_node("Conv", ["m", "w2"], ["y"], pads=[1] * 4),
    ]
    constants = [constant(n, rng.normal(size=(64, 64, 3, 3)) / 24) for n in ("w1", "w2")]
    proto = model(nodes, constants, {"x": [1, 64, 12, 12]}, {"y": [1, 64, 12, 12]})
    data = [{"x": f["x"] + np.float32(2)} for f in correlated(6, (64, 12, 12))]
    result = blindly(proto, "int8", data)

    assert actions(result) == {"static": 2}
    assert sqnr(proto, result.model, data[:2]) > 25
    assert sqnr(result.model, result.model, data[:2], ("none", "all")) >= 35


def test_an_intermediate_result_that_is_an_output_keeps_its_name() -> None:
    proto = small_net()
    for name in ("r1", "c2", "a"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    result = blindly(proto, "int8", small_feeds())

    assert [o.name for o in result.model.graph.output] == ["y", "r1", "c2", "a"]
    assert sqnr(proto, result.model, small_feeds(2)) > 28
    assert sqnr(result.model, result.model, small_feeds(2), ("none", "all")) >= 35


def test_the_report_names_every_layer_once() -> None:
    result = squeeze(small_net(), "int8", small_feeds())
    keys = [site.key for site in result.report.steps[-1].done]

    assert len(keys) == len(set(keys))
    assert {"c1", "c2", "y"} <= set(keys)
    assert not math.isnan(result.report.sqnr_db or 0.0)
    assert encode(result.graph).graph.node


def test_weights_that_are_only_stored_get_16_bits_where_8_harm_most() -> None:
    rng = np.random.default_rng(0)
    uneven = rng.normal(size=(48, 48)) * 10.0 ** rng.uniform(-3, 0, size=(48, 48))
    steps = [("w0", rng.normal(size=(48, 48))), ("w1", uneven), ("w2", uneven.T)]
    constants = [constant(name, values) for name, values in steps]
    nodes = [helper.make_node("Tanh", ["x"], ["h0"])]
    for i in range(3):  # an operator that int8 only stores the weight of
        nodes.append(helper.make_node("Einsum", [f"h{i}", f"w{i}"], [f"h{i + 1}"], equation="bi,ij->bj"))
    proto = model(nodes, constants, {"x": [4, 48]}, {"h3": [4, 48]})
    result = squeeze(proto, "int8", [{"x": rng.normal(size=(4, 48)).astype(np.float32)} for _ in range(6)])
    done = actions(result)

    assert set(done) == {"stored", "stored in 16 bits"}
    assert done["stored in 16 bits"] == 1


def test_arithmetic_that_unseen_feeds_refute_is_taken_back() -> None:
    """Feeds that are too quiet give ranges that clip what comes later; feeds 4 and 12 of 16 are held out."""
    quiet = small_feeds(16)
    loud = [{"x": 3 * each["x"]} if i in (4, 12) else each for i, each in enumerate(quiet)]

    def step(feeds: Feeds, pipeline: str = "int8") -> StepReport:
        return squeeze(small_net(), pipeline, feeds, target="ort-x64-vnni").report.steps[-1]

    assert "static" in {site.action for site in step(quiet).done}
    told = step(loud)
    assert told.notes[0].endswith(
        "dB SQNR on feeds that were not used to calibrate: done in its mildest form, int8{arithmetic=false}"
    )
    assert {site.action for site in told.done} <= {"stored", "stored in 16 bits"}
    assert "static" in {site.action for site in step(loud, "int8{max-drop=1}").done}
