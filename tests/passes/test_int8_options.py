from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import Array, constant, correlated, model
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UsageError
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.runtime.session import Session

Feeds = list[dict[str, Array]]
FORMS = [
    "",
    *("activations=int8", "symmetric", "per-tensor"),
    "activations=int8 symmetric",
    "activations=int8 symmetric per-tensor",
]


def net() -> onnx.ModelProto:
    """All kinds of nodes that compute in integers: layers with Relu, Clip and bias, a gate, and operators between."""
    rng = np.random.default_rng(0)
    constants = [
        constant("w1", rng.normal(size=(64, 32, 3, 3)) / 17), constant("b1", rng.normal(size=64) / 3),
        constant("w2", rng.normal(size=(64, 64, 3, 3)) / 24), constant("b2", rng.normal(size=64) / 3),
        constant("w3", rng.normal(size=(64, 64, 3, 3)) / 24),
        constant("w4", rng.normal(size=(20, 64 * 9)) / 24), constant("b4", rng.normal(size=20)),
        constant("low", np.array(0.0)), constant("high", np.array(6.0)),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("HardSigmoid", ["c2"], ["h"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["c2", "h"], ["s"]),
        helper.make_node("Add", ["s", "r1"], ["a"]),
        helper.make_node("Conv", ["a", "w3"], ["c3"], pads=[1] * 4),
        helper.make_node("Clip", ["c3", "low", "high"], ["r3"]),
        helper.make_node("MaxPool", ["r3"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
    ]
    return model(nodes, constants, {"x": [1, 32, 12, 12]}, {"y": [1, 20]})


FEEDS: Feeds = correlated(6, (32, 12, 12))


def quantized(options: str, proto: onnx.ModelProto | None = None, feeds: Feeds | None = None) -> onnx.ModelProto:
    return squeeze(proto or net(), f"int8{{{options}}}" if options else "int8", feeds or FEEDS, validate="none").model


def sqnr(one: onnx.ModelProto, two: onnx.ModelProto, level: str = "all") -> float:
    sessions = [Session(one), Session(two, optimize=level)]
    return worst(compare(*([session.run(feed) for feed in FEEDS[:3]] for session in sessions)))


def pairs(proto: onnx.ModelProto) -> dict[str, tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """Return the scale and the zero point of every quantized activation."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {
        n.input[0]: (values[n.input[1]], values[n.input[2]]) for n in proto.graph.node if n.op_type == "QuantizeLinear"
    }


def weights(proto: onnx.ModelProto) -> dict[str, tuple[NDArray[np.generic], onnx.NodeProto]]:
    """Return the scale of every weight and bias of a layer, and the node that restores it."""
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return {
        n.input[0]: (values[n.input[1]], n)
        for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ all forms


@pytest.mark.parametrize("options", FORMS)
def test_every_form_keeps_the_answers(options: str) -> None:
    found = quantized(options)

    assert sqnr(net(), found) > (25 if "per-tensor" in options or "symmetric" in options else 28)


@pytest.mark.parametrize("options", FORMS)
def test_onnx_runtime_computes_the_same_optimized_or_not_in_every_form(options: str) -> None:
    found = quantized(options)

    assert sqnr(found, found, "none") > 32


@pytest.mark.parametrize("options", ["", "per-tensor"])
def test_what_onnx_runtime_fuses_runs_its_layers_in_integers(options: str, tmp_path: Path) -> None:
    Session(quantized(options), optimized=tmp_path / "optimized.onnx")
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert found["QLinearConv"] + found["QGemm"] == 4
    assert found["Conv"] + found["FusedConv"] + found["Gemm"] == 0


def test_no_option_is_the_same_as_the_defaults_by_name() -> None:
    plain = quantized("").SerializeToString()

    assert quantized("activations=uint8").SerializeToString() == plain
    assert all(quantized(options).SerializeToString() != plain for options in FORMS[1:])


@pytest.mark.parametrize("options", FORMS[1:])
def test_every_form_gives_the_same_bytes_again(options: str) -> None:
    assert quantized(options).SerializeToString() == quantized(options).SerializeToString()


# ------------------------------------------------------------------------------------------------ activations


@pytest.mark.parametrize(("signed", "symmetric"), list(product([False, True], repeat=2)))
def test_zero_points_are_of_the_form_that_was_asked_for(signed: bool, symmetric: bool) -> None:
    options = " ".join(["activations=int8"] * signed + ["symmetric"] * symmetric)
    zeros = [zero for _, zero in pairs(quantized(options)).values()]

    assert len(zeros) >= 6
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8 if signed else np.uint8)}
    if symmetric:
        assert {int(zero) for zero in zeros} == {0 if signed else 128}
    else:
        assert {int(zero) for zero in zeros} & {-128 if signed else 0}  # what Relu makes
        assert len({int(zero) for zero in zeros}) > 2


def test_signed_activations_are_the_unsigned_ones_in_other_integers() -> None:
    one, two = pairs(quantized("")), pairs(quantized("activations=int8"))
    both = one.keys() & two.keys()

    assert {"x"} < both
    assert all(one[name][0] == two[name][0] for name in both)
    assert all(int(one[name][1]) - 128 == int(two[name][1]) for name in both)


def test_symmetric_steps_cover_the_larger_side() -> None:
    one, two = pairs(quantized("")), pairs(quantized("symmetric"))

    assert 0.95 < float(two["x"][0]) / float(one["x"][0]) < 2
    assert float(two["r1"][0]) / float(one["r1"][0]) == pytest.approx(2, rel=0.1)  # half the integers stay unused


# ------------------------------------------------------------------------------------------------ weights


def test_per_tensor_gives_each_weight_one_scale_and_each_bias_the_product() -> None:
    found = weights(quantized("per-tensor"))
    by_channel = weights(quantized(""))

    assert len(found) == len(by_channel) == 8
    for scale, node in found.values():
        assert scale.shape == ()
        assert not node.attribute
    assert all(scale.ndim == 1 and scale.size > 1 for scale, _ in by_channel.values())
    source = float(pairs(quantized("per-tensor"))["x"][0])
    weight = next(float(scale) for name, (scale, _) in found.items() if name.startswith("w1"))
    bias = next(float(scale) for name, (scale, _) in found.items() if name.startswith("b1"))
    assert bias == pytest.approx(source * weight, rel=1e-6)


def test_one_scale_for_all_channels_costs_accuracy_where_they_differ() -> None:
    proto = net()
    uneven = np.random.default_rng(1).normal(size=(64, 32, 3, 3)) * np.geomspace(0.01, 1, 64)[:, None, None, None]
    undone = np.random.default_rng(2).normal(size=(64, 64, 3, 3)) / 24 / np.geomspace(0.01, 1, 64)[None, :, None, None]
    for name, values in (("w1", uneven / 17), ("b1", np.zeros(64)), ("w2", undone)):
        next(t for t in proto.graph.initializer if t.name == name).CopyFrom(constant(name, values))
    one, two = (sqnr(proto, quantized(options, proto)) for options in ("", "per-tensor"))

    assert one > two + 3


def test_per_tensor_leaves_run_time_layers_and_stored_weights_as_they_are() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Einsum", ["h", "v"], ["y"], equation="bti,ij->btj"),
    ]
    constants = [constant("w", rng.normal(size=(128, 128))), constant("v", rng.normal(size=(128, 96)))]
    proto = model(nodes, constants, {"x": [1, 40, 128]}, {"y": [1, 40, 96]})
    feeds: Feeds = [{"x": rng.normal(size=(1, 40, 128)).astype(np.float32)} for _ in range(3)]
    plain, other = (quantized(options, proto, feeds).SerializeToString() for options in ("", "per-tensor"))

    assert other == plain


def test_a_large_bias_widens_the_one_scale_so_that_it_fits() -> None:
    proto = net()
    bias = np.zeros(64)
    bias[5] = 3e5
    next(t for t in proto.graph.initializer if t.name == "b1").CopyFrom(constant("b1", bias))
    rng = np.random.default_rng(0)
    head = model(
        list(proto.graph.node[:1]), list(proto.graph.initializer[:2]), {"x": [1, 32, 12, 12]}, {"c1": [1, 64, 12, 12]}
    )
    feeds: Feeds = [{"x": (1e-4 * rng.normal(size=(1, 32, 12, 12))).astype(np.float32)} for _ in range(3)]
    found = np.asarray(Session(quantized("per-tensor", head, feeds)).run(feeds[0])["c1"])

    assert found[0, 5] == pytest.approx(3e5, rel=0.01)


# ------------------------------------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("activations=int4", "int4"),
        ("activations=float16", "float16"),
        ("symmetric=maybe", "symmetric"),
        ("per-tensor=2", "per-tensor"),
        ("max-drop=2", "max-drop"),
        ("activation=int8", "activation"),
    ],
)
def test_a_bad_value_gets_one_sentence_that_names_it(options: str, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        squeeze(net(), f"int8{{{options}}}", validate="none")

    first = str(caught.value).splitlines()[0]
    assert "Error" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert 10 < len(first) < 200
