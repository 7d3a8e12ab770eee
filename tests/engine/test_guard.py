"""A pass that wrecks the model is tried in its mildest form, and rolled back if that does not help."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import parse

from onnxsqueeze import squeeze
from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.passes.depthwise import Depthwise
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.passes.lowrank import LowRank
from onnxsqueeze.passes.prune import Prune
from onnxsqueeze.passes.sparsify import Sparsify
from onnxsqueeze.report.verdict import sentence, where

NET = """m (float[N, 32] x) => (float[N, 32] y) <float[32, 128] w1, float[128, 128] w2, float[128, 32] w3>
{ a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3) }"""


def feeds(count: int = 24) -> list[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((8, 32)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("pipeline", ["sparsify{ratio=0.02}", "prune{ratio=0.05}"])
def test_what_collapses_is_done_mildly_or_not_at_all(pipeline: str) -> None:
    report = squeeze(parse(NET), pipeline, feeds()).report
    step = report.steps[-1]

    told = " ".join([*step.notes, step.reason or ""])
    assert "the answers collapse to" in told
    assert "its mildest form" in told
    assert step.kept == bool(step.done)
    assert report.sqnr_db is not None
    assert report.sqnr_db >= 3


def test_the_mildest_forms() -> None:
    assert Int8().milder() == Int8(arithmetic=False)
    assert Int8(arithmetic=False).milder() is None
    assert LowRank(ratio=0.2).milder() == LowRank()
    assert LowRank().milder() is None
    assert Prune(ratio=0.2, steps=3).milder() == Prune()
    assert Depthwise(ratio=0.2).milder() == Depthwise()
    assert Sparsify(ratio=0.1).milder() == Sparsify()
    assert Sparsify().milder() is None


def test_weights_are_only_stored_without_arithmetic() -> None:
    step = squeeze(parse(NET), "int8{arithmetic=false}", feeds()).report.steps[-1]

    assert step.done
    assert {site.action for site in step.done} <= {"stored", "stored in 16 bits"}


def test_an_output_is_told_in_words() -> None:
    scores = Deviation(
        "y", 25.0, 1.0, 0.1, 0.996, kind="scores", rows=512, kl=0.004, worst_feed=3, worst_channel="channel 1 of 4"
    )
    labels = Deviation("y", 25.0, 1.0, 0.1, None, kind="labels", rows=40, agreement=0.975, interval_db=(20.0, 31.0))

    assert sentence(scores) == "same class in 99.6 % of 512, 0.004 nats apart"
    assert where(scores) == "worst on feed 3, channel 1 of 4"
    assert sentence(labels) == "same label in 97.5 % of 40"
    assert where(labels) == "few feeds: 20.0 to 31.0 dB with 95 %"
    assert (
        sentence(Deviation("y", 25.0, 1.0, 0.1, None, kind="rows", rows=9, agreement=1.0))
        == "100 % of 9 rows are found again"
    )
