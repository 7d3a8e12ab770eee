"""``distill``: a student that knows nothing learns what its teachers answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import parser

from onnxsqueeze import UsageError, distill
from onnxsqueeze.cli.distill import command
from onnxsqueeze.engine.distill import Distilled
from onnxsqueeze.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"
STEPS = 400


def student(hidden: int = 24, seed: int = 0, output: str = "logits") -> onnx.ModelProto:
    """Two layers with random weights."""
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        agraph (float[N, 1, 28, 28] input) => (float[N, 10] {output})
        {{ f = Flatten(input)  h = Gemm(f, W1, b1)  r = Relu(h)  {output} = Gemm(r, W2, b2) }}"""
    )
    rng = np.random.default_rng(seed)
    for name, shape in (("W1", (784, hidden)), ("b1", (hidden,)), ("W2", (hidden, 10)), ("b2", (10,))):
        values = rng.standard_normal(shape) * (2 / shape[0]) ** 0.5 * (len(shape) > 1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model


def digits(count: int = 640) -> dict[str, NDArray[np.generic]]:
    with np.load(MODELS / "digits.npz") as data:
        return {"input": np.asarray(data["x"][:count, None] / 255, np.float32), "classes": data["y"][:count]}


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, **digits())  # type: ignore[arg-type]
    return path


def unlabelled() -> NDArray[np.generic]:
    return digits()["input"]


def share_right(model: onnx.ModelProto) -> float:
    """The share of digits that training has not seen."""
    with np.load(MODELS / "digits.npz") as data:
        x, y = np.asarray(data["x"][640:, None] / 255, np.float32), data["y"][640:]
    return float((np.asarray(Session(model).run({"input": x})["logits"]).argmax(-1) == y).mean())


@pytest.mark.parametrize("outputs", [None, "logits:scores"])
def test_a_student_learns_without_labels(outputs: str | None) -> None:
    before = student()
    found = distill(MODELS / "mlp.onnx", before, unlabelled(), steps=STEPS, outputs=outputs)

    assert [loss.kind for loss in found.losses] == ["squares" if outputs is None else "scores"]
    assert top1(found.before) < 0.4
    assert top1(found.after) > 0.8
    assert share_right(found.model) > 0.8
    assert before == student(), "what was given is not touched"


def top1(deviations: object) -> float:
    return float(deviations[0].top1)  # type: ignore[index]


def test_labels_are_mixed_in(calib: Path) -> None:
    mixed, alone = (
        distill(
            MODELS / "mlp.onnx", student(), calib, steps=STEPS, outputs="logits:scores", labels="classes", mix=mix
        ) for mix in (0.5, 1.0)
    )  # fmt: skip

    assert [loss.kind for loss in mixed.losses] == ["labels", "scores"]
    assert [loss.weight for loss in mixed.losses] == [0.5, 0.5]
    assert [loss.kind for loss in alone.losses] == ["labels"]
    assert min(share_right(each.model) for each in (mixed, alone)) > 0.8


def test_several_teachers_are_averaged() -> None:
    teachers = [MODELS / "mlp.onnx", MODELS / "dwcnn.onnx"]
    found = distill(teachers, student(), unlabelled()[:160], steps=5)
    x = unlabelled()[:1]
    mean = np.mean([np.asarray(Session(each).run({"input": x})["logits"]) for each in teachers], axis=0)
    own = distill(student(seed=3), student(seed=3), unlabelled()[:160], steps=1)

    assert mean.shape == (1, 10)
    assert top1(found.before) < 0.5
    assert own.fitted.before < 1e-9, "a student that is its teacher has nothing to learn"


def test_the_same_seed_gives_the_same_bytes() -> None:
    def made(seed: int) -> bytes:
        found: Distilled = distill(MODELS / "mlp.onnx", student(), unlabelled()[:160], steps=5, seed=seed)
        return bytes(found.model.SerializeToString())

    assert made(1) == made(1) != made(2)


def test_an_output_of_another_name_learns_from_the_one_in_its_place() -> None:
    found = distill(MODELS / "mlp.onnx", student(output="y"), unlabelled()[:160], steps=5)

    assert [each.output for each in found.after] == ["y"]
    assert found.fitted.after < found.fitted.before


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"labels": "y"}, "no labels 'y'; it has 'classes', 'input'"),
        ({"labels": "classes"}, "outputs="),
        ({"steps": 0}, "steps is over 0"),
        ({"mix": 2.0}, "mix is from 0"),
        ({"minutes": -1.0}, "minutes is at least 0"),
    ],
)
def test_what_cannot_be_done_is_said(how: dict[str, object], words: str, calib: Path) -> None:
    with pytest.raises(UsageError, match=words.replace("'", ".")):
        distill(MODELS / "mlp.onnx", student(), calib, **how)  # type: ignore[arg-type]


def test_models_that_do_not_fit_are_refused() -> None:
    other = student()
    other.graph.input[0].name = other.graph.node[0].input[0] = "pixels"

    with pytest.raises(UsageError, match="other inputs: input and pixels"):
        distill(MODELS / "mlp.onnx", other, unlabelled())


def test_the_command_writes_the_student_and_says_how_it_went(tmp_path: Path, calib: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(student(), path)
    flags = ["--calib", str(calib), "--steps", "200", "--labels", "classes", "--outputs", "logits:scores"]
    done = CliRunner().invoke(command, [str(MODELS / "mlp.onnx"), str(path), *flags])

    assert done.exit_code == 0, done.output
    assert "divergence" in done.output and "loss on feeds to judge by" in done.output
    assert share_right(onnx.load(tmp_path / "small.distilled.onnx")) > 0.4
    assert onnx.load(path) == student()


def test_one_model_is_too_few() -> None:
    done = CliRunner().invoke(command, ["student.onnx"])

    assert isinstance(done.exception, UsageError)
    assert "a teacher and a student" in str(done.exception)
