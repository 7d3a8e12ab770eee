from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import constant, conv_model, correlated, model
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.passes.sparsify import Sparsify

DIGITS = Path(__file__).parents[2] / "models"


def weights(made: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}


def weight_of(result: Result) -> NDArray[np.generic]:
    node = next(n for n in result.model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul"))
    return weights(result.model)[node.input[1]]


def conv(channels: int = 8, outputs: int = 16) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return conv_model(rng.normal(size=(outputs, channels, 3, 3)), (9, 9), rng.normal(size=outputs), pads=[1, 1, 1, 1])


@pytest.fixture(scope="module")
def resnet() -> dict[str, Result]:
    model = onnx.load(DIGITS / "resnet.onnx")  # beside a file, calibration data would be found
    with np.load(DIGITS / "resnet.calib.npz") as calibration:
        feeds = [{"input": calibration["input"][i : i + 8]} for i in range(0, 64, 8)]
    return {
        "fitted": squeeze(model, "sparsify{ratio=0.2}", feeds, validate="none"),
        "largest": squeeze(model, "sparsify{ratio=0.2}", validate="none"),
    }


def accuracy(result: Result) -> float:
    import onnxruntime as ort

    with np.load(DIGITS / "digits.npz") as digits:
        x, y = digits["x"][:400, None].astype(np.float32) / np.float32(255), digits["y"][:400]
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"input": x})[0].argmax(1) == y).mean())


def test_with_a_fifth_of_its_weights_a_network_still_reads_digits_and_with_the_largest_it_does_not(
    resnet: dict[str, Result],
) -> None:
    assert accuracy(resnet["fitted"]) > 0.98
    assert accuracy(resnet["largest"]) < 0.7


def test_the_budget_is_spent_over_all_layers(resnet: dict[str, Result]) -> None:
    for result in resnet.values():
        sites = result.report.steps[-1].done
        sizes = [int(site.action.split()[2]) for site in sites]
        left = [float(str(site.detail["left"])) for site in sites]
        skipped = sum(int(s.reason.split()[0]) for s in result.report.steps[-1].skipped if s.reason[0].isdigit())

        assert 0.17 < np.average(left, weights=sizes) <= 0.2
        assert skipped == 0


def test_the_report_says_what_zeros_bring_and_what_feeds_would() -> None:
    fitted = squeeze(conv(), "sparsify", correlated(8, (8, 9, 9))).report.steps[-1]
    blind = squeeze(conv(), "sparsify").report.steps[-1]

    assert "zeros shrink nothing by themselves" in fitted.notes[0]
    assert len(fitted.notes) == 1
    assert blind.notes[1].startswith("1 of 1 layers keep their largest weights as they are; with calibration=")
    assert fitted.bytes[1] == pytest.approx(fitted.bytes[0], rel=0.02)


def test_compression_finds_the_zeros(resnet: dict[str, Result]) -> None:
    before = gzip.compress((DIGITS / "resnet.onnx").read_bytes())
    after = gzip.compress(resnet["fitted"].model.SerializeToString())

    assert len(after) < 0.5 * len(before)


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_zeros_stay_zero_through_int8(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.contract.bench.Bench.latency", lambda *_: 1.0)
    feeds = correlated(8, (8, 9, 9))
    sparse = squeeze(conv(), f"sparsify{{ratio={ratio}}}", feeds, validate="none")
    both = squeeze(conv(), f"sparsify{{ratio={ratio}}},int8", feeds)
    expected = weight_of(sparse) == 0
    int8 = [w for w in weights(both.model).values() if w.dtype == np.int8 and w.size == expected.size]

    assert both.report.steps[-1].done
    assert expected.mean() == pytest.approx(1 - ratio, abs=0.05)
    assert len(int8) == 1
    assert not int8[0].reshape(expected.shape)[expected].any()


def test_a_pattern_runs_along_the_input_channels() -> None:
    found = weight_of(squeeze(conv(), "sparsify{pattern=2:4}", correlated(8, (8, 9, 9)), validate="none"))
    groups = np.count_nonzero(found.reshape(16, 2, 4, 3, 3), axis=2)

    assert (groups == 2).all()


def test_a_pattern_runs_along_the_inputs_of_a_matmul_and_of_both_layouts_of_gemm() -> None:
    rng = np.random.default_rng(0)
    for op, transposed in (("MatMul", 0), ("Gemm", 0), ("Gemm", 1)):
        shape = (40, 32) if transposed else (32, 40)
        node = (
            helper.make_node(op, ["x", "w"], ["y"], transB=1) if transposed else helper.make_node(op, ["x", "w"], ["y"])
        )
        made = model([node], [constant("w", rng.normal(size=shape))], {"x": [1, 32]}, {"y": ["n", 40]})
        result = squeeze(made, "sparsify{pattern=2:4}", correlated(12, (32,)), validate="none")
        values = next(w for w in weights(result.model).values() if w.size == 1280)
        rows = values if values.shape == (40, 32) else values.T  # another layout is free to the engine

        assert (np.count_nonzero(rows.reshape(40, 8, 4), axis=2) == 2).all()


def test_layers_that_do_not_fit_the_pattern_stay_as_they_are() -> None:
    result = squeeze(conv(6, 32), "sparsify{pattern=2:4}", correlated(4, (6, 9, 9)), validate="none")

    assert [skip.reason for skip in result.report.steps[-1].skipped] == ["its 6 input channels are no multiple of 4"]


def test_the_bias_takes_over_the_mean_error() -> None:
    import onnxruntime as ort

    feeds = correlated(48, (8, 9, 9))
    result = squeeze(conv(), "sparsify{ratio=0.2}", feeds, validate="none")
    sessions = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (conv(), result.model)
    ]
    before, after = (np.concatenate([s.run(None, feed)[0] for feed in feeds]) for s in sessions)
    error = (after - before).astype(np.float64)

    assert np.abs(error.mean((0, 2, 3))).max() < 0.02 * error.std()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparsify{ratio=1.5}", "ratio is over 0 and under 1"),
        ("sparsify{pattern=4:2}", "pattern is N:M with N under M"),
        ("sparsify{pattern=half}", "pattern is N:M with N under M"),
        ("sparsify{pattern=2:4 ratio=0.5}", "ratio and pattern exclude each other"),
    ],
)
def test_bad_options_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        squeeze(conv(), text)


def test_grouped_convolutions_and_shared_weights_are_skipped_with_the_reason() -> None:
    grouped = conv_model(np.random.default_rng(0).normal(size=(16, 4, 3, 3)), (9, 9), group=2)
    report = squeeze(grouped, "sparsify", validate="none").report

    assert [skip.reason for skip in report.steps[-1].skipped] == ["it is a grouped convolution"]


def test_the_pass_is_immutable_and_says_what_it_does() -> None:
    assert Sparsify(ratio=0.3) == Sparsify(ratio=0.3)
    assert "zero" in Sparsify.summary
