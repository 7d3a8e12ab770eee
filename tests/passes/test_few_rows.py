from __future__ import annotations

import numpy as np
import onnx
import pytest
from few_rows import perceptron, rows
from linear_models import constant, model
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import Ruler, answer, decibels

BUDGET = 25.0


def unseen_db(model_: onnx.ModelProto, result: Result, feeds: list[dict[str, np.ndarray]]) -> float:
    graph = load(model_)
    ruler = Ruler.of(graph)
    return decibels(ruler.error(answer(graph, None, feeds), answer(load(result.model), None, feeds)))


@pytest.mark.parametrize(("count", "columns"), [(18, 256), (18, 1152), (50, 576), (200, 576)])
@pytest.mark.parametrize("pass_", ["lowrank", "prune", "sparsify"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_budget_holds_on_feeds_that_nothing_has_seen(pass_: str, count: int, columns: int, seed: int) -> None:
    before = perceptron(columns, seed)

    result = squeeze(before, pass_, rows(count, columns, seed))

    assert unseen_db(before, result, rows(120, columns, 1000 + seed)) > BUDGET


def wide(seed: int) -> onnx.ModelProto:
    """Return a Gemm of many tokens, whose weight has a falling spectrum."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(384, 384)), rng.normal(size=(384, 384))
    weight = (left / (1 + np.arange(384))) @ right
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"]),
    ]
    constants = [constant("w1", weight / 30), constant("w2", rng.normal(size=(384, 16)) / 20)]
    return model(nodes, constants, {"x": ["tokens", 384]}, {"y": ["tokens", 16]})  # type: ignore[list-item]


def tokens(count: int, length: int, seed: int) -> list[dict[str, np.ndarray]]:
    mixing = np.random.default_rng(7).normal(size=(64, 384)) / 8
    rng = np.random.default_rng(seed)
    return [
        {"x": (rng.normal(size=(length, 64)) @ mixing + 0.1 * rng.normal(size=(length, 384))).astype(np.float32)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [3, 6, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_factors_fitted_to_few_rows_keep_the_budget(count: int, seed: int) -> None:
    before = wide(seed)

    result = squeeze(before, "lowrank", tokens(count, 16, seed))

    assert unseen_db(before, result, tokens(20, 16, 1000 + seed)) > BUDGET


def test_many_rows_are_fitted_as_they_were_and_noted_by_nobody() -> None:
    before = wide(0)

    step = squeeze(before, "lowrank", tokens(40, 512, 0)).report.steps[-1]

    assert step.done
    assert not any("feeds would do" in note for note in step.notes)


def test_the_report_says_how_many_feeds_would_do() -> None:
    before = perceptron(576, 1)

    few = squeeze(before, "sparsify", rows(50, 576, 1)).report.steps[-1]
    none = squeeze(before, "sparsify", rows(18, 576, 1)).report.steps[-1]

    (note,) = (note for note in few.notes if "feeds would do" in note)
    assert "of 3 layers (h0 44 for 576, " in note
    assert ": 1216 feeds would do" in note
    assert not none.done
    assert any("16 input rows" in skip.reason and "feeds" in skip.reason for skip in none.skipped)
