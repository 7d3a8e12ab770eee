"""What a cluster of Dask measures is what one process measures."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.calibrate import calibrate
from onnxsqueeze.engine.sensitivity import sensitivity
from onnxsqueeze.search.auto import auto
from onnxsqueeze.search.space import Candidate

distributed = pytest.importorskip("distributed", reason="Dask is not installed: .ci/dask runs these tests with it")
pytestmark = pytest.mark.filterwarnings("default")

MLP = Path(__file__).parents[2] / "models" / "mlp.onnx"


@pytest.fixture(scope="module")
def client() -> Any:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def feeds(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"input": rng.uniform(0, 1, (1, 1, 28, 28)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("scattered", [False, True])
def test_the_same_bytes(client: Any, tmp_path: Path, scattered: bool) -> None:
    data = feeds(400)
    calibrate(MLP, data, output=tmp_path / "one.npz")
    share = partial(client.scatter, broadcast=True) if scattered else None
    calibrate(MLP, data, client.get_executor(), output=tmp_path / "two.npz", share=share)

    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_a_killed_worker(client: Any, tmp_path: Path) -> None:
    data = feeds(64 * 12)
    calibrate(MLP, data, output=tmp_path / "one.npz", every_feed=True)
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "calibrating" and not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    calibrate(
        MLP, data, client.get_executor(), output=tmp_path / "two.npz", every_feed=True, progress=kill,
        share=partial(client.scatter, broadcast=True),
    )  # fmt: skip

    assert killed
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_a_search_and_a_study_of_sensitivity(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [
        *(Candidate("", 1.0, numbers) for numbers in ("float", "6 bits", "4 bits")),
        *(Candidate("lowrank", 0.368, numbers) for numbers in ("float", "4 bits")),
    ]
    monkeypatch.setattr("onnxsqueeze.search.hunt.candidates", lambda data, packed: few)
    given: dict[str, Any] = {"executor": client.get_executor(), "share": partial(client.scatter, broadcast=True)}
    data = feeds(40)
    found = [auto(MLP, "auto{size=0.2}", data, **each) for each in ({}, given)]
    tries = [each.report.search.tries for each in found if each.report.search is not None]
    studies = [sensitivity(MLP, "sparsify", data, **each).layers for each in ({}, given)]

    assert {(each.pipeline, each.measured.error) for each in tries[0] if each.measured} == {
        (each.pipeline, each.measured.error) for each in tries[1] if each.measured
    }
    assert len(tries[0]) == len(tries[1]) > 3
    assert found[0].model.SerializeToString() == found[1].model.SerializeToString()
    assert studies[0] == studies[1]


def test_the_command_line_starts_its_own_cluster_and_says_who_does_not_answer(tmp_path: Path) -> None:
    run = partial(CliRunner().invoke, main)
    assert run(["calibrate", str(MLP), "-o", f"{tmp_path}/d.npz", "--dask", "local"]).exit_code == 0
    assert run(["calibrate", str(MLP), "-o", f"{tmp_path}/s.npz"]).exit_code == 0
    assert Path(tmp_path, "d.npz").read_bytes() == Path(tmp_path, "s.npz").read_bytes()
    failed = run(["calibrate", str(MLP), "-o", f"{tmp_path}/s.npz", "--dask", "tcp://127.0.0.1:9"])
    assert failed.exit_code == 2 and "no scheduler of Dask answers" in failed.output
