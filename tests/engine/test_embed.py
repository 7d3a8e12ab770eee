"""Inside other programs: models as they hold them, results that travel, logs, progress and threads."""

from __future__ import annotations

import logging
import pickle
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from small_models import MODELS, feeds

import onnxsqueeze
from onnxsqueeze import Result, UsageError, squeeze
from onnxsqueeze.runtime.timing import Latency

ROOT = Path(__file__).parents[2]


@pytest.fixture
def conv() -> onnx.ModelProto:
    return MODELS["conv_bn_relu"]()


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.contract.bench.latency", lambda *_: Latency((1.0, 1.0), 1.0, 1.0))


def bytes_of(result: Result) -> bytes:
    return bytes(result.model.SerializeToString(deterministic=True))


def test_all_kinds_of_models_give_the_same_result(conv: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(conv, tmp_path / "conv.onnx")
    graph = onnxsqueeze.load(tmp_path / "conv.onnx")
    found = [bytes_of(squeeze(each, "int8", feeds(conv))) for each in (conv, tmp_path / "conv.onnx", graph)]

    assert found == found[:1] * 3
    assert onnxsqueeze.load(graph) is not graph


def test_an_onnx_ir_model_goes_in_and_comes_out(conv: onnx.ModelProto, tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    onnx.save(
        MODELS["conv_bn_relu"](),
        tmp_path / "conv.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="conv.data",
    )
    expected = squeeze(conv, "int8", feeds(conv)).report
    for model in (ir.from_proto(conv), ir.load(tmp_path / "conv.onnx")):
        result = squeeze(model, "int8", feeds(conv))

        assert result.report.sqnr_db == expected.sqnr_db
        assert isinstance(result.to_ir(), ir.Model)
        assert ir.to_proto(result.to_ir()).graph.node == result.model.graph.node


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a model is a path, a ModelProto, an onnx_ir\.Model, .* not int"):
        squeeze(3, "int8")  # type: ignore[arg-type,unused-ignore]


def test_a_model_in_memory_is_squeezed_without_temporary_files(
    conv: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr("onnxsqueeze.runtime.session.TemporaryDirectory", refuse)
    monkeypatch.setattr("onnxsqueeze.runtime.session.IN_MEMORY", 0)
    result = squeeze(conv, "lowrank,int8", feeds(conv))

    assert result.report.after.bytes < result.report.before.bytes


def test_a_result_survives_pickling(conv: onnx.ModelProto) -> None:
    result = squeeze(conv, "int8", feeds(conv))
    again = pickle.loads(pickle.dumps(result))

    assert bytes_of(again) == bytes_of(result)
    assert again.report == result.report
    assert again.recipe == result.recipe
    assert "<iframe" in again._repr_html_()


def test_a_tolerance_error_survives_pickling(conv: onnx.ModelProto) -> None:
    with pytest.raises(onnxsqueeze.ToleranceError) as error:
        squeeze(conv, "int8", feeds(conv), min_sqnr=200)
    again = pickle.loads(pickle.dumps(error.value))

    assert str(again) == str(error.value)
    assert again.report == error.value.report


def test_a_notebook_shows_the_verdict_the_table_and_the_picture(conv: onnx.ModelProto) -> None:
    cell = squeeze(conv, "int8", feeds(conv))._repr_html_()

    assert cell.startswith("<p>The model is ")
    assert 'srcdoc="&lt;!doctype html&gt;' in cell.lower()
    assert "file size" in cell
    assert "&quot;boxes&quot;" in cell


def test_steps_are_logged(conv: onnx.ModelProto, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onnxsqueeze"):
        squeeze(conv, "clean", feeds(conv))

    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "squeezing a model in memory with clean",
        "clean: 3 done",
    ]


def test_progress_names_stages_and_never_passes_the_total(conv: onnx.ModelProto) -> None:
    calls: list[tuple[str, int, int]] = []
    squeeze(conv, "lowrank,int8", feeds(conv), progress=lambda *call: calls.append(call))

    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages[0] == "loading"
    assert {"calibrating", "lowrank", "int8", "timing"} <= set(stages)
    assert all(done >= 0 and (done <= total or not total) for _, done, total in calls)


def test_threads_squeeze_different_models_as_one_thread_does() -> None:
    names = ["conv_bn_relu", "attention", "branches", "opset_11"]

    def run(name: str) -> bytes:
        model: Any = MODELS[name]()
        return bytes_of(squeeze(model, "lowrank,int8", feeds(model)))

    alone = [run(name) for name in names]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(run, names * 2))
    finally:
        sys.setswitchinterval(interval)

    assert together == alone * 2
