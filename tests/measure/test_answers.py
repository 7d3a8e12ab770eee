"""What an error of the answers is: relative to how they vary, per part and per feed, at tensors that are smooth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from small_models import parse

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, Ruler, compare, worst
from onnxsqueeze.measure.output_kinds import Kind, kinds
from onnxsqueeze.measure.output_kinds import parse as parsed
from onnxsqueeze.measure.rig import mount
from onnxsqueeze.measure.switches import Switchboard
from onnxsqueeze.measure.variation import Layout, Reference

Array = NDArray[np.float32]

RNG = np.random.default_rng(3)
BASE: Answers = [{"y": RNG.standard_normal((8, 6)).astype(np.float32)} for _ in range(6)]


def moved(answers: Answers, by: float, seed: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    return [
        {k: (np.asarray(v) + by * rng.standard_normal(np.asarray(v).shape)).astype(np.float32) for k, v in a.items()}
        for a in answers
    ]


def db(expected: Sequence[Mapping[str, object]], found: Sequence[Mapping[str, object]]) -> float:
    return worst(compare(*([dict(each) for each in side] for side in (expected, found))))


def test_a_tenth_of_the_variation_is_20_db() -> None:
    assert db(BASE, moved(BASE, 0.1)) == pytest.approx(20, abs=0.7)
    assert db(BASE, BASE) == math.inf


@pytest.mark.parametrize("factor, offset", [(1000.0, 0.0), (1.0, 100.0), (0.01, -3.0)])
def test_a_factor_and_an_offset_change_nothing(factor: float, offset: float) -> None:
    one, other = (
        [{"y": np.asarray(a["y"], np.float64) * factor + offset} for a in each] for each in (BASE, moved(BASE, 0.1))
    )

    assert db(one, other) == pytest.approx(db(BASE, moved(BASE, 0.1)), abs=1e-3)


def test_logarithms_of_probabilities_are_as_far_apart_as_their_logits() -> None:
    def logged(answers: Answers) -> Answers:
        rows = [np.asarray(a["y"], np.float64) for a in answers]
        return [{"y": y - np.log(np.exp(y).sum(-1, keepdims=True))} for y in rows]

    centred = [
        [{"y": y - y.mean(-1, keepdims=True)} for a in each for y in [np.asarray(a["y"])]]
        for each in (BASE, moved(BASE, 0.1))
    ]

    assert db(logged(BASE), logged(moved(BASE, 0.1))) == pytest.approx(db(*centred), abs=0.3)


def test_a_quiet_feed_is_not_hidden_by_loud_ones() -> None:
    loud: Answers = [{"y": RNG.standard_normal((1, 4000)).astype(np.float32) * 100} for _ in range(7)]
    quiet: Answers = [{"y": RNG.standard_normal((1, 4000)).astype(np.float32)}]
    found = [*loud, *moved(quiet, 12.0)]

    assert db([*loud, *quiet], found) < 12
    assert compare([*loud, *quiet], found)[0].worst_feed == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_minus_infinity_unless_they_are_expected(value: float) -> None:
    found = moved(BASE, 0.0)
    np.asarray(found[2]["y"])[1, 3] = value

    assert db(BASE, found) == -math.inf
    assert db(found, found) == math.inf
    assert math.isfinite(db(found, moved(BASE, 0.1)))


def test_parts_of_different_kind_count_apart() -> None:
    boxes = RNG.uniform(0, 640, (4, 1, 4, 64))
    scores = RNG.uniform(0, 1, (4, 1, 8, 64))
    joined: Answers = [{"y": np.concatenate(each, 1)} for each in zip(boxes, scores, strict=True)]
    wrong: Answers = [{"y": np.concatenate(each, 1)} for each in zip(boxes, np.roll(scores, 1, 2), strict=True)]
    told = Ruler({"y": Kind(layout=Layout(1, (4, 8), ("boxes", "scores")))}).compare(joined, wrong)[0]

    assert told.sqnr_db < 0
    assert "scores" in told.worst_channel
    assert worst(Ruler({"y": Kind(layout=Layout(1))}).compare(joined, wrong)) < 0


def test_a_single_number_is_measured_by_its_size() -> None:
    assert db([{"y": np.float32(4.0)}], [{"y": np.float32(4.4)}]) == pytest.approx(20, abs=0.1)


def test_few_feeds_have_an_interval_and_many_have_none() -> None:
    many: Answers = [{"y": RNG.standard_normal((2, 6))} for _ in range(40)]
    few = compare(BASE, moved(BASE, 0.1))[0]

    assert few.interval_db is not None
    assert few.interval_db[0] <= few.sqnr_db <= few.interval_db[1]
    assert compare(many, moved(many, 0.1))[0].interval_db is None


def test_the_expected_side_is_measured_once() -> None:
    reference = Reference([np.asarray(a["y"]) for a in BASE])
    ruler = Ruler()
    first = ruler.error(BASE, moved(BASE, 0.1))

    assert ruler.error(BASE, moved(BASE, 0.1)) == first
    assert len(ruler._known) == 1
    assert reference.by_feed.shape == (6, 1)


# Kinds and taps

HEAD = (
    "m (float[N, 24] x) => ({outputs}) <float[24, 64] w1, float[64, 8] w2{more}> "
    "{{ h = MatMul(x, w1) r = Relu(h) z = MatMul(r, w2) {tail} }}"
)


def model(outputs: str, tail: str, more: str = "", domains: str = "") -> onnx.ModelProto:
    return parse(HEAD.format(outputs=outputs, tail=tail, more=more), domains=domains)


LABELS = {
    "an index of the largest": ("int64[N] y", "y = ArgMax<axis=1, keepdims=0>(z)"),
    "flags": ("bool[N, 8] y", "s = Sigmoid(z) half = Constant<value_float=0.5>() y = Greater(s, half)"),
    "the smallest of a sum": ("int64[N, 1] y", "t = Neg(z) u = Softmax<axis=1>(t) y = ArgMin<axis=1>(u)"),
    "an index of logarithms": ("int64[N] y", "l = LogSoftmax<axis=1>(z) y = ArgMax<axis=1, keepdims=0>(l)"),
}
ROWS = {
    "the best": ("float[N, 3] y", "k = Constant<value_ints=[3]>() y, i = TopK(z, k)"),
    "those over zero": ("int64[2, K] y", "half = Constant<value_float=0.5>() g = Greater(z, half) y = NonZero(z)"),
    "chosen rows": (
        "float[K, 8] y",
        "m = ReduceMax<axes=[1], keepdims=0>(z) zero = Constant<value_float=0.0>() g = Greater(m, zero) "
        "y = Compress<axis=0>(z, g)",
    ),
}  # fmt: skip
LENGTHS = {
    "a length from a sum": (
        "float[L] y",
        "s = ReduceSum<keepdims=0>(z) a = Abs(s) n = Cast<to=7>(a) one = Constant<value_ints=[1]>() "
        "l = Reshape(n, one) p = ReduceMean<keepdims=0>(z) y = Expand(p, l)",
    ),
    "a range": (
        "float[L] y",
        "s = ReduceSum<keepdims=0>(z) a = Abs(s) n = Cast<to=7>(a) zero = Constant<value_int=0>() "
        "one = Constant<value_int=1>() r2 = Range(zero, n, one) y = Cast<to=1>(r2)",
    ),
    "the end of a slice": (
        "float[N, L] y",
        "s = ReduceMax<keepdims=0>(z) a = Abs(s) n = Cast<to=7>(a) one = Constant<value_ints=[1]>() "
        "e = Reshape(n, one) b = Constant<value_ints=[0]>() y = Slice(z, b, e, one)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LABELS, *ROWS, *LENGTHS])
def test_what_jumps_is_measured_at_the_float_tensors_in_front(name: str) -> None:
    proto = model(*{**LABELS, **ROWS, **LENGTHS}[name])
    rig = mount(load(proto), None, True)
    kind = rig.ruler.kinds["y"]

    assert kind.taps
    assert not kind.direct
    assert kind.name == ("labels" if name in LABELS else kind.name if name in LENGTHS else "rows")
    assert set(kind.taps) <= {str(t.name) for t in rig.graph.outputs}
    assert encode(rig.dismounted(rig.graph.copy())).graph.output == encode(rig.model).graph.output


@pytest.mark.parametrize("name", [*LABELS, *ROWS, *LENGTHS])
@pytest.mark.parametrize("pipeline", ["int8", "prune{ratio=0.7}", "sparsify"])
def test_every_pass_runs_on_what_jumps_and_gives_back_the_interface(name: str, pipeline: str) -> None:
    proto = model(*{**LABELS, **ROWS, **LENGTHS}[name])
    result = squeeze(proto, pipeline, feeds())

    assert [o.name for o in result.model.graph.output] == [o.name for o in proto.graph.output]
    assert [i.name for i in result.model.graph.input] == ["x"]
    ort.InferenceSession(result.model.SerializeToString()).run(None, feeds()[0])


def feeds(count: int = 12) -> list[dict[str, Array]]:
    rng = np.random.default_rng(8)
    return [{"x": rng.standard_normal((6, 24)).astype(np.float32)} for _ in range(count)]


SMOOTH = {
    "logits": ("float[N, 8] y", "y = Identity(z)"),
    "an activation that compares": (
        "float[N, 8] y",
        "zero = Constant<value_float=0.0>() g = Greater(z, zero) t = Tanh(z) y = Where(g, z, t)",
    ),
    "a clipped output": ("float[N, 8] y", "y = HardSigmoid(z)"),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_smooth_is_measured_itself(name: str) -> None:
    kind = kinds(View(load(model(*SMOOTH[name]))))["y"]

    assert kind.taps == ()
    assert kind.direct


def test_an_expert_that_is_chosen_inside_is_no_tap() -> None:
    proto = model(
        "float[N, 8] y",
        "k = Constant<value_ints=[1]>() v, i = TopK(z, k) c = Cast<to=1>(i) a = Mul(z, c) y = MatMul(a, w3)",
        ", float[8, 8] w3",
    )

    assert kinds(View(load(proto)))["y"].taps == ()


JOINED = {
    "a Concat": ("float[N, 12] y", "b = Relu(z) four = MatMul(r, w3) y = Concat<axis=1>(b, four)", (8, 4)),
    "a Concat behind operators": (
        "float[N, 12] y",
        "four = MatMul(r, w3) c = Concat<axis=1>(z, four) s = Sigmoid(c) y = Identity(s)",
        (8, 4),
    ),
    "a Concat of Concats": (
        "float[N, 16] y",
        "four = MatMul(r, w3) c = Concat<axis=1>(z, four) t = Tanh(four) y = Concat<axis=1>(c, t)",
        (8, 4, 4),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_concat_in_front_says_which_channels_are_of_one_kind(name: str) -> None:
    outputs, tail, sizes = JOINED[name]

    assert kinds(View(load(model(outputs, tail, ", float[64, 4] w3"))))["y"].layout.sizes == sizes


def test_rows_are_matched_by_value_in_any_order() -> None:
    rows = RNG.standard_normal((20, 5)).astype(np.float32)
    ruler = Ruler({"y": Kind("rows")})
    same = ruler.compare([{"y": rows}], [{"y": rows[::-1]}])[0]
    fewer = ruler.compare([{"y": rows}], [{"y": rows[:15]}])[0]

    assert same.sqnr_db == math.inf
    assert same.agreement == 1
    assert fewer.agreement == 0.75
    assert fewer.rows == 20


@pytest.mark.parametrize(
    "one, other, share",
    [
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5),
        (np.array([True, False, True, True]), np.array([True, True, True, True]), 0.75),
        (np.array(["x"] * 4), np.array(["x"] * 4), 1.0),
    ],
)
def test_text_and_flags_count_how_many_are_equal(
    one: NDArray[np.generic], other: NDArray[np.generic], share: float
) -> None:
    found = compare([{"y": one}], [{"y": other}])[0]

    assert found.agreement == share
    assert found.kind == "labels"
    assert found.sqnr_db == (math.inf if share == 1 else pytest.approx(-10 * math.log10(1 - share)))


@pytest.mark.parametrize(
    "value",
    [
        lambda y: [{0: row[0], 1: row[1], 900: row[2]} for row in y],
        lambda y: {"a": y[0, 0], "b": y[0, 1], "c": y[1, 2]},
        lambda y: [{"x": y}, {"x": y + 1}],
    ],
)
def test_keys_of_maps_are_no_signal(value: object) -> None:
    one, other = ([{"y": value(np.asarray(a["y"]))} for a in each] for each in (BASE, moved(BASE, 0.5)))  # type: ignore[operator]

    assert 3 < db(one, other) < 11


def test_sequences_are_compared_member_by_member() -> None:
    one, other = (
        [{"y": [np.asarray(a["y"]), 1000 * np.asarray(a["y"])[:2]]} for a in each] for each in (BASE, moved(BASE, 0.1))
    )
    shorter: Answers = [{"y": [np.asarray(a["y"])]} for a in BASE]

    assert db(one, other) == pytest.approx(20, abs=2)
    assert db(one, shorter) == -math.inf


def test_kinds_can_be_told() -> None:
    view = View(load(model(*SMOOTH["logits"])))

    assert kinds(view, {"y": "scores"})["y"].name == "scores"
    assert parsed("a:b:rows, logits:scores") == {"a:b": "rows", "logits": "scores"}
    with pytest.raises(UsageError, match="no output 'z'"):
        kinds(view, {"z": "rows"})
    with pytest.raises(UsageError, match="did you mean 'scores'"):
        parsed("y:score")


def test_a_layer_whose_rewrite_makes_nan_is_measured_as_harmful() -> None:
    graph = load(model(*SMOOTH["logits"]))

    def spoil(copy: Graph, key: str) -> None:
        from onnxsqueeze.graph import edit

        node, _ = edit.find(copy, key)
        node.inputs[1] = edit.constant(copy, "spoilt", np.full((24, 64), np.nan, np.float32))

    board = Switchboard(graph, [{"h": spoil}], feeds(2))

    assert Ruler.of(graph).error(board.expected, board.answers((0,))) == math.inf
