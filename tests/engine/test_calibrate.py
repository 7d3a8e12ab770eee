"""Statistics by many workers: the same bytes however the work is shared out, stopped and begun again."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxsqueeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine import chunks
from onnxsqueeze.engine.calibrate import calibrate, merge
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.statistics.histogram import Histogram
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.statistics.needs import Gram, Range
from onnxsqueeze.statistics.partial import Partial
from onnxsqueeze.statistics.store import load_statistics

MLP = Path(__file__).parents[2] / "models" / "mlp.onnx"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two layers of 12 and 4 neurons."""
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 12), "b": (12, 4)}
    weights = [numpy_helper.from_array(rng.normal(0, 1, s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "b"], ["y"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def feeds(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1 + i % 3, (2, 8)).astype(np.float32)} for i in range(count)]


def test_the_same_bytes_for_one_process_any_executor_and_shards(small: Path, tmp_path: Path) -> None:
    data = feeds(700)
    calibrate(small, data, output=tmp_path / "one.npz", every_feed=True)
    calibrate(small, data, ThreadPoolExecutor(3), output=tmp_path / "many.npz", every_feed=True)
    shards = [tmp_path / f"{k}.npz" for k in range(1, 6)]
    for k, shard in enumerate(shards, 1):
        calibrate(small, data, output=shard, shard=(k, 5))
    merge([shards[i] for i in (3, 0, 4, 2, 1)], tmp_path / "merged.npz")

    whole = (tmp_path / "one.npz").read_bytes()
    assert (tmp_path / "many.npz").read_bytes() == whole
    assert (tmp_path / "merged.npz").read_bytes() == whole


def test_squeeze_takes_the_statistics_and_measures_nothing_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(small, feeds(80), output=tmp_path / "s.npz")
    direct = onnxsqueeze.squeeze(small, "int8", feeds(80))
    monkeypatch.setattr("onnxsqueeze.engine.step.collect", lambda *args, **named: pytest.fail("measured again"))
    given = onnxsqueeze.squeeze(small, "int8", feeds(80), stats=[tmp_path / "s.npz"])

    assert [site.key for site in given.report.steps[-1].done] == [site.key for site in direct.report.steps[-1].done]
    assert given.report.sqnr_db == pytest.approx(direct.report.sqnr_db, abs=1.0)


def test_held_out_feeds_are_not_measured(small: Path, tmp_path: Path) -> None:
    found = calibrate(small, feeds(80), output=tmp_path / "s.npz")

    assert found.feeds == 70
    statistics = load_statistics([tmp_path / "s.npz"])[found.stage]
    assert {moments.runs for need, moments in statistics.moments.items() if isinstance(need, Gram)} == {70}


def test_a_killed_worker_is_replaced(small: Path, tmp_path: Path) -> None:
    for each, feed in enumerate(feeds(300)):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{each:03}.npz", **feed)
    calibrate(small, tmp_path / "data", output=tmp_path / "one.npz", every_feed=True)
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "calibrating" and done == 1 and not killed:
            killed.append(multiprocessing.active_children()[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    calibrate(small, tmp_path / "data", 2, output=tmp_path / "two.npz", every_feed=True, progress=kill)

    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_a_run_that_was_stopped_goes_on(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = feeds(64 * 40)
    calibrate(small, data, output=tmp_path / "one.npz", every_feed=True)
    measured: list[list[int]] = []
    real = chunks.results

    def stopped(*given: Any) -> Any:
        for count, result in enumerate(real(*given)):
            if count == 20:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr("onnxsqueeze.engine.calibrate.results", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate(small, data, output=tmp_path / "two.npz", every_feed=True)
    assert not (tmp_path / "two.npz").exists()

    def noted(*given: Any) -> Any:
        measured.append(given[-1])
        return real(*given)

    monkeypatch.setattr("onnxsqueeze.engine.calibrate.results", noted)
    calibrate(small, data, output=tmp_path / "two.npz", every_feed=True)

    assert measured[0][0] == 16
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert not (tmp_path / "two.npz.part").exists()


def test_what_was_kept_of_another_run_is_not_taken(small: Path, tmp_path: Path) -> None:
    calibrate(small, feeds(200, 1), output=tmp_path / "other.npz", shard=(1, 2))
    (tmp_path / "other.npz").rename(tmp_path / "s.npz.part")
    calibrate(small, feeds(200), output=tmp_path / "s.npz")
    calibrate(small, feeds(200), output=tmp_path / "alone.npz")

    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()


def test_it_ends_early_when_nothing_moves_and_at_the_same_chunk_for_any_number_of_workers(
    small: Path, tmp_path: Path
) -> None:
    one = feeds(8)
    data = [one[i % 8] for i in range(64 * 60)]
    found = calibrate(small, data, output=tmp_path / "early.npz")
    calibrate(small, data, ThreadPoolExecutor(3), output=tmp_path / "many.npz")

    assert found.converged and found.chunks == 16
    assert (tmp_path / "many.npz").read_bytes() == (tmp_path / "early.npz").read_bytes()
    assert not calibrate(small, data, output=tmp_path / "all.npz", every_feed=True).converged
    louder = [{"x": feed["x"] * (1 + i // 400)} for i, feed in enumerate(data)]
    assert not calibrate(small, louder, output=tmp_path / "l.npz").converged


@pytest.mark.parametrize("by", ["here", "executor"])
def test_a_bad_feed_names_itself(small: Path, tmp_path: Path, by: str) -> None:
    (tmp_path / "data").mkdir()
    for each, feed in enumerate(feeds(20)):
        np.savez(tmp_path / "data" / f"{each:03}.npz", x=feed["x"] if each != 13 else feed["x"][:, :7])
    with pytest.raises(FeedError, match=r"013\.npz"):
        calibrate(
            small, tmp_path / "data", ThreadPoolExecutor(3) if by == "executor" else None, output=tmp_path / "s.npz"
        )
    assert not (tmp_path / "s.npz").exists()


def test_parts_that_do_not_belong_together_are_refused(small: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    calibrate(small, feeds(400), output=a, shard=(1, 2))
    calibrate(small, feeds(400, 1), output=b, shard=(2, 2))
    calibrate(small, feeds(400), output=c)
    for parts, words in (
        ([a], "missing: 3 to 5"),
        ([a, b], "different runs"),
        ([a, a], "give each part once"),
        ([c], "no part"),
    ):
        with pytest.raises(UsageError, match=words):
            merge(parts, tmp_path / "out.npz")
    with pytest.raises(UsageError, match="merge"):
        onnxsqueeze.squeeze(small, "int8", feeds(8), stats=[a])
    with pytest.raises(UsageError, match="overwrite a part"):
        merge([a], a)
    assert not (tmp_path / "out.npz").exists()


def test_the_command_line(tmp_path: Path) -> None:
    run = partial(CliRunner().invoke, main)
    out = str(tmp_path / "s.npz")
    done = run(["calibrate", str(MLP), "-o", out, "-p", "int8"])
    assert done.exit_code == 0 and "use it with --stats" in " ".join(done.output.split())
    for k in (1, 2):
        assert (
            run(["calibrate", str(MLP), "-o", f"{tmp_path}/{k}.npz", "-p", "int8", "--shard", f"{k}/2"]).exit_code == 0
        )
    assert run(["merge", f"{tmp_path}/1.npz", f"{tmp_path}/2.npz", "-o", f"{tmp_path}/m.npz"]).exit_code == 0
    assert Path(tmp_path, "m.npz").read_bytes() == Path(out).read_bytes()
    for arguments, words in (
        (["--shard", "3/2"], "is no shard"),
        (["--workers", "2", "--dask", "local"], "give one"),
        (["-p", "clean"], "nothing to measure"),
        (["-o", str(MLP)], "would overwrite the model"),
    ):
        failed = run(["calibrate", str(MLP), "-o", out, *arguments])
        assert failed.exit_code == 2 and words in " ".join(failed.output.split())


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_tree_adds_up_alike_in_any_order(count: int, order: random.Random) -> None:
    rng = np.random.default_rng(count)
    chunks = []
    for _ in range(count):
        histogram, moments = Histogram(), Moments(3, rng.normal(0, 1, 2), rng.normal(0, 1e8, (2, 2)))
        histogram.update(rng.normal(0, 1, 50).astype(np.float32))
        chunks.append(Statistics({Range("t"): histogram}, {Gram("t"): moments}))
    straight, mixed = Partial("k", "", count), Partial("k", "", count)
    for i in range(count):
        straight.add(i, chunks[i])
    for i in order.sample(range(count), count):
        mixed.add(i, chunks[i])

    one, two = straight.whole(), mixed.whole()
    assert len(straight.nodes) == 1
    assert one.moments[Gram("t")].gram is not None
    assert np.array_equal(one.moments[Gram("t")].total, two.moments[Gram("t")].total)
    assert np.array_equal(one.moments[Gram("t")].second, two.moments[Gram("t")].second)
    assert np.array_equal(one.ranges[Range("t")].counts, two.ranges[Range("t")].counts)
    assert two.ranges[Range("t")].samples == count
