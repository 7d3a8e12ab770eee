"""``auto`` from end to end on small models: what it keeps to, remembers and refuses. No test looks at a clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models

from onnxsqueeze import Recipe, ToleranceError, UsageError, squeeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine import course, step
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import Latency
from onnxsqueeze.search.auto import auto
from onnxsqueeze.search.family import family
from onnxsqueeze.search.pick import pick

FEEDS = 40


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models take the same time, and time stand still."""
    for module in ("search.trials", "engine.latencies", "contract.bench"):
        monkeypatch.setattr(f"onnxsqueeze.{module}.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.setattr("onnxsqueeze.search.hunt.time.perf_counter", lambda: 0.0)


@pytest.fixture
def model() -> onnx.ModelProto:
    return small_models.mlp()


@pytest.fixture
def feeds(model: onnx.ModelProto) -> list[dict[str, Any]]:
    return small_models.feeds(model, FEEDS)


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.search.hunt.PATIENCE", 1)
    monkeypatch.setattr("onnxsqueeze.search.hunt.ENOUGH", dict.fromkeys((60.0, 300.0, 1200.0), 0.5))


@pytest.mark.usefixtures("few_tries")
def test_a_limit_is_kept_and_no_single_pass_within_it_is_more_accurate(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = auto(model, "auto{size=0.4}", feeds, stats=[tmp_path / "statistics.npz"])
    search = result.report.search
    assert search is not None
    chosen = search.tries[search.chosen]
    assert chosen.measured is not None
    within = [each.measured for each in search.tries if each.measured is not None and each.measured.size <= 0.4]

    assert result.report.after.bytes <= 0.4 * result.report.before.bytes
    assert chosen.measured.error <= 1.02 * min(each.error for each in within)
    assert search.feeds == (35, 3, 2)
    assert (tmp_path / "statistics.npz").exists()
    assert {"canonical", "int8", "bits{weights=4}"} <= {each.pipeline for each in search.tries}
    assert all(each.recipe for each in (search.tries[number] for number in search.frontier))
    assert json.loads(result.report.to_json())["search"]["correlation"].keys() == {"size", "latency", "error"}


@pytest.mark.usefixtures("few_tries")
def test_what_is_found_is_a_recipe_that_repeats_to_the_byte(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = auto(model, "auto", feeds, output=tmp_path / "a.onnx")
    squeeze(model, result.recipe, feeds, output=tmp_path / "b.onnx")
    search = result.report.search
    assert search is not None
    point = search.tries[search.frontier[0]]
    again = squeeze(model, Recipe.parse(point.recipe), feeds).report
    assert point.measured is not None

    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert again.after.bytes / again.before.bytes == point.measured.size


@pytest.mark.usefixtures("few_tries")
def test_another_search_takes_what_was_measured_from_the_cache(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = auto(model, "auto{size=0.5}", feeds, cache=tmp_path / "cache")
    ran: list[str] = []
    run_pass: Callable[..., Any] = step.run_pass

    def counted(pass_: Any, *rest: Any) -> Any:
        ran.append(pass_.name)
        return run_pass(pass_, *rest)

    monkeypatch.setattr(course, "run_pass", counted)
    monkeypatch.setattr("onnxsqueeze.search.hunt.ENOUGH", dict.fromkeys((60.0, 300.0, 1200.0), 1e9))
    second = auto(model, "auto{size=0.5}", feeds, cache=tmp_path / "cache")
    third = auto(model, "auto{size=0.9}", feeds, cache=tmp_path / "cache")
    assert first.report.search and second.report.search and third.report.search

    assert ran == []
    assert second.model.SerializeToString() == first.model.SerializeToString()
    assert second.report.steps == first.report.steps
    assert all(each.remembered for each in third.report.search.tries)
    assert third.report.sqnr_db is not None and second.report.sqnr_db is not None
    assert third.report.sqnr_db >= second.report.sqnr_db
    assert {path.suffix for path in (tmp_path / "cache").glob("*/*")} == {".json", ".toml", ".onnx"}
    auto(model, "auto", feeds[:20], cache=tmp_path / "cache")
    assert ran, "other feeds are another search"


@pytest.mark.usefixtures("few_tries")
def test_a_cache_that_is_damaged_is_measured_anew(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = auto(model, "auto{size=0.5}", feeds, cache=tmp_path)
    for number, path in enumerate(sorted(tmp_path.glob("*/*"))):
        path.write_bytes((b"", b"{}", b'{"pipeline": 1, "found": []}', b"\x80\x04K\x01.")[number % 4])

    assert auto(model, "auto{size=0.5}", feeds, cache=tmp_path).report.after == first.report.after


@pytest.mark.usefixtures("few_tries")
def test_what_cannot_be_reached_is_said_with_what_is_nearest(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ToleranceError, match="is nearest; nothing was written") as caught:
        auto(model, "auto{size=0.01}", feeds, output=tmp_path / "a.onnx")

    assert caught.value.report.search.tries
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_tries")
def test_without_data_only_forms_of_numbers_are_tried_and_that_is_said(model: onnx.ModelProto) -> None:
    report = auto(model).report
    assert report.search is not None

    assert {each.pipeline.partition("{")[0] for each in report.search.tries} <= {"canonical", "half", "int8", "bits"}
    assert any(note.startswith("without calibration data only forms of numbers were tried") for note in report.notes)


def test_what_cannot_be_searched_is_refused_before_any_work(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="effort is quick, default, max, not 'some'"):
        auto(model, effort="some")
    with pytest.raises(UsageError, match="drop one of them"):
        auto(model, validate="none")
    with pytest.raises(UsageError, match="auto is a search over pipelines"):
        squeeze(model, "auto")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        auto(model, cache=tmp_path / "file")


@pytest.mark.usefixtures("few_tries")
def test_a_score_limits_what_may_be_lost(model: onnx.ModelProto, feeds: list[dict[str, Any]]) -> None:
    def near(outputs: dict[str, Any], feed: dict[str, Any]) -> float:
        return 1.0 - float(np.abs(outputs["y"] - feed["label"]).max())

    labelled = [{**feed, "label": Session(model).run(feed)["y"]} for feed in feeds]
    report = auto(model, "auto{drop=1%}", labelled, score=near).report
    search = report.search
    assert search is not None and report.score is not None
    chosen = search.tries[search.chosen]

    assert search.score == "near"
    assert report.score.drop <= 0.01 and chosen.confirmed is not None and chosen.confirmed <= 0.01
    assert max(each.measured.drop for each in search.tries if each.measured is not None) > 0.01
    assert chosen.measured is not None and chosen.measured.size < 0.5


@pytest.mark.usefixtures("few_tries")
def test_what_is_packed_counts_if_it_is_asked_for(model: onnx.ModelProto, feeds: list[dict[str, Any]]) -> None:
    search = auto(model, "auto{packed=4kB}", feeds).report.search
    assert search is not None
    found = search.tries[search.chosen].measured
    assert found is not None and found.packed is not None

    assert found.packed * len(model.SerializeToString()) <= 4000
    assert found.packed < found.size
    assert any("code" in each.pipeline for each in search.tries)


@pytest.mark.usefixtures("few_tries")
def test_the_command_line_searches_where_no_pipeline_is_given(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "m.calib").mkdir()
    for number, feed in enumerate(feeds):
        np.savez(tmp_path / "m.calib" / f"{number}.npz", **feed)
    arguments = ["--effort", "quick", "--html", str(tmp_path / "m.html"), "--save-recipe", str(tmp_path / "m.toml")]
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "m.onnx"), *arguments])
    shown = capsys.readouterr().out
    page = (tmp_path / "m.html").read_text(encoding="utf-8")

    assert exit_.value.code == 0
    assert "auto: the least size and latency, drop at most 0.5 %" in shown
    assert "rank correlation of predicted and measured" in shown
    assert "<h2>What was tried</h2>" in page and 'href="#try-' in page
    assert Recipe.load(tmp_path / "m.toml").steps
    for wrong in (["-p", "int8", "--effort", "quick"], ["-p", "int8", "--cache", "x"], ["-p", "auto,int8"]):
        with pytest.raises(SystemExit) as exit_:
            main([str(tmp_path / "m.onnx"), *wrong])
        assert exit_.value.code == 2


@pytest.mark.usefixtures("few_tries")
def test_a_family_gets_smaller_and_less_accurate_and_one_is_picked_by_its_manifest(
    model: onnx.ModelProto, feeds: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = family(model, tmp_path / "f", 3, feeds, by="size")
    manifest = tmp_path / "f" / "manifest.json"
    table = json.loads(manifest.read_text(encoding="utf-8"))
    sizes = [(tmp_path / "f" / each.file).stat().st_size for each in found.members]
    first, last = found.members[0], found.members[-1]

    assert len(found.members) >= 2
    assert sizes == [each.bytes for each in found.members] == sorted(sizes, reverse=True)
    assert [each.error for each in found.members] == sorted(each.error for each in found.members)
    assert table["members"][0]["pipeline"] == first.pipeline
    for each in found.members:
        squeeze(model, Recipe.load(tmp_path / "f" / each.recipe), feeds, output=tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "f" / each.file).read_bytes()
    assert pick(manifest, {}) == tmp_path / "f" / first.file
    assert pick(table, {"bytes": last.bytes}) == Path(last.file)
    assert pick(table, {"bytes": 1}) == Path(last.file)


def test_a_family_that_cannot_be_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    for wrong in ({"count": 1}, {"by": "speed"}, {"effort": "none"}):
        with pytest.raises(UsageError):
            family(model, tmp_path / "f", **wrong)
