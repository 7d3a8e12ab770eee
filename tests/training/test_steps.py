"""Training of a part of a model: what it loses, how that falls, and what it ends with when it is stopped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser

from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.measure.variation import Layout
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.blocks import blocks, crossings
from onnxsqueeze.training.capture import captured, fewer
from onnxsqueeze.training.data import pooled
from onnxsqueeze.training.fit import Fitted, Schedule, fit
from onnxsqueeze.training.leaves import leaves
from onnxsqueeze.training.losses import Loss, scale_of, target_of, with_labels
from onnxsqueeze.training.mixing import mixed
from onnxsqueeze.training.slices import cut
from onnxsqueeze.training.steps import Batch, Steps

Array = NDArray[Any]
ROWS = """<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N, 6] x) => (float[N, 3] y) <float[6, 8] W1, float[8] b1, float[8, 3] W2>
{ h = MatMul(x, W1)  a = Add(h, b1)  r = Relu(a)  y = MatMul(r, W2) }"""
MEAN = """<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N, 6] x) => (float[N, 3] y) <int64[1] zero, float[6, 3] W1>
{ m = ReduceMean(x, zero)  c = Sub(x, m)  y = MatMul(c, W1) }"""
RESIDUAL = """<ir_version: 9, opset_import: ["" : 18]>
agraph (float[N, 6] x, float[N, 6] mask) => (float[N, 3] y)
<float[6, 6] W1, float[6, 6] W2, float[6, 6] W3, float[6, 3] W4>
{ a = MatMul(x, W1)  r = Relu(a)  b = MatMul(r, W2)  s = Mul(b, mask)  t = Add(r, s)
  c = MatMul(t, W3)  d = Mul(c, mask)  u = Add(t, d)  y = MatMul(u, W4) }"""


def model_of(text: str, seed: int = 0) -> onnx.ModelProto:
    model = parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        floats = info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        values = rng.standard_normal(shape).astype(np.float32) / 2 if floats else np.zeros(shape, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    del model.graph.value_info[:]
    return model


def steps_of(text: str, loss: Loss) -> Steps:
    model = model_of(text)
    found = leaves(View(decode(model)), lambda node: True)
    return Steps(model, None, ["x"], [loss], found)


def data(loss: Loss, feeds: int = 6, rows: int = 16, seed: int = 1) -> list[Batch]:
    """Inputs, and the answers of another model of the same shape."""
    rng = np.random.default_rng(seed)
    session = Session(model_of(ROWS, seed=9))
    inputs = [rng.standard_normal((rows, 6)).astype(np.float32) for _ in range(feeds)]
    return [{"x": x, target_of(loss): loss.target(np.asarray(session.run({"x": x})["y"]))} for x in inputs]


SQUARES, SCORES = Loss("y", scale=2.0), Loss("y", "scores", temperature=3.0)


def log_softmax(z: Array) -> Array:
    return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))


def test_losses_are_what_they_say() -> None:
    x = data(SQUARES)[0]["x"]
    y = np.asarray(Session(model_of(ROWS)).run({"x": x})["y"], np.float64)
    t = np.asarray(Session(model_of(ROWS, seed=9)).run({"x": x})["y"], np.float64)
    classes = t.argmax(-1)
    labels, probabilities = Loss("y", "labels", weight=0.5), Loss("p", "scores", temperature=2.0, probabilities=True)

    def found(loss: Loss, target: Array) -> float:
        steps = steps_of(ROWS, loss)
        return steps.loss([leaf.start for leaf in steps.leaves], {"x": x, target_of(loss): loss.target(target)})

    p = np.exp(log_softmax(t / 3))
    assert found(SQUARES, t) == pytest.approx(np.mean((y - t) ** 2) / 2, rel=1e-5)
    apart = log_softmax(t / 3) - log_softmax(y / 3)
    assert found(SCORES, t) == pytest.approx(9 * np.mean((p * apart).sum(-1)), rel=1e-4)
    assert found(labels, classes) == pytest.approx(-0.5 * log_softmax(y)[np.arange(len(y)), classes].mean(), rel=1e-5)
    some = np.where(np.arange(len(y)) < 3, classes, -1)
    known = -0.5 * log_softmax(y)[np.arange(3), classes[:3]].mean()
    assert found(labels, some) == pytest.approx(known, rel=1e-5), "the mean of those whose class is known"
    assert found(labels, np.full(len(y), -100)) == 0
    soft = probabilities.target(np.exp(log_softmax(t)))
    assert np.allclose(soft, np.exp(log_softmax(t / 2)), atol=1e-6), "of probabilities the same as of their logits"


def test_the_gradient_of_labels_is_that_of_their_loss() -> None:
    labels = Loss("y", "labels", weight=0.5)
    steps = steps_of(ROWS, labels)
    batch = data(labels)[0]
    rng = np.random.default_rng(0)
    batch = {"x": batch["x"], target_of(labels): labels.target(rng.integers(-1, 3, len(batch["x"])))}
    starts = [leaf.start for leaf in steps.leaves]
    _, grads = steps.gradients(starts, batch)
    ways = [rng.standard_normal(start.shape).astype(np.float32) for start in starts]
    ends = [steps.loss([v + h * w for v, w in zip(starts, ways, strict=True)], batch) for h in (-1e-3, 1e-3)]

    along = sum(float((grad * way).sum()) for grad, way in zip(grads, ways, strict=True))
    assert along == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=0.01, abs=1e-4)


def test_labels_take_their_share_of_the_first_scores() -> None:
    losses = [SQUARES, SCORES]

    assert [(each.kind, each.weight) for each in with_labels(losses, 0.25)] == [
        ("labels", 0.25), ("squares", 1.0), ("scores", 0.75)
    ]  # fmt: skip
    assert [each.kind for each in with_labels(losses, 1.0)] == ["labels", "squares"]
    with pytest.raises(UsageError, match="outputs="):
        with_labels([SQUARES], 0.5)


def test_kinds_of_channels_count_alike_in_a_squared_error() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = rng.standard_normal((2, 4, 50)) * 100, rng.standard_normal((2, 12, 50)) / 100
    both = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    scale = scale_of([both[:1], both[1:]], Layout(1, (4, 12)))
    off = np.concatenate([np.full_like(boxes, 50), np.full_like(scores, 0.003)], axis=1)

    assert np.shape(scale) == (1, 16, 1)
    expected = (50**2 / boxes.var() + 0.003**2 / scores.var()) / 2
    assert np.mean(off**2 / scale) == pytest.approx(expected, rel=1e-3)
    assert np.ravel(scale_of([both[..., None]])) == pytest.approx(np.ravel(scale)), "as the data say"
    assert scale_of([scores[:1], scores[1:]]) == pytest.approx(scores.var(), rel=1e-6)


@pytest.mark.parametrize("loss", [SQUARES, SCORES])
def test_training_makes_the_loss_on_unseen_samples_small(loss: Loss) -> None:
    found = trained(loss)

    assert found.after < 0.5 * found.before
    assert found.looks[-1][0] == found.steps == 100


def unseen(loss: Loss) -> list[Batch]:
    return data(loss, 2, seed=5)


def trained(loss: Loss, seed: int = 0, progress: Any = lambda *_: None, **how: Any) -> Fitted:
    steps = steps_of(ROWS, loss)
    schedule = Schedule(100, 0.05, 16, (seed,), **how)
    return fit(steps, *pooled(steps, data(loss), unseen(loss), 6), schedule, progress)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two, other = (b"".join(v.tobytes() for v in trained(SQUARES, seed).values) for seed in (3, 3, 4))

    assert one == two
    assert one != other


def test_an_interrupt_ends_with_the_best_so_far() -> None:
    def interrupt(loss: float, done: int, total: int) -> None:
        if done == 42:
            raise KeyboardInterrupt

    found = trained(SQUARES, progress=interrupt)

    assert "interrupted" in found.stopped
    assert found.steps == 42
    assert found.after == min(loss for _, loss in found.looks) < found.before


def test_no_time_means_no_steps() -> None:
    found = trained(SQUARES, until=0.0)

    assert (found.steps, found.after) == (0, found.before)
    assert "time" in found.stopped


def test_time_for_fewer_steps_than_there_are_looks_is_time_for_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = itertools.count(), []
    monkeypatch.setattr("onnxsqueeze.training.fit.time.monotonic", lambda: float(next(clock)))
    steps = steps_of(ROWS, SQUARES)
    samples = pooled(steps, data(SQUARES), unseen(SQUARES), 6)
    found = fit(steps, *samples, Schedule(1000, 0.05, 16, (0,), 20.0), lambda loss, step, count: told.append(count))

    assert 5 < found.steps == told[-1] < 20
    assert found.looks[-1][0] == found.steps
    assert found.after < found.before


def test_with_little_time_the_steps_are_fewer_and_the_rate_falls_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = itertools.count(), []
    monkeypatch.setattr("onnxsqueeze.training.fit.time.monotonic", lambda: float(next(clock)))
    found = trained(SQUARES, progress=lambda loss, step, steps: told.append((step, steps)), until=60.0)

    assert "time" in found.stopped
    assert 20 < found.steps < 60
    assert told[-1] == (found.steps, found.steps)
    assert Schedule(found.steps, 0.05, 16, (0,)).at(found.steps - 1) < 0.001
    assert found.after < found.before


def test_samples_are_joined_only_where_none_feels_another() -> None:
    for text, joined in ((ROWS, True), (MEAN, False)):
        steps = steps_of(text, SQUARES)
        seen, _ = pooled(steps, data(SQUARES), unseen(SQUARES), 6)
        batch = next(seen.batches(40, np.random.default_rng(0)))

        assert [len(each["x"]) for each in batch] == ([40] if joined else [16, 16])


def test_a_part_computes_what_the_whole_does() -> None:
    model = model_of(ROWS)
    x = data(SQUARES)[0]["x"]
    whole = Session(cut(model, {"x": x}, ["r", "y"])).run({"x": x})
    r = np.asarray(whole["r"])
    part = cut(model, {"r": r}, ["y"])

    assert [value.name for value in part.graph.input] == ["r"]
    assert np.array_equal(Session(part).run({"r": r})["y"], whole["y"])  # type: ignore[arg-type]


def test_tensors_are_the_same_from_the_inputs_and_from_inside() -> None:
    model = model_of(RESIDUAL)
    rng = np.random.default_rng(0)
    feeds = [{name: rng.standard_normal((rows, 6)).astype(np.float32) for name in ("x", "mask")} for rows in (3, 5)]
    inside = captured(model, None, feeds, ["r"])
    onward = [{**feed, **known} for feed, known in zip(feeds, inside, strict=True)]

    for one, other in zip(
        captured(model, None, feeds, ["t", "y"]), captured(model, None, onward, ["t", "y"]), strict=True
    ):
        assert all(np.array_equal(one[name], other[name]) for name in ("t", "y"))
    assert captured(model, None, [{"r": inside[0]["r"], "mask": feeds[0]["mask"]}], ["t"])[0]["t"].shape == (3, 6)


def test_a_smaller_share_of_feeds_is_part_of_a_larger_one_and_evenly_spread() -> None:
    shares = [list(fewer(range(100), share)) for share in (0.001, 0.1, 0.25, 0.6, 1.0)]

    assert [len(each) for each in shares] == [1, 10, 25, 60, 100]
    assert all(set(one) < set(other) for one, other in itertools.pairwise(shares))
    assert max(b - a for a, b in itertools.pairwise(shares[2])) <= 8
    assert fewer([], 0.5) == []


def test_blocks_end_where_one_tensor_crosses() -> None:
    view = View(decode(model_of(RESIDUAL)))
    found = leaves(view, lambda node: True)
    names = crossings(view, found)
    parts = blocks(view, found, names)

    assert names == ["a", "r", "t", "u"], "a mask that no weight moves crosses without being counted"
    assert [(block.outputs, [leaf.tensor for leaf in block.leaves]) for block in parts] == [
        (("r",), ["W1"]),
        (("t",), ["W2"]),
        (("u",), ["W3"]),
        (("y",), ["W4"]),
    ]
    assert set(parts[1].inputs) == {"r", "mask"}
    assert [b.outputs for b in blocks(view, found, ["t"])] == [("t",), ("y",)]
    assert [len(b.leaves) for b in blocks(view, found, (), whole=True)] == [4]


def test_mixed_feeds_lie_between_two() -> None:
    rng = np.random.default_rng(0)
    feeds: Sequence[dict[str, Array]] = [{"x": np.full((2, 5), i, np.float32)} for i in range(3)]
    found = mixed(feeds, 4, rng)
    images = mixed([{"x": rng.random((1, 1, 24, 24)).astype(np.float32)} for _ in range(2)], 1, rng)

    assert len(found) == 12
    assert all((each["x"] == each["x"][:, :1]).all() and 0 <= each["x"].min() <= each["x"].max() <= 2 for each in found)
    assert images[0]["x"].shape == (1, 1, 24, 24)
    assert mixed([{"ids": np.zeros((1, 4), np.int64)}] * 2, 4, rng) == []
