"""``tune``: what other passes have lost comes back by training, as far as samples that it has not seen say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxsqueeze import Tune, UsageError, squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.report.run import StepReport
from onnxsqueeze.runtime.session import Session

NOISE = 1.0
"""Of a weight, in its standard deviations: then the original errs."""
MODELS = Path(__file__).parents[2] / "models"


def tuned(result: Result) -> StepReport:
    return next(step for step in result.report.steps if step.spec.startswith("tune"))


def db(result: Result) -> float:
    assert result.report.sqnr_db is not None
    return result.report.sqnr_db


@pytest.mark.parametrize(
    ("first", "gain"), [("bits{weights=2}", 1.0), ("bits{weights=4 activations=8}", 0.5), ("prune{ratio=0.3}", 1.0)]
)
def test_answers_come_nearer_on_feeds_that_nothing_has_seen(first: str, gain: float) -> None:
    before = squeeze(MODELS / "mlp.onnx", first, digits())
    after = squeeze(MODELS / "mlp.onnx", f"{first},tune{{steps=200 end-to-end}}", digits())

    assert db(after) >= db(before) + gain
    assert after.report.after.bytes <= 1.001 * before.report.after.bytes
    assert any(note.startswith("answers: ") for note in tuned(after).notes)
    curves = [curve for site in tuned(after).done if isinstance(curve := site.detail.get("curve"), dict)]
    assert curves
    assert all(len(curve["x"]) == len(curve["y"]) > 2 and curve["x"][0] == 0 for curve in curves)


def digits() -> NDArray[np.float32]:
    with np.load(MODELS / "digits.npz") as data:
        return np.asarray(data["x"][:, None] / 255, np.float32)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two, other = (
        squeeze(MODELS / "mlp.onnx", f"bits{{weights=2}},tune{{steps=10 seed={seed}}}").model.SerializeToString()
        for seed in (1, 1, 2)
    )

    assert one == two
    assert one != other


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    with np.load(MODELS / "digits.npz") as data:
        np.savez(path, input=digits()[:640], classes=data["y"][:640])
    return path


def test_labels_set_right_what_the_original_does_wrong(labelled: Path) -> None:
    model = onnx.load(MODELS / "mlp.onnx")
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        w = onnx.numpy_helper.to_array(tensor)
        if w.ndim == 2 and w.dtype == np.float32:
            noisy = w + NOISE * w.std() * rng.standard_normal(w.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    pipe = "bits{{weights=2}},tune{{steps=150 end-to-end{}}}"
    without, with_ = (
        squeeze(model, pipe.format(more), labelled if more else digits()[:640], outputs="logits:scores")
        for more in ("", " labels=classes")
    )

    assert share_right(with_.model) >= share_right(without.model) + 0.1
    assert any("answers: " in note for note in tuned(with_).notes)


def share_right(model: onnx.ModelProto) -> float:
    """The share of digits that training has not seen."""
    with np.load(MODELS / "digits.npz") as data:
        y = data["y"][640:]
    return float((np.asarray(Session(model).run({"input": digits()[640:]})["logits"]).argmax(-1) == y).mean())


@pytest.mark.parametrize(
    ("pipe", "outputs", "words"),
    [
        ("bits{weights=2},tune{end-to-end labels=y}", "logits:scores", "no labels 'y'; it has 'classes'"),
        ("bits{weights=2},tune{end-to-end labels=classes}", None, "outputs="),
        ("bits{weights=2},tune{labels=classes}", None, "end-to-end"),
        ("bits{weights=2},tune{end-to-end mix=2}", None, "mix is from 0"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(pipe: str, outputs: str | None, words: str, labelled: Path) -> None:
    with pytest.raises(UsageError, match=words):
        squeeze(MODELS / "mlp.onnx", pipe, labelled, outputs=outputs)


def test_a_model_that_answers_as_the_original_is_left_alone() -> None:
    result = squeeze(MODELS / "mlp.onnx", "tune")

    assert not tuned(result).done
    assert all("answers as the original" in skip.reason for skip in tuned(result).skipped)


def test_without_data_nothing_is_trained_and_that_is_said() -> None:
    step = tuned(squeeze(MODELS / "mlp.onnx", "bits,tune", "none"))

    assert not step.done
    assert all("calibration" in skip.reason for skip in step.skipped)


def test_zeros_of_sparsify_stay() -> None:
    graph = squeeze(MODELS / "mlp.onnx", "sparsify{ratio=0.1},tune{steps=100}", digits()[:512]).graph
    plain = squeeze(MODELS / "mlp.onnx", "sparsify{ratio=0.1}", digits()[:512]).graph
    one, other = ({t.name: np.asarray(peek(t)) for t in weights(each)} for each in (graph, plain))

    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name] == 0, other[name] == 0) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def weights(graph: object) -> list:  # type: ignore[type-arg]
    return [t for node in graph.nodes for t in node.inputs[1:2] if node.op == "Gemm"]  # type: ignore[attr-defined]


def test_only_what_is_asked_for_moves() -> None:
    layer = next(node for node in load(MODELS / "mlp.onnx").nodes if node.op == "Gemm")
    plain = squeeze(MODELS / "mlp.onnx", "lowrank{ratio=0.4}")
    result = squeeze(MODELS / "mlp.onnx", ["lowrank{ratio=0.4}", Tune(steps=20, only=("logits",))])
    before, after = ({t.name: np.asarray(peek(t)) for t in weights(each.graph)} for each in (plain, result))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}

    assert layer.name
    assert len(moved) <= 1 < len(before)
    assert any(skip.reason == "not asked for" for skip in tuned(result).skipped)


@pytest.mark.parametrize("first", ["int8", "palette{3}", "bits{weights=3 activations=8}", "half"])
def test_what_is_stored_in_another_form_is_trained_in_that_form(first: str) -> None:
    before = squeeze(MODELS / "mlp.onnx", first)
    after = squeeze(MODELS / "mlp.onnx", f"{first},tune{{steps=5}}")

    assert not [note for note in tuned(after).notes if "left as it is" in note]
    assert [node.op for node in after.graph.nodes] == [node.op for node in before.graph.nodes]
    assert after.report.after.bytes == before.report.after.bytes
    assert db(after) >= db(before) - 0.5


def test_pruning_in_steps_trains_after_each() -> None:
    plain = squeeze(MODELS / "mlp.onnx", "prune{ratio=0.3 steps=2}", digits())
    result = squeeze(MODELS / "mlp.onnx", "prune{ratio=0.3 steps=2 train=100}", digits())
    notes = next(step for step in result.report.steps if step.spec.startswith("prune")).notes

    assert db(result) >= db(plain) + 1
    assert result.report.after.macs == plain.report.after.macs
    assert sum(note.startswith("end to end: ") for note in notes) == 2


def with_det() -> onnx.ModelProto:
    """A layer, a determinant, for which there is no rule, and another layer."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
    agraph (float[N, 16] x) => (float[N, 8] y)
    { a = MatMul(x, W1)  r = Relu(a)  c = Reshape(r, square)  d = Det(c)  e = Unsqueeze(d, one)
      f = Mul(r, e)  y = MatMul(f, W2) }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic]] = {
        "W1": rng.standard_normal((16, 64)).astype(np.float32) / 4,
        "W2": rng.standard_normal((64, 8)).astype(np.float32) / 8,
        "square": np.array([-1, 8, 8]),
        "one": np.array([1]),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in constants.items())
    return model


def test_an_operator_without_a_rule_is_named_with_the_block_that_is_left() -> None:
    feeds = [{"x": each} for each in np.random.default_rng(1).standard_normal((24, 8, 16)).astype(np.float32)]
    notes = tuned(squeeze(with_det(), "bits{weights=2},tune{steps=20}", feeds)).notes

    assert any("left as it is, there is no rule for Det" in note for note in notes)


@pytest.mark.parametrize("option", ["steps=0", "lr=0", "temperature=0", "minutes=-1", "seed=-1"])
def test_options_that_say_nothing_are_refused(option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(ValueError, match=name):
        Tune(**{name: float(option.partition("=")[2])})  # type: ignore[arg-type]
