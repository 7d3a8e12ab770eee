from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from onnxsqueeze.cli.main import main
from onnxsqueeze.runtime import device
from onnxsqueeze.runtime.device import BEFORE_POOLS, POINTS, Chain, beside, borders, fit, profile
from onnxsqueeze.targets.profiles import find


def _point(kind: str, reads: int, more: float) -> list[float]:
    one = 0.1 + 0.02 * reads + (0.09 * more if kind == "matmul" else 0.0)
    other = 0.3 + 0.01 * reads + {"conv": 0.7, "matmul": 0.02}.get(kind, 0.0) * more
    return [one, other, one / 2, other * 0.8]


PARTS = [(kind, reads, beside(kind, reads, shape)) for kind, reads, shape, _ in POINTS]
FOUND = [(*each, _point(*each)) for each in PARTS]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("point", range(len(POINTS)))
def test_the_models_it_writes_are_valid_and_run(point: int, int8: bool) -> None:
    _, _, shape, step = POINTS[point]
    data = Chain(shape, int8).bytes(step, 2)
    onnx.checker.check_model(onnx.load_model_from_string(data))

    (y,) = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": np.ones(shape, np.float32)})

    assert np.isfinite(y).all()


def test_a_line_is_found_from_points_on_it() -> None:
    counts = (1, 10, 100, 1000)
    (element, read), error = fit([[1, n] for n in counts], [0.5 + 0.02 * n for n in counts])

    assert (element, read) == pytest.approx((0.5, 0.02))
    assert error < 1e-6


def test_neither_part_of_a_time_is_negative() -> None:
    (element, read), error = fit([[1, n] for n in (10, 100, 1000)], [0.1, 1.5, 16.0])

    assert element == 0 and read == pytest.approx(0.0155, rel=0.3)
    assert error > 0


def test_what_was_measured_is_a_target_with_its_own_times(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(profile(FOUND, "mine", "ort-x64-vnni", (0.3, 0.2)), encoding="utf-8")
    found = find(path)

    assert (found.name, found.integers.pairs, found.times.quantize) == ("mine", False, 0.3)
    assert [pytest.approx(each) for each in ((0.1, 0.02), (0.3, 0.01))] == list(found.times.conv)
    assert (found.times.gather, *found.times.weight) == pytest.approx((0.7, 0.09, 0.02))
    assert found.times.carry["MaxPool"] == pytest.approx((0.28, 0.39))
    assert [found.parallel.conv, found.parallel.other] == [pytest.approx((0.5, 0.8))] * 2
    assert {line.confidence for line in found.lines if line.profile == "mine"} == {"measured"}
    assert "off by conv 0 % in float, conv 0 % in int8" in next(x.source for x in found.lines if x.key == "times.conv")


def test_the_script_is_one_file_that_needs_nothing_of_the_project(tmp_path: Path) -> None:
    path = tmp_path / "measure.py"
    result = CliRunner().invoke(main, ["profile-target", "--script", "-o", str(path)])

    assert result.exit_code == 0
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    assert not any(line[:1] in (["import"], ["from"]) and line[1].startswith("onnxsqueeze") for line in lines)
    subprocess.run([sys.executable, "-I", "-c", f"import runpy; runpy.run_path({str(path)!r})"], check=True)


def test_the_command_writes_a_profile_and_refuses_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "measured", lambda report: FOUND)
    monkeypatch.setattr(device, "borders", lambda: (0.3, 0.2))
    good, bad = (
        CliRunner().invoke(main, ["profile-target", "--base", "ort-web", "-o", str(tmp_path / name)])
        for name in ("mine.toml", "mine.txt")
    )

    assert (good.exit_code, bad.exit_code) == (0, 2)
    assert find(tmp_path / "mine.toml").base == "ort-web"
    assert find(tmp_path / "mine.toml").verify.clock == "predicted"


def test_what_was_measured_for_this_machine_is_held_against_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "measured", lambda report: FOUND)
    monkeypatch.setattr(device, "borders", lambda: (0.3, 0.2))
    CliRunner().invoke(main, ["profile-target", "-o", str(tmp_path / "mine.toml")])

    assert find(tmp_path / "mine.toml").verify.clock == "measured"


def test_pools_are_timed_behind_the_conv_that_is_taken_off() -> None:
    kind, reads, shape, _ = POINTS[BEFORE_POOLS]

    assert (kind, reads, shape) == ("conv", 64, device.SHAPE)


def test_pairs_are_timed_between_layers_in_float_and_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int, int]] = []

    def counted(_: object, shape: tuple[int, ...], step: device.Layer, int8: bool) -> float:
        data = Chain(shape, int8).bytes(step, 5)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(folder / f"{len(counts)}.onnx")
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        ops = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        counts.append((ops.count("QuantizeLinear"), ops.count("Conv"), ops.count("QLinearConv")))
        return 5000.0 if len(counts) == 1 else 1000.0

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        monkeypatch.setattr(device.Clock, "of", counted)
        quantize, dequantize = borders()

    assert counts == [(5, 10, 5), (0, 5, 0), (1, 0, 5)]
    assert quantize + dequantize == pytest.approx(2000 / np.prod(device.SHAPE))
