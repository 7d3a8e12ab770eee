"""Models that draw random numbers: all are compared on the same recorded draws."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from small_models import parse

from onnxsqueeze import sensitivity, squeeze
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import answer
from onnxsqueeze.measure.random_nodes import find
from onnxsqueeze.measure.rig import mount

Array = NDArray[np.generic]

HEAD = (
    "m (float[N, 24] x) => (float[N, {width}] y) <float[24, 64] w1, float[64, 8] w2, float[8, 6] w3> "
    "{{ h = MatMul(x, w1) r = Relu(h) z = MatMul(r, w2) {tail} }}"
)
MODELS = {
    "noise that is added": (8, "n = RandomNormalLike(z) y = Add(z, n)"),
    "noise inside": (6, "n = RandomUniformLike<low=-1.0, high=1.0>(z) s = Add(z, n) t = Tanh(s) y = MatMul(t, w3)"),
    "noise on the input": (
        8,
        "n = RandomNormalLike<scale=0.5>(x) v = Add(x, n) k = MatMul(v, w1) q = MatMul(k, w2) y = Add(q, z)",
    ),
    "a mask that is drawn": (6, "p = Sigmoid(z) b = Bernoulli(p) s = Mul(z, b) y = MatMul(s, w3)"),
    "noise of a fixed size": (8, "n = RandomNormal<shape=[1, 8]>() y = Add(z, n)"),
}  # fmt: skip


def model(name: str) -> onnx.ModelProto:
    width, tail = MODELS[name]
    return parse(HEAD.format(width=width, tail=tail))


def feeds(count: int = 16) -> list[dict[str, Array]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.standard_normal((6, 24)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_equal_to_itself_on_the_same_draws(name: str) -> None:
    rig = mount(load(model(name)), None, True)
    data = rig.feeds(feeds(4), 0)
    one, other = (answer(rig.graph, None, list(data)) for _ in range(2))

    assert len(find(rig.model).nodes) == 1
    assert rig.ruler.error(one, other) == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pipeline", ["int8", "sparsify{ratio=0.8}", "prune{ratio=0.9}"])
def test_draws_are_no_error_of_a_pass(name: str, pipeline: str) -> None:
    result = squeeze(model(name), pipeline, feeds())

    assert result.report.steps[-1].kept
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 6
    assert any("draw random numbers" in note for note in result.report.notes)
    drawn = [n.op_type for n in result.model.graph.node if n.op_type.startswith(("Random", "Bernoulli"))]
    assert len(drawn) == 1
    assert [i.name for i in result.model.graph.input] == ["x"]
    ort.InferenceSession(result.model.SerializeToString()).run(None, feeds(1)[0])


def test_the_same_run_gives_the_same_bytes() -> None:
    one, other = (squeeze(model("noise inside"), "sparsify", feeds()).model.SerializeToString() for _ in range(2))

    assert one == other


def test_a_feed_has_the_same_draw_whoever_asks() -> None:
    rig = mount(load(model("noise inside")), None, True)
    first, again = rig.feeds(feeds(), 0), rig.feeds(feeds(), 0)

    np.testing.assert_array_equal(first[3]["n"], again[2:][1]["n"])
    assert not np.array_equal(first[3]["n"], first[2]["n"])


def test_sensitivity_is_not_measured_in_noise() -> None:
    found = sensitivity(model("noise that is added"), "sparsify", feeds())

    assert found.layers
    assert all(
        point.measured is not None and point.measured < 1 for layer in found.layers for point in layer.points[:1]
    )
