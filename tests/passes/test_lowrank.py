from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import Array, constant, conv_model, correlated, model
from numpy.typing import NDArray
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.passes.lowrank import LowRank
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.lowrank import forms


def two_convs(seed: int = 0, channels: int = 48, size: int = 12) -> onnx.ModelProto:
    """Two 3x3 Convs with Relu between, the second of rank 12 and the first of full rank."""
    rng = np.random.default_rng(seed)
    thin = np.einsum("or,rcij->ocij", rng.normal(size=(channels, 12)), rng.normal(size=(12, channels, 3, 3)))
    constants = [
        constant("w1", rng.normal(size=(channels, 24, 3, 3)) / 15),
        constant("w2", thin / 80),
        constant("b2", rng.normal(size=channels)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    return model(nodes, constants, {"x": [1, 24, size, size]}, {"y": [1, channels, size // 2, size // 2]})


def attention(width: int = 128, tokens: int = 64) -> onnx.ModelProto:
    """Three MatMuls that read the same input and share their row space, with biases, added up."""
    rng = np.random.default_rng(3)
    common = rng.normal(size=(width, 16))
    constants, nodes = [], []
    for name in "qkv":
        constants.append(constant(f"w{name}", common @ rng.normal(size=(16, width)) / 8))
        constants.append(constant(f"b{name}", rng.normal(size=width)))
        nodes.append(helper.make_node("MatMul", ["x", f"w{name}"], [f"m{name}"]))
        nodes.append(helper.make_node("Add", [f"m{name}", f"b{name}"], [name]))
    nodes += [helper.make_node("Mul", ["q", "k"], ["qk"]), helper.make_node("Add", ["qk", "v"], ["y"])]
    return model(nodes, constants, {"x": [1, tokens, width]}, {"y": [1, tokens, width]})


def tokens(count: int, width: int = 128, length: int = 64) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return [{"x": (rng.normal(size=(1, length, width)) @ mixing).astype(np.float32)} for _ in range(count)]


def answer(session: Session, feed: dict[str, Array]) -> NDArray[np.float64]:
    return np.asarray(session.run(feed)["y"], np.float64)


def macs(report: object) -> float:
    return float(report.after.macs / report.before.macs)  # type: ignore[attr-defined]


def test_a_ratio_of_the_macs_is_reached_over_all_layers_by_squeezing_the_one_that_bears_it() -> None:
    result = squeeze(two_convs(), "lowrank{ratio=0.6 refit=false}", correlated(10, (24, 12, 12)))

    step = result.report.steps[-1]
    assert macs(result.report) <= 0.6
    assert {site.key for site in step.done} >= {"y"}
    second = next(site for site in step.done if site.key == "y")
    assert second.error is not None
    assert second.error < 1e-3
    assert "gain" in second.detail


def nearly_thin(rest: int) -> onnx.ModelProto:
    """A MatMul of 128 channels that is nearly of rank 8 behind one of full rank, and beside them one ``rest`` wide."""
    rng = np.random.default_rng(2)
    thin = rng.normal(size=(128, 8)) @ rng.normal(size=(8, 128)) / 8 + rng.normal(size=(128, 128)) / 50
    constants = [
        constant("w1", np.linalg.qr(rng.normal(size=(128, 128)))[0]),
        constant("w2", thin / 4),
        constant("w3", np.linalg.qr(rng.normal(size=(max(rest, 128), 128)))[0].T[:, :rest]),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["c"]),
        helper.make_node("MatMul", ["x", "w3"], ["z"]),
    ]
    return model(nodes, constants, {"x": [1, 64, 128]}, {"c": [1, 64, 128], "z": [1, 64, rest]})


def test_what_nobody_asked_for_has_to_be_worth_its_error() -> None:
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.normal(size=(1, 64, 128)).astype(np.float32)} for _ in range(8)]

    little = squeeze(nearly_thin(2048), "lowrank", feeds).report.steps[-1]
    asked = squeeze(nearly_thin(2048), "lowrank{max-error=0.002}", feeds).report.steps[-1]
    much = squeeze(nearly_thin(64), "lowrank", feeds).report.steps[-1]

    assert not little.done
    assert next(s.reason for s in little.skipped if s.key == "c").startswith("saving 3.")
    assert [site.key for site in asked.done] == [site.key for site in much.done] == ["c"]


def test_without_options_the_answers_stay_at_25_db() -> None:
    result = squeeze(two_convs(), "lowrank", correlated(10, (24, 12, 12)))

    assert result.report.steps[-1].done
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 25


def test_data_and_one_budget_beat_the_plain_factors_at_the_same_cost() -> None:
    feeds = correlated(12, (24, 12, 12))
    fitted = squeeze(two_convs(), "lowrank{ratio=0.4}", feeds)
    blind = squeeze(two_convs(), "lowrank{ratio=0.4}")

    session = Session(two_convs())
    fresh = correlated(4, (24, 12, 12), seed=9)
    errors = []
    for result in (fitted, blind):
        made = Session(result.model)
        errors.append(sum(float(((answer(session, f) - answer(made, f)) ** 2).sum()) for f in fresh))
    assert errors[0] < errors[1] / 3


def test_layers_on_one_input_share_a_factor_where_that_is_better() -> None:
    result = squeeze(attention(), "lowrank{ratio=0.5 by=params refit=false}", tokens(12))

    step = result.report.steps[-1]
    assert [site.detail["form"] for site in step.done] == ["shared"]
    assert step.done[0].detail["layers"] == ["mq", "mk", "mv"]
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 60
    assert [node.op for node in result.graph.nodes].count("MatMul") == 4


def test_the_bias_takes_over_the_mean_of_what_is_cut_off() -> None:
    rng = np.random.default_rng(0)
    proto = conv_model(rng.normal(size=(32, 32, 1, 1)), [6, 6])
    feeds = correlated(20, (32, 6, 6))
    result = squeeze(proto, "lowrank{rank=8 refit=false}", feeds)

    one, two = Session(proto), Session(result.model)
    gap = np.mean([(answer(one, f) - answer(two, f)).mean((0, 2, 3)) for f in feeds], axis=0)
    spread = np.std([answer(one, f) for f in feeds])
    assert np.abs(gap).max() < 0.02 * spread


def test_refitting_is_reported_and_helps_on_unseen_feeds() -> None:
    feeds = correlated(24, (24, 12, 12))
    with_it = squeeze(two_convs(), "lowrank{rank=4 only=a}", feeds).report
    without = squeeze(two_convs(), "lowrank{rank=4 only=a refit=false}", feeds).report

    assert any("refitted" in note for note in with_it.steps[-1].notes)
    assert with_it.sqnr_db is not None
    assert without.sqnr_db is not None
    assert with_it.sqnr_db > without.sqnr_db


@pytest.mark.parametrize(
    ("group", "reason"),
    [(2, "it is a grouped convolution"), (48, "it is a grouped convolution")],
    ids=["groups", "depthwise"],
)
def test_grouped_convolutions_are_skipped_with_a_reason(group: int, reason: str) -> None:
    proto = conv_model(np.random.default_rng(0).normal(size=(48, 48 // group, 3, 3)), [8, 8], group=group)

    step = squeeze(proto, "lowrank", correlated(4, (48, 8, 8))).report.steps[-1]

    assert not step.done
    assert [skip.reason for skip in step.skipped] == [reason]


def test_a_shared_and_a_tiny_weight_are_skipped_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Conv", ["b", "t"], ["y"]),
    ]
    constants = [constant("w", rng.normal(size=(32, 32, 1, 1))), constant("t", rng.normal(size=(4, 32, 1, 1)))]
    proto = model(nodes, constants, {"x": [1, 32, 6, 6]}, {"y": [1, 4, 6, 6]})

    step = squeeze(proto, "lowrank", correlated(4, (32, 6, 6))).report.steps[-1]

    assert {skip.key: skip.reason for skip in step.skipped} == {
        "a": "the budget is better spent elsewhere, or no factors of it are faster",
        "b": "it shares the weight of 'a', and what is done about it",
        "y": "its weight is only 4x32",
    }


def test_only_and_exclude_choose_layers_by_pattern() -> None:
    feeds = correlated(6, (24, 12, 12))
    only = squeeze(two_convs(), "lowrank{rank=8 only=y}", feeds).report.steps[-1]
    without = squeeze(two_convs(), 'lowrank{rank=8 exclude="y*"}', feeds).report.steps[-1]

    assert [site.key for site in only.done] == ["y"]
    assert [site.key for site in without.done] == ["a"]
    assert [(skip.key, skip.reason) for skip in without.skipped] == [("y", "it is excluded")]


def test_energy_decides_layer_by_layer() -> None:
    result = squeeze(two_convs(), "lowrank{energy=0.99 refit=false}", correlated(10, (24, 12, 12)))

    assert result.report.steps[-1].done
    for site in result.report.steps[-1].done:
        assert site.error is not None
        assert site.error <= 0.01


@pytest.mark.parametrize(
    "text",
    ["ratio=0.5 energy=0.9", "ratio=1.5", "energy=0", "rank=0", "max-error=2", "by=bytes", "rank=4 max-error=0.1"],
)
def test_contradictory_and_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        squeeze(two_convs(), f"lowrank{{{text}}}")


def test_the_same_model_and_feeds_give_the_same_bytes() -> None:
    one, two = (squeeze(two_convs(), "lowrank{ratio=0.5}", correlated(8, (24, 12, 12))).model for _ in range(2))

    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_dry_run_plans_without_feeds_to_measure_on() -> None:
    result = squeeze(two_convs(), "lowrank{ratio=0.5}", dry_run=True)

    assert any(isinstance(site, Site) for site in result.report.steps[-1].done)


@pytest.mark.parametrize("pipeline", ["lowrank{ratio=0.5},int8", "lowrank{ratio=0.33},int8"])
def test_no_float_convolution_is_left_between_factors_after_int8(pipeline: str, tmp_path: Path) -> None:
    feeds = correlated(4, (24, 40, 40))
    result = squeeze(two_convs(channels=64, size=40), pipeline, feeds, validate="none")
    assert len([n for n in result.graph.nodes if n.op == "Conv"]) >= 4

    Session(result.model, optimized=tmp_path / "o.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node]
    kinds = "".join("i" if op == "QLinearConv" else "f" for op in ops if op in ("QLinearConv", "Conv", "FusedConv"))
    assert re.fullmatch("f*i+f*", kinds), kinds  # int8 may leave an end in float where that is faster, no island


def test_the_pass_is_given_by_name_and_by_object_alike() -> None:
    feeds = correlated(6, (24, 12, 12))
    by_name = squeeze(two_convs(), "lowrank{rank=8}", feeds).model
    by_object = squeeze(two_convs(), LowRank(rank=8), feeds).model

    assert by_name.SerializeToString(deterministic=True) == by_object.SerializeToString(deterministic=True)


def test_a_second_plan_takes_the_candidates_of_the_first_and_layers_of_one_input_share_its_covariance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = View(decode(attention()))
    stats = collect(view.graph, LowRank().needs(view), tokens(12))
    asked: list[str] = []
    found = forms.candidates

    def counted(each: Fitting, rank: int | None) -> Iterable[forms.Candidate]:
        asked.append(each.layer.key)
        return found(each, rank=rank)

    monkeypatch.setattr(forms, "candidates", counted)

    first = list(LowRank(ratio=0.5).plan(view, stats))
    count = len(asked)
    second = list(LowRank(max_error=0.01).plan(view, stats))

    assert count == len(asked) == 3
    assert {entry.key for entry in first} & {entry.key for entry in second}
    problem = next(entry.work for entry in first if isinstance(entry, Site)).problem
    kept = [each.covariance for unit in problem.units for each in unit.fittings]
    assert len(kept) == 3
    assert all(each is kept[0] for each in kept)
    list(LowRank(ratio=0.5).plan(view, Statistics(stats.ranges, stats.moments)))
    assert len(asked) == 6  # other statistics
