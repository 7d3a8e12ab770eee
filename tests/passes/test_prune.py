from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import Array, constant, correlated, model
from numpy.typing import NDArray
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.passes.prune import Prune
from onnxsqueeze.plugin import Bench, Graph, Site
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.pruning.coupling import Coupling
from onnxsqueeze.techniques.pruning.units import Group

MODELS = Path(__file__).parents[2] / "models"


def bottleneck(seed: int = 0, spare: int = 24, lift: float = 15) -> onnx.ModelProto:
    """Conv, Relu, Conv, where ``spare`` of the 48 channels between are sums of two of the first 24."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(48, 8, 3, 3)) / 6
    bias = rng.normal(size=48) + lift  # so that Relu lets pass what is added up
    for i in range(spare):
        pair = rng.choice(24, 2, replace=False)
        first[24 + i] = first[pair].sum(0)
        bias[24 + i] = bias[pair].sum()
    order = rng.permutation(48)
    constants = [
        constant("w1", first[order]),
        constant("b1", bias[order]),
        constant("w2", rng.normal(size=(16, 48, 3, 3)) / 20),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"]),
    ]
    return model(nodes, constants, {"x": [1, 8, 10, 10]}, {"y": [1, 16, 8, 8]})


def perceptron(seed: int = 0, width: int = 32) -> onnx.ModelProto:
    """MatMul without a bias, Tanh, MatMul without a bias, and a residual connection around them."""
    rng = np.random.default_rng(seed)
    constants = [constant("w1", rng.normal(size=(12, width)) / 4), constant("w2", rng.normal(size=(width, 12)) / 6)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["y"]),
    ]
    return model(nodes, constants, {"x": [20, 12]}, {"y": [20, 12]})


def rows(count: int, seed: int = 5) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(12, 12))
    return [{"x": (rng.normal(size=(20, 12)) @ mixing / 3 + 0.3).astype(np.float32)} for _ in range(count)]


def weight(result: Result, name: str) -> NDArray[np.generic]:
    found = [t for t in result.model.graph.initializer if t.name.startswith(name)]
    assert len(found) == 1
    return onnx.numpy_helper.to_array(found[0])


def channels(result: Result) -> int:
    """Return how many channels the first Conv has."""
    return int(weight(result, "w1").shape[0])


def sqnr(result: Result) -> float:
    assert result.report.sqnr_db is not None
    return result.report.sqnr_db


def test_channels_that_others_can_stand_in_for_leave_without_a_trace() -> None:
    feeds = correlated(12, (8, 10, 10))

    result = squeeze(bottleneck(), "prune{ratio=0.55}", feeds)

    assert channels(result) == 24
    assert sqnr(result) > 40
    blind = squeeze(bottleneck(), "prune{ratio=0.55 score=l2 repair=false}", feeds).report.steps[-1]
    assert not blind.kept
    assert "the answers collapse" in str(blind.reason)


def test_an_error_budget_is_kept_and_used() -> None:
    feeds = correlated(12, (8, 10, 10))

    mild = squeeze(bottleneck(lift=4), "prune{max-error=0.003}", feeds)
    bold = squeeze(bottleneck(lift=4), "prune{max-error=0.1}", feeds)

    assert sqnr(mild) > 22
    assert channels(mild) < 48
    assert channels(bold) < channels(mild)
    assert sqnr(bold) > 9


def test_a_plan_that_was_never_measured_to_keep_the_budget_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("error", "unseen_error"):
        monkeypatch.setattr(Bench, name, lambda self, graph: 0.101, raising=False)

    result = squeeze(bottleneck(lift=4), "prune{max-error=0.1}", correlated(12, (8, 10, 10)))

    assert not result.report.steps[-1].done
    assert channels(result) == 48


def test_what_is_left_is_a_multiple_of_round_to() -> None:
    feeds = correlated(12, (8, 10, 10))

    assert channels(squeeze(bottleneck(), "prune{ratio=0.7}", feeds)) == 32
    assert channels(squeeze(bottleneck(), "prune{ratio=0.7 round-to=1}", feeds)) == 33


def test_neurons_without_any_bias_behind_them_are_repaired_too() -> None:
    good = squeeze(perceptron(), "prune{ratio=0.8 by=params}", rows(40))
    bare = squeeze(perceptron(), "prune{ratio=0.8 by=params repair=false}", rows(40))

    assert weight(good, "w1").shape[1] == 24
    assert [node.op_type for node in good.model.graph.node] == ["MatMul", "Tanh", "MatMul", "Add"]
    assert sqnr(good) > sqnr(bare) + 3


def test_without_feeds_the_norm_decides_and_the_model_still_runs() -> None:
    result = squeeze(bottleneck(), "prune{ratio=0.7}")

    assert channels(result) == 32
    assert any("calibration=" in note for note in result.report.steps[-1].notes)
    Session(result.model).run(correlated(1, (8, 10, 10))[0])


def test_levels_mask_what_pruning_removes() -> None:
    graph = load(bottleneck(spare=0))
    feeds, pass_ = correlated(8, (8, 10, 10)), Prune(round_to=1)
    stats = collect(graph, pass_.needs(View(graph)), feeds)

    levels = list(pass_.levels(View(graph), stats))

    assert [(level.key, level.share) for level in levels] == [("a", 0.75), ("a", 0.5), ("a", 0.25)]
    errors = [level.error for level in levels]
    assert errors == sorted(errors, key=lambda error: error or 0)
    copy = graph.copy()
    levels[1].rewrites["y"](copy, "y")
    masked, whole = (np.asarray(Session(encode(g)).run(feeds[0])["y"], np.float64) for g in (copy, graph))
    assert errors[1] is not None
    variance = whole.var(axis=(0, 2, 3)).sum()
    assert 0.3 * errors[1] < ((masked - whole) ** 2).mean(axis=(0, 2, 3)).sum() / variance < 3 * errors[1]


def test_every_group_that_stays_says_why() -> None:
    step = squeeze(onnx.load(MODELS / "resnet.onnx"), "prune{ratio=0.8}", dry_run=True).report.steps[-1]

    reasons = " / ".join(skip.reason for skip in step.skipped)
    assert "residual=true" in reasons
    assert all(skip.reason for skip in step.skipped)
    kinds = {site.detail["kind"] for site in step.done}
    assert kinds == {"channels"}


def test_a_plan_names_what_makes_and_what_reads_the_channels() -> None:
    step = squeeze(bottleneck(), "prune{ratio=0.7}", correlated(4, (8, 10, 10)), dry_run=True).report.steps[-1]

    (site,) = step.done
    assert site.key == "a"
    assert site.action == "48 to 32 channels"
    assert site.detail["made by"] == ["a"]
    assert site.detail["read by"] == ["y"]


def split(seed: int = 0) -> onnx.ModelProto:
    """Conv, whose 48 channels are split into 16 and 32 that different Convs read."""
    rng = np.random.default_rng(seed)
    constants = [
        constant("w1", rng.normal(size=(48, 8, 3, 3)) / 6),
        constant("w2", rng.normal(size=(8, 16, 1, 1)) / 4),
        constant("w3", rng.normal(size=(8, 32, 1, 1)) / 6),
        onnx.numpy_helper.from_array(np.array([16, 32]), "sizes"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Split", ["a", "sizes"], ["b", "c"], axis=1),
        helper.make_node("Conv", ["b", "w2"], ["d"]),
        helper.make_node("Conv", ["c", "w3"], ["e"]),
        helper.make_node("Mul", ["d", "e"], ["y"]),
    ]
    return model(nodes, constants, {"x": [1, 8, 10, 10]}, {"y": [1, 8, 8, 8]})


def test_parts_of_one_layer_that_go_different_ways_are_groups_of_their_own() -> None:
    result = squeeze(split(), "prune{ratio=0.4 round-to=4}", correlated(8, (8, 10, 10)))

    step = result.report.steps[-1]
    assert {site.key for site in step.done} == {"a[0:16]", "a[16:48]"}
    (kept,) = (onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name.startswith("sizes"))
    assert kept.sum() == weight(result, "w1").shape[0] < 48
    assert sqnr(result) > 5


def test_only_and_exclude_choose_groups_by_the_names_of_their_layers() -> None:
    feeds = correlated(4, (8, 10, 10))

    nothing = squeeze(bottleneck(), "prune{ratio=0.7 exclude=a}", feeds).report.steps[-1]
    other = squeeze(bottleneck(), "prune{ratio=0.7 only=b*}", feeds).report.steps[-1]

    assert not nothing.done
    assert any("excluded" in skip.reason for skip in nothing.skipped)
    assert not other.done


def test_a_removal_that_is_not_the_same_as_masking_is_left_out_and_called_a_defect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Coupling.remove

    def wrong(self: Coupling, graph: object, group: Group, units: list[int]) -> None:
        right(self, graph, group, [(unit + 1) % group.size for unit in units])  # type: ignore[arg-type]

    monkeypatch.setattr(Coupling, "remove", wrong)

    step = squeeze(bottleneck(), "prune{ratio=0.7}", correlated(4, (8, 10, 10))).report.steps[-1]

    assert not step.done
    assert any("defect" in skip.reason for skip in step.skipped)


def test_a_ratio_out_of_reach_takes_what_may_go_and_says_so() -> None:
    report = squeeze(bottleneck(), "prune{ratio=0.01}", correlated(8, (8, 10, 10))).report

    assert report.steps[-1].done
    assert any("0.01" in note for note in report.steps[-1].notes)


def test_steps_measure_again_in_between() -> None:
    feeds = correlated(12, (8, 10, 10))

    result = squeeze(bottleneck(spare=0), "prune{ratio=0.5 steps=2}", feeds)

    assert channels(result) == 24
    assert any("step 2" in note for note in result.report.steps[-1].notes)


@pytest.mark.parametrize(
    ("options", "left"),
    [("steps=20 ratio=0.5", 24), ("steps=20 ratio=0.8", 32), ("steps=8 ratio=0.9", 40), ("steps=5 ratio=0.95", 40)],
)
def test_a_step_too_small_for_a_unit_to_leave_waits_for_the_next(options: str, left: int) -> None:
    result = squeeze(bottleneck(spare=0), f"prune{{{options}}}", correlated(12, (8, 10, 10)))

    assert channels(result) == left
    assert any(note.endswith(": 0 more units of 0 groups") for note in result.report.steps[-1].notes)
    assert sqnr(result) > 5


def test_tune_is_told_what_was_done_with_its_work() -> None:
    told: list[Site] = []

    class Listening(Prune):
        def tune(self, graph: Graph, done: Sequence[Site], bench: Bench) -> Iterable[str]:
            told.extend(done)
            return super().tune(graph, done, bench)

    step = squeeze(bottleneck(), Listening(ratio=0.7), correlated(4, (8, 10, 10))).report.steps[-1]

    assert [site.key for site in told] == [site.key for site in step.done] == ["a"]
    assert told[0].work is not None
    assert step.done[0].work is None


def test_half_of_a_shipped_model_goes_for_less_than_a_point() -> None:
    with np.load(MODELS / "digits.npz", allow_pickle=False) as digits:
        inputs, classes = digits["x"][:, None].astype(np.float32) / np.float32(255), digits["y"]

    result = squeeze(MODELS / "mlp.onnx", "prune{ratio=0.5}")

    assert result.report.after.macs is not None
    assert result.report.before.macs is not None
    assert result.report.after.macs <= 0.5 * result.report.before.macs
    session = Session(result.model)
    (name,) = (value.name for value in result.model.graph.input)
    answers = [np.asarray(next(iter(session.run({name: part}).values()))) for part in np.split(inputs, 10)]
    assert (np.concatenate(answers).argmax(1) == classes).mean() > 0.983


def test_the_same_run_gives_the_same_bytes() -> None:
    feeds = correlated(8, (8, 10, 10))

    first, second = (squeeze(bottleneck(), "prune{ratio=0.6}", feeds).model.SerializeToString() for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune{ratio=1.5}", "ratio is over 0 and under 1"),
        ("prune{ratio=0.5 max-error=0.1}", "exclude each other"),
        ("prune{max-error=2}", "max-error is over 0 and under 1"),
        ("prune{round-to=0}", "round-to is at least 1"),
        ("prune{steps=0}", "steps is at least 1"),
        ("prune{steps=2}", "steps needs a ratio"),
        ("prune{score=best}", "score"),
    ],
)
def test_options_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        squeeze(bottleneck(), text)
