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


VOICE = (
    "m (int64[T] x) => (float[L, 24] y) <float[12, 24] table, float[24, 24] w1, float[24, 1] w2, float[24, 24] w3, "
    "int64[1] last = {1}, int64[1] front = {0}, int64 zero = {0}, int64 step = {1}, float[1] gain = {9.0}, "
    "float[1] shift = {1.5}> {"
    "e = Gather(table, x) h = MatMul(e, w1) r = Tanh(h) s = MatMul(r, w2) a = Abs(s) p = Mul(a, gain) d = Add(p, shift)"
    " c = Ceil(d) q = Squeeze(c, last) i = Cast<to=7>(q) u = CumSum(i, zero) n = ReduceSum<keepdims=0>(i) "
    "t = Range(zero, n, step) "
    "tt = Unsqueeze(t, last) uu = Unsqueeze(u, front) b = GreaterOrEqual(tt, uu) k = Cast<to=7>(b) "
    "at = ReduceSum<keepdims=0>(k, last) f = Gather(r, at) y = MatMul(f, w3) }"
)
"""Of each symbol as many rows as a layer says, as a voice makes frames of sounds."""


def _voice() -> tuple[onnx.ModelProto, list[dict[str, Array]]]:
    rng = np.random.default_rng(8)
    return parse(VOICE), [{"x": rng.integers(0, 12, 20)} for _ in range(16)]


def test_lengths_that_are_rounded_are_those_of_the_original_in_all_models() -> None:
    proto, given = _voice()
    rig = mount(load(proto), None, True)
    moved = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in moved.graph.initializer:
        if tensor.name == "w2":
            value = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array((value * 1.05).astype(np.float32), "w2"))
    other = mount(load(moved), None, True)
    data = list(rig.feeds(given, 0))
    one, two = answer(rig.graph, None, data), answer(other.graph, None, data)
    plain = [[len(np.asarray(a["y"])) for a in answer(load(each), None, given)] for each in (proto, moved)]

    assert plain[0] != plain[1]  # by themselves the two say different things
    assert [[len(np.asarray(a["y"])) for a in each] for each in (one, two)] == [plain[0], plain[0]]
    deviations = {each.output: each for each in rig.ruler.compare(one, two)}
    assert np.isinf(deviations["y"].sqnr_db)
    assert 8 < deviations["d"].sqnr_db < 30


def test_a_voice_is_squeezed_though_rounding_moves_its_lengths() -> None:
    proto, given = _voice()
    result = squeeze(proto, "int8{max-drop=0.1}", given)

    assert result.report.steps[-1].kept
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 20
    assert any("lengths of the original" in note for note in result.report.notes)
    assert "Ceil" in [node.op_type for node in result.model.graph.node]
    assert [i.name for i in result.model.graph.input] == ["x"]
    ort.InferenceSession(result.model.SerializeToString()).run(None, given[0])


def test_a_size_that_is_computed_of_a_shape_is_no_length_of_its_own() -> None:
    sized = parse(
        "m (float[1, 4, H, W] x) => (float[1, 4, P, Q] y) <float[4, 4, 3, 3] w, float[4] f = {1., 1., 2.5, 2.5}> {"
        " h = Conv<pads=[1, 1, 1, 1]>(x, w) s = Shape(h) v = Cast<to=1>(s) m = Mul(v, f) g = Floor(m) z = Cast<to=7>(g)"
        ' y = Resize<mode="nearest">(h, , , z) }'
    )
    rig = mount(load(sized), None, True)

    assert rig.graph is rig.model
    assert not rig.ruler.taps
