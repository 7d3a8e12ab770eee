from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.forecast import Forecast
from onnxsqueeze.targets.profiles import default, find
from onnxsqueeze.targets.times import UNBLOCKED

TIMES = default().times
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,64,20,20] x) => (float[1,64,20,20] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(b, w2) y = Sigmoid(c)
}"""
FEEDS = [{"x": np.random.default_rng(i).normal(size=(1, 64, 20, 20)).astype(np.float32)} for i in range(8)]


def model() -> onnx.ModelProto:
    proto, rng = onnx.parser.parse_model(TEXT), np.random.default_rng(0)
    weights = {name: rng.normal(size=(64, 64, 3, 3)).astype(np.float32) / 24 for name in ("w", "w2")}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return proto


def test_a_float_model_takes_what_its_layers_take() -> None:
    outputs = 64 * 20 * 20
    layer = TIMES.layer("Conv", (64, 64, 3, 3), outputs)[0]
    found = Forecast(load(model()), FEEDS[0]).nanoseconds(TIMES)

    assert found == pytest.approx(2 * layer + TIMES.carry["Sigmoid"][0] * outputs + 3 * TIMES.call, rel=1e-6)


def test_layers_between_pairs_take_what_integers_take_there() -> None:
    graph = squeeze(model(), "int8", FEEDS).graph
    assert [node.op for node in graph.nodes].count("QuantizeLinear") >= 2
    float_time = Forecast(load(model()), FEEDS[0])
    int8_time = Forecast(graph, FEEDS[0])
    vnni, avx2 = (int8_time.nanoseconds(find(t).times) / float_time.nanoseconds(find(t).times)
                  for t in ("ort-x64", "ort-x64-avx2"))  # fmt: skip

    assert 0.3 < vnni < 0.5
    assert 0.45 < avx2 < 0.7


def test_stored_weights_take_no_time_and_weights_restored_at_every_run_some() -> None:
    weights, outputs = 9 * 64 * 64, 64 * 20 * 20
    folded, lean = (
        Forecast(squeeze(model(), f"int8{{{goal}arithmetic=false}}", FEEDS).graph, FEEDS[0]).nanoseconds(TIMES)
        for goal in ("", "goal=memory ")
    )

    assert folded == pytest.approx(Forecast(load(model()), FEEDS[0]).nanoseconds(TIMES), rel=1e-6)
    slower = UNBLOCKED * TIMES.layer("Conv", (64, 64, 3, 3), outputs)[0]
    assert lean == pytest.approx(folded + 2 * (TIMES.dequantize * weights + slower), rel=1e-6)


def test_what_is_inside_of_bodies_is_not_predicted() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <
            then_branch = one () => (float[2] a) { a = Relu(x) }, else_branch = two () => (float[2] b) { b = Neg(x) }
        >
    }"""
    feed = {"x": np.ones(2, np.float32), "c": np.array(True)}

    assert not Forecast(load(onnx.parser.parse_model(text)), feed).complete
