from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from linear_models import constant, correlated, model
from onnx import helper

from onnxsqueeze import codec, edit
from onnxsqueeze.codec import Graph
from onnxsqueeze.impact import impacts
from onnxsqueeze.validate import answer, compare, worst

Rewrite = Callable[[Graph, str], None]


def net() -> onnx.ModelProto:
    """Conv, Relu, Conv with a branch, and an intermediate result that is an output too."""
    rng = np.random.default_rng(0)
    constants = [constant("w1", rng.normal(size=(8, 6, 3, 3)) / 7), constant("w2", rng.normal(size=(8, 8, 1, 1)) / 3)]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    return model(nodes, constants, {"x": ["n", 6, 8, 8]}, {"y": ["n", 8, 8, 8], "c": ["n", 8, 8, 8]})  # type: ignore[list-item]


def coarser(step: float) -> Rewrite:
    """Return a rewrite that rounds the weight of a layer to multiples of ``step``."""

    def rewrite(graph: Graph, key: str) -> None:
        node, _ = edit.find(graph, key)
        values = np.asarray(node.inputs[1].values)
        node.inputs[1] = edit.constant(graph, "coarse", (np.rint(values / step) * step).astype(np.float32))

    return rewrite


REWRITES: dict[str, list[Rewrite]] = {"a": [coarser(0.1), coarser(0.02)], "c": [coarser(0.2)]}


def test_one_session_measures_what_variants_measure_one_by_one() -> None:
    graph = codec.load(net())
    feeds = correlated(3, (6, 8, 8))
    found = impacts(graph, feeds, REWRITES)
    expected = answer(graph, None, feeds)

    for key, rewrites in REWRITES.items():
        for rewrite, value in zip(rewrites, found[key], strict=True):
            variant = edit.duplicate(graph)
            rewrite(variant, key)
            edit.tidy(variant)
            alone = 10 ** (-worst(compare(expected, answer(variant, None, feeds))) / 10)
            assert value == pytest.approx(alone, rel=0.01)
    assert found["a"][0] > 5 * found["a"][1] > 0


def test_the_graph_is_left_as_it_was() -> None:
    graph = codec.load(net())
    before = codec.encode(graph).SerializeToString()
    impacts(graph, correlated(1, (6, 8, 8)), REWRITES)

    assert codec.encode(graph).SerializeToString() == before


def test_a_big_batch_is_measured_on_its_first_two_samples() -> None:
    graph = codec.load(net())
    batch = [{"x": np.concatenate([f["x"] for f in correlated(6, (6, 8, 8))])}]
    first = [{"x": batch[0]["x"][:2]}]

    assert impacts(graph, batch, REWRITES) == impacts(graph, first, REWRITES)


def test_a_rewrite_that_yields_nan_counts_as_infinite_error() -> None:
    def broken(graph: Graph, key: str) -> None:
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "broken", np.full_like(node.inputs[1].values, np.nan))

    found = impacts(codec.load(net()), correlated(1, (6, 8, 8)), {"c": [broken], "a": [coarser(0.1)]})

    assert found["c"] == [float("inf")]


def test_progress_counts_the_layers() -> None:
    seen: list[tuple[str, int, int]] = []
    impacts(codec.load(net()), correlated(1, (6, 8, 8)), REWRITES, lambda *step: seen.append(step))

    assert [step[1:] for step in seen] == [(0, 3), (1, 3), (2, 3)]
