"""Violations that were planted in models, each found on its target and none of them in what the project makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.check import breaches, words
from onnxsqueeze.cli.main import main
from onnxsqueeze.ir.files import load
from onnxsqueeze.targets.profiles import find

Nodes = list[onnx.NodeProto]
RNG = np.random.default_rng(0)


class Net:
    """A Conv between Q/DQ pairs as a target likes it, in which a test spoils one thing."""

    def __init__(self, target: str) -> None:
        profile = find(target)
        self.kind = np.dtype(profile.activations.types[0])
        self.middle = 128 if self.kind == np.uint8 else 0
        self.opset = min(21, profile.graph.opset[1])
        self.shape: list[int | str] = [1, 8, 6, 6]
        self.float_bias = profile.bias.type == "float"
        self.conv = helper.make_node("Conv", ["xd", "wd", "bd"], ["y"], pads=[1] * 4, name="conv")
        weight = RNG.integers(-50, 51, (4, 8, 3, 3)).astype(np.int8)
        self.values: dict[str, np.ndarray] = {
            "w": weight, "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8),
            "xs": np.array(0.02, np.float32), "xz": np.array(self.middle, self.kind),
            "b": np.zeros(4, np.int32), "bs": np.full(4, 0.0002, np.float32), "bz": np.zeros(4, np.int32),
            "ys": np.array(0.05, np.float32), "yz": np.array(self.middle, self.kind),
        }  # fmt: skip
        self.before: Nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        ]
        if self.float_bias:
            self.values["bd"] = np.zeros(4, np.float32)
        else:
            self.before.append(helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0))
        self.behind: Nodes = [
            helper.make_node("QuantizeLinear", ["y", "ys", "yz"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["out"]),
        ]

    def model(self) -> onnx.ModelProto:
        nodes = [*self.before, self.conv, *self.behind]
        read = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.values.items() if name in read],
        )  # fmt: skip
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=10)


def opset(net: Net) -> None:
    net.opset = 25


def dynamic(net: Net) -> None:
    net.shape[0] = "batch"


def operator(net: Net) -> None:
    net.behind[-1].output[0] = "z"
    net.behind.append(helper.make_node("NonZero", ["z"], ["out"]))


def contrib(net: Net) -> None:
    net.behind[-1].output[0] = "z"
    net.behind.append(helper.make_node("Gelu", ["z"], ["out"], domain="com.microsoft"))


def at_run_time(net: Net) -> None:
    net.behind[-1].output[0] = "z"
    net.behind.append(helper.make_node("DynamicQuantizeLinear", ["z"], ["q", "out", "zero"]))


def weight_type(net: Net) -> None:
    net.values["w"], net.values["wz"] = net.values["w"].astype(np.int16), np.zeros(4, np.int16)


def weight_zero(net: Net) -> None:
    net.values["wz"][1] = 3


def least(net: Net) -> None:
    net.values["w"][0, 0, 0, 0] = -128


def activation_type(net: Net) -> None:
    net.values["xz"] = net.values["xz"].astype(np.uint16 if net.kind == np.int8 else np.int16)


def activation_zero(net: Net) -> None:
    net.values["yz"] = np.array(net.middle + 5, net.kind)


def activation_scales(net: Net) -> None:
    net.values["xs"], net.values["xz"] = np.full(8, 0.02, np.float32), np.full(8, net.middle, net.kind)


def bias_type(net: Net) -> None:
    if net.float_bias:
        del net.values["bd"]
        net.before.append(helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0))
    else:
        net.values["bd"] = np.zeros(4, np.float32)
        net.before.pop()


def bias_scale(net: Net) -> None:
    net.values["bs"][2] *= 1.01


def per_channel(net: Net) -> None:
    """A MatMul with a scale per column."""
    net.conv = helper.make_node("MatMul", ["xd", "wd"], ["y"])
    net.shape[:] = [1, 8]
    net.values["w"] = RNG.integers(-50, 51, (8, 4)).astype(np.int8)
    net.before[2].attribute[0].i = 1


def wrong_axis(net: Net) -> None:
    net.values["ws"], net.values["wz"] = np.full(8, 0.01, np.float32), np.zeros(8, np.int8)
    net.before[2].attribute[0].i = 1
    net.values["bs"] = np.array(0.0002, np.float32)


def saturation(net: Net) -> None:
    net.values["w"][:] = 127


def own_scale(net: Net) -> None:
    """A MaxPool whose output has a scale of its own."""
    net.behind[-1].output[0] = "z"
    net.values["ps"] = np.array(0.07, np.float32)
    net.behind += [
        helper.make_node("MaxPool", ["z"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["p", "ps", "yz"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "ps", "yz"], ["out"]),
    ]


def in_float(net: Net) -> None:
    """A Sigmoid that nothing is quantized behind."""
    net.behind[-1].output[0] = "z"
    net.behind.append(helper.make_node("Sigmoid", ["z"], ["out"]))


def only_stored(net: Net) -> None:
    """A weight in integers of a layer that computes in float."""
    net.conv.input[0] = "x"


def body(net: Net) -> None:
    made = helper.make_tensor_value_info("i", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["z"], ["i"])], "b", [], [made])
    net.behind[-1].output[0] = "z"
    net.values["yes"] = np.array(True)
    net.behind.append(helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch))


def blocks(net: Net) -> None:
    net.values["w"] = RNG.integers(-50, 51, (4, 8, 3, 3)).astype(np.int8)
    net.values["ws"], net.values["wz"] = np.full((4, 4, 3, 3), 0.01, np.float32), np.zeros((4, 4, 3, 3), np.int8)
    net.before[2].attribute[0].i = 1
    net.before[2].attribute.append(helper.make_attribute("block_size", 2))


PLANTED: list[tuple[str, Callable[[Net], None], str]] = [
    ("tensorrt", opset, "graph.opset"),
    ("tensorrt", bias_type, "bias.type"),
    ("tensorrt", activation_zero, "activations.zero_point"),
    ("tensorrt", weight_zero, "weights.symmetric"),
    ("tensorrt", least, "weights.least"),
    ("tensorrt", wrong_axis, "weights.per_channel"),
    ("tensorrt", blocks, "weights.blocks"),
    ("qnn-htp", dynamic, "graph.dynamic_shapes"),
    ("qnn-htp", operator, "graph.missing"),
    ("qnn-htp", body, "graph.bodies"),
    ("qnn-htp", per_channel, "weights.per_channel"),
    ("qnn-htp", activation_type, "activations.types"),
    ("qnn-htp", own_scale, "operators.same_scale"),
    ("litert", bias_type, "bias.type"),
    ("litert", bias_scale, "bias.product"),
    ("litert", weight_type, "weights.types"),
    ("generic-qdq", contrib, "graph.contrib"),
    ("generic-qdq", at_run_time, "integers.forms"),
    ("generic-qdq", only_stored, "integers.forms"),
    ("generic-qdq", in_float, "integers.placement"),
    ("generic-qdq", activation_scales, "activations.types"),
    ("ort-x64", saturation, "integers.pairs"),
    ("ort-x64", bias_scale, "bias.product"),
    ("coreml", lambda net: None, "graph.missing"),
]


@pytest.mark.parametrize(("target", "spoil", "rule"), PLANTED)
def test_what_was_planted_is_found_and_nothing_beside_it(target: str, spoil: Callable[[Net], None], rule: str) -> None:
    net = Net(target)
    clean = breaches(load(net.model()), find(target))
    spoil(net)
    found = breaches(load(net.model()), find(target))

    assert target == "coreml" or not clean
    assert rule in {each.rule for each in found}
    assert target == "coreml" or spoil in (only_stored, body) or {each.rule for each in found} == {rule}
    assert all(find(target).name in sentence or "VNNI" in sentence for sentence in words(found))


@pytest.mark.parametrize("target", sorted({target for target, _, _ in PLANTED} | {"ort-x64-vnni", "openvino-cpu"}))
def test_what_int8_makes_for_a_target_keeps_to_its_rules(target: str) -> None:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "w2"], ["d"], pads=[1] * 4),
        helper.make_node("Add", ["m", "d"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["t"]),
        helper.make_node("Sigmoid", ["t"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    values = {
        "w1": rng.normal(size=(32, 8, 3, 3)) / 8, "b1": rng.normal(size=32), "w2": rng.normal(size=(32, 32, 3, 3)) / 17,
        "k": rng.normal(size=(1, 32, 1, 1)), "w3": rng.normal(size=(64, 32)), "b3": rng.normal(size=64),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{"x": rng.normal(size=(1, 8, 32, 32)).astype(np.float32)} for _ in range(6)]
    result = squeeze(model, "int8", feeds, target=target)

    assert breaches(result.graph, find(target)) == ()
    assert result.report.target == f"{find(target)}, one thread"
    assert not any(find(target).name in note for note in result.report.notes)
    if find(target).integers.placement == "everywhere":
        assert sum(node.op == "QuantizeLinear" for node in result.graph.nodes) > 3


def test_the_command_names_places_and_rules_and_fails(tmp_path: Path) -> None:
    net = Net("tensorrt")
    least(net)
    onnx.save(net.model(), tmp_path / "model.onnx")
    good, bad, data = (
        CliRunner().invoke(main, ["check", str(tmp_path / "model.onnx"), "--target", *rest])
        for rest in (["ort-x64-vnni"], ["tensorrt"], ["tensorrt", "--json"])
    )

    assert (good.exit_code, bad.exit_code, data.exit_code) == (0, 1, 1)
    assert "keeps to the rules of ort-x64-vnni" in " ".join(good.output.split())
    assert "wd: tensorrt takes no weight under -127 (weights.least)" in " ".join(bad.output.split())
    assert [each["rule"] for each in json.loads(data.output)["breaches"]] == ["weights.least"]


def test_an_operator_in_float_is_a_notice_that_fails_nothing(tmp_path: Path) -> None:
    net = Net("generic-qdq")
    in_float(net)
    onnx.save(net.model(), tmp_path / "model.onnx")
    told, data = (
        CliRunner().invoke(main, ["check", str(tmp_path / "model.onnx"), "--target", "generic-qdq", *rest])
        for rest in ([], ["--json"])
    )

    assert told.exit_code == data.exit_code == 0
    assert "notice:" in told.output and "keeps to the rules of generic-qdq" in " ".join(told.output.split())
    assert [each["notice"] for each in json.loads(data.output)["breaches"]] == [True]


def test_a_batch_of_any_size_breaks_a_target_that_needs_fixed_shapes_and_no_other() -> None:
    net = Net("generic-qdq")
    dynamic(net)
    graph = load(net.model())

    assert "graph.dynamic_shapes" in {each.rule for each in breaches(graph, find("qnn-htp")) if not each.notice}
    assert "graph.dynamic_shapes" not in {each.rule for each in breaches(graph, find("coreml"))}
