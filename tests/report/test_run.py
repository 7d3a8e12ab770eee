from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.measure.cost import Cost
from onnxsqueeze.report.run import Report, StepReport

REPORT = Report(
    model="model.onnx",
    output="model.squeezed.onnx",
    pipeline="lowrank{energy=0.98}",
    calibration="images/",
    held_out="20 feeds",
    before=Cost(1000, 250, 5000, 10, 13),
    after=Cost(500, 120, None, 12, 13),
    latency_ms=(2.0, 1.0),
    latency_ratio=0.5,
    deviations=(Deviation("y", 30.0, 0.999, 0.1, 0.99), Deviation("z", 25.0, 0.99, 0.2, None, "a note")),
    steps=(
        StepReport(
            spec="lowrank{energy=0.98}",
            implicit=False,
            done=(Site("h", "at rank 4", {"rank": 4, "of": (64, 64)}, 0.001, work=object()),),
            skipped=(Skip("y", "its weight is shared"),),
            kept=True,
            reason=None,
            sqnr_db=30.0,
            nodes=(10, 12),
            bytes=(1000, 500),
            seconds=0.5,
            notes=(),
        ),
    ),
    notes=("a note",),
    seconds=1.5,
)


def with_sqnr(*values: float) -> Report:
    return replace(REPORT, deviations=tuple(Deviation(f"y{i}", each, 1.0, 0.0, None) for i, each in enumerate(values)))


def test_the_worst_output_gives_the_sqnr() -> None:
    assert REPORT.sqnr_db == 25.0
    assert with_sqnr(math.inf, 40.0).sqnr_db == 40.0
    assert with_sqnr().sqnr_db is None


def test_nan_is_the_worst_sqnr_wherever_it_stands() -> None:
    assert with_sqnr(math.nan, 30.0).sqnr_db == -math.inf
    assert with_sqnr(30.0, math.nan).sqnr_db == -math.inf


def test_json_holds_every_field() -> None:
    data: Any = json.loads(REPORT.to_json())

    assert list(data) == ["sqnr_db", *(each.name for each in fields(Report))]
    assert data == REPORT.to_dict()
    assert data["sqnr_db"] == 25.0
    assert data["before"] == {"bytes": 1000, "parameters": 250, "macs": 5000, "nodes": 10, "opset": 13}
    assert data["after"]["macs"] is None
    assert data["latency_ms"] == [2.0, 1.0]
    assert data["deviations"][1]["note"] == "a note"
    assert data["steps"][0]["skipped"] == [{"key": "y", "reason": "its weight is shared"}]


def test_json_leaves_out_what_a_site_hands_to_apply() -> None:
    data: Any = REPORT.to_dict()

    assert data["steps"][0]["done"] == [
        {"key": "h", "action": "at rank 4", "detail": {"rank": 4, "of": [64, 64]}, "error": 0.001}
    ]


def test_json_knows_neither_infinity_nor_nan() -> None:
    text = with_sqnr(math.inf, -math.inf, math.nan).to_json()

    found = [each["sqnr_db"] for each in json.loads(text, parse_constant=pytest.fail)["deviations"]]
    assert found == ["inf", "-inf", None]


def test_json_takes_whatever_a_pass_puts_into_the_detail() -> None:
    detail = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.float64("nan"),
        "d": {1: Path("x")},
        "e": True,
        "f": np.bool_(True),
        "g": np.arange(2),
    }
    site = Site("h", "done", detail)
    report = replace(REPORT, steps=(replace(REPORT.steps[0], done=(site,)),))

    data: Any = json.loads(report.to_json())
    assert data["steps"][0]["done"][0]["detail"] == {
        "a": 0.5,
        "b": 3,
        "c": None,
        "d": {"1": "x"},
        "e": True,
        "f": True,
        "g": [0, 1],
    }


def test_json_keeps_names_in_any_script_and_paths_that_are_no_text() -> None:
    odd = "\udc80.onnx"

    assert "模型.onnx" in replace(REPORT, model="模型.onnx").to_json()
    assert json.loads(replace(REPORT, model=odd).to_json().encode())["model"] == odd


def test_a_report_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        REPORT.seconds = 0.0  # type: ignore[misc]
