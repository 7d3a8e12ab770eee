"""What workers measure on switchboards is what is measured without them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure import lending
from onnxsqueeze.measure.answers import Ruler
from onnxsqueeze.measure.attribution import effects
from onnxsqueeze.measure.switchboard import TOGETHER, measure
from onnxsqueeze.measure.switches import Switchboard
from onnxsqueeze.runtime.timing import Latency
from onnxsqueeze.workers import Workers

MLP = Path(__file__).parents[2] / "models" / "mlp.onnx"
LAYERS = TOGETHER + 6
FEEDS = [{"x": np.random.default_rng(seed).normal(size=(3, 6)).astype(np.float32)} for seed in range(2)]


@pytest.fixture
def graph() -> Graph:
    """A chain of layers that takes more than one session."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(LAYERS - 1)), "y"]
    constants = [constant(f"w{i}", rng.normal(size=(6, 6)) / 2.4) for i in range(LAYERS)]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    return load(model(nodes, constants, {"x": ["n", 6]}, {"y": ["n", 6]}))  # type: ignore[list-item]


@pytest.fixture
def workers() -> Iterator[Workers]:
    with ThreadPoolExecutor(2) as threads, Workers(threads) as found:
        yield found


def coarser(step: float, graph: Graph, key: str) -> None:
    node, _ = edit.find(graph, key)
    values = np.asarray(node.inputs[1].values)
    node.inputs[1] = edit.constant(graph, "coarse", (np.rint(values / step) * step).astype(np.float32))


def test_errors_of_variants(graph: Graph, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [{str(node.outputs[0].name): partial(coarser, 0.1)} for node in graph.nodes]
    score = Ruler.of(graph).error
    alone = measure(graph, variants, FEEDS, score)
    sessions: list[object] = []
    put = lending.Lent.put

    def noted(self: lending.Lent, groups: Sequence[Collection[int]]) -> None:
        sessions.append(groups)
        put(self, groups)

    monkeypatch.setattr(lending.Lent, "put", noted)
    seen: list[int] = []
    shared = measure(graph, variants, FEEDS, score, None, lambda _, done, total: seen.append(done), None, workers)

    assert shared == alone and None not in alone
    assert len(sessions) == 2 and seen == list(range(LAYERS))


def test_what_does_not_run_in_a_worker_is_measured_here(
    graph: Graph, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [{str(node.outputs[0].name): partial(coarser, 0.1)} for node in graph.nodes]
    alone = measure(graph, variants, FEEDS, Ruler.of(graph).error)

    def fails(*_: object) -> Switchboard:
        raise UnmeasuredError("it does not run")

    monkeypatch.setattr(Switchboard, "of", fails)
    assert measure(graph, variants, FEEDS, Ruler.of(graph).error, workers=workers) == alone


def test_effects_that_are_taken_apart(graph: Graph, workers: Workers) -> None:
    names = [str(node.outputs[0].name) for node in graph.nodes]
    board = Switchboard(graph, [{name: partial(coarser, 0.1)} for name in names], FEEDS)
    found = [
        effects(board, names, dict.fromkeys(names, 1.0), 24, lambda *_: None, Ruler.of(graph).error, each)
        for each in (None, workers)
    ]

    assert found[0] == found[1]


@pytest.mark.parametrize("spec", ["int8", "lowrank{ratio=0.5},bits{weights=3}"])
def test_passes_have_the_same_bytes_with_workers(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("engine.latencies", "contract.bench"):
        monkeypatch.setattr(f"onnxsqueeze.{module}.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    lent: list[object] = []
    put = Workers.put

    def noted(self: Workers, *call: Any) -> None:
        lent.append(call)
        put(self, *call)

    monkeypatch.setattr(Workers, "put", noted)
    alone = squeeze(MLP, spec)
    assert not lent
    with ThreadPoolExecutor(2) as threads:
        shared = squeeze(MLP, spec, executor=threads)

    assert lent
    assert shared.model.SerializeToString() == alone.model.SerializeToString()
    assert shared.report.deviations == alone.report.deviations


def test_what_is_lent_is_removed_when_nobody_needs_it(graph: Graph, tmp_path: Path) -> None:
    workers = Workers()
    workers.folder = tmp_path
    board = Switchboard(graph, [{"y": partial(coarser, 0.1)}], FEEDS)
    lent = lending.Lent(board.opened, Ruler.of(graph).error, workers)
    assert list(lent.scores([(0,), ()])) == pytest.approx([board_error(board, graph), 0.0])
    assert len(list(tmp_path.iterdir())) == 1
    lent.free()
    assert list(tmp_path.iterdir()) == []


def board_error(board: Switchboard, graph: Graph) -> float:
    return Ruler.of(graph).error(board.expected, board.answers((0,)))
