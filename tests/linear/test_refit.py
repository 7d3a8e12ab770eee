from __future__ import annotations

import numpy as np
import pytest
from linear_models import constant, correlated, model
from onnx import ModelProto, helper

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.refit import places, refit
from onnxsqueeze.statistics.paired import Cross


def test_the_error_of_moments_is_the_mean_squared_distance_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    one, two = Cross(), Cross()
    one.add(x[:20], y[:20])
    two.add(x[20:], y[20:])
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)

    found = one.merge(two).error(weight, bias)

    assert found == pytest.approx(float(((y - x @ weight.T - bias) ** 2).sum(1).mean()), rel=1e-5)


def residual_model() -> ModelProto:
    """A 1x1 stem, then y = stem + conv(relu(conv(stem))), then a head."""
    rng = np.random.default_rng(5)
    weights = {n: rng.normal(size=s) / np.sqrt(s[1] * s[2] * s[3]) for n, s in {
        "w0": (16, 12, 1, 1), "w1": (24, 16, 3, 3), "w2": (16, 24, 3, 3), "w3": (10, 16, 1, 1)}.items()}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"]),
        helper.make_node("Conv", ["stem", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["stem", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "w3", "b3"], ["y"]),
    ]
    biases = {"b2": rng.normal(size=16), "b3": rng.normal(size=10)}
    constants = [constant(n, v) for n, v in {**weights, **biases}.items()]
    return model(nodes, constants, {"x": [1, 12, 8, 8]}, {"y": [1, 10, 8, 8]})


def disturbed() -> tuple[Graph, Bench]:
    """The residual model with one factor of noise on its first 3x3 weight, and a bench of the true one."""
    original = decode(residual_model())
    graph = edit.duplicate(original)
    node, _ = edit.find(graph, "a")
    values = np.asarray(node.inputs[1].values)
    noise = 0.1 * np.random.default_rng(7).normal(size=values.shape) * values.std()
    node.inputs[1] = edit.constant(graph, "noisy", (values + 3 * noise).astype(np.float32))
    return graph, Bench(original, correlated(12, (12, 8, 8)), 0, lambda stage, done, total: None)


def test_only_layers_behind_the_change_are_fitted_each_at_the_end_of_its_additions() -> None:
    graph, bench = disturbed()

    found = places(graph, bench.original)

    assert [(p.target, p.less) for p in found] == [("a", ()), ("d", ("stem",)), ("y", ())]
    assert [p.level for p in found] == sorted(p.level for p in found)
    assert found[1].members[0].key == "c"


def test_refitting_brings_the_answers_nearer_on_feeds_it_has_not_seen() -> None:
    graph, bench = disturbed()
    fresh = Bench(bench.original, correlated(6, (12, 8, 8), seed=50), 0, lambda stage, done, total: None)
    before = fresh.sqnr(graph)

    notes = list(refit(graph, bench))

    assert len(notes) == 1
    assert notes[0].startswith("refitted")
    assert fresh.sqnr(graph) > before + 3


def test_an_unchanged_graph_has_nothing_to_refit() -> None:
    original = decode(residual_model())

    assert places(edit.duplicate(original), original) == []
