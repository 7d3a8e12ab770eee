"""What the engine takes back: where a lossless pass is not, or one cannot go on; and instruments that do not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import MODELS
from small_models import feeds as small_feeds

from onnxsqueeze import squeeze
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine.judge import culprits
from onnxsqueeze.errors import FeedError, ModelError, UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.switches import Switchboard
from onnxsqueeze.statistics.measured import Statistics

COUNT = 12
WIDTH = 6


def chain() -> onnx.ModelProto:
    """Return x → Add(c₀) → … → Add(c₁₁)."""
    names = ["x", *(f"a{i}" for i in range(COUNT))]
    nodes = [helper.make_node("Add", [names[i], f"c{i}"], [names[i + 1]]) for i in range(COUNT)]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(WIDTH).astype(np.float32), f"c{i}") for i in range(COUNT)]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["N", WIDTH])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(count: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, WIDTH)).astype(np.float32)} for _ in range(count)]


@dataclass(frozen=True)
class Swap(Pass):
    """Writes Add as Sum, which is the same; at the nodes that ``odd`` names it does something else instead."""

    name: ClassVar[str] = "swap"
    summary: ClassVar[str] = "for a test"
    cleans_first: ClassVar[bool] = False
    lossless: ClassVar[bool] = True

    odd: Callable[[Graph, str], bool] = field(default=lambda graph, key: False, init=False)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        for node in view.of("Add"):
            yield Site(key_of(node), "written as Sum")

    def apply(self, site: Site, graph: Graph) -> None:
        node, _ = edit.find(graph, site.key)
        if not self.odd(graph, site.key):
            node.op = "Sum"


def swap(odd: Callable[[Graph, str], bool], lossless: bool = True) -> Swap:
    made: Swap = type("Odd", (Swap,), {"lossless": lossless})()
    object.__setattr__(made, "odd", odd)
    return made


def test_a_lossless_pass_loses_the_places_where_it_is_not() -> None:
    def odd(graph: Graph, key: str) -> bool:
        if key not in ("a3", "a8"):
            return False
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "other", node.inputs[1].values * np.float32(1.05))
        return True

    result = squeeze(chain(), swap(odd), rows())
    (step,) = result.report.steps
    assert step.kept
    assert {site.key for site in step.done} == {f"a{i}" for i in range(COUNT)} - {"a3", "a8"}
    assert {skip.key for skip in step.skipped} == {"a3", "a8"}
    assert all("its answers should stay the same, and are at" in skip.reason for skip in step.skipped)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 100


def test_a_lossy_pass_may_move_the_answers() -> None:
    def odd(graph: Graph, key: str) -> bool:
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "other", node.inputs[1].values * np.float32(1.1))
        return True

    (step,) = squeeze(chain(), swap(odd, lossless=False), rows()).report.steps
    assert (step.kept, len(step.done)) == (True, COUNT)


def test_a_place_that_makes_the_model_unloadable_is_taken_back_alone() -> None:
    def odd(graph: Graph, key: str) -> bool:
        node, _ = edit.find(graph, key)
        if key == "a5":
            node.op = "Conv"
        return key == "a5"

    (step,) = squeeze(chain(), swap(odd), rows()).report.steps
    assert (step.kept, [skip.key for skip in step.skipped]) == (True, ["a5"])


def test_a_loss_that_only_calibration_feeds_show_is_found() -> None:
    feeds = rows(8)
    feeds[0]["x"][0, 0] = 100.0  # the held-out feed has no such value

    def odd(graph: Graph, key: str) -> bool:
        if key == "a0":
            node, scope = edit.find(graph, key)
            most = edit.constant(graph, "most", np.float32(10))
            node.inputs[0] = edit.insert(graph, scope, "Min", [node.inputs[0], most], "cut", before=node)
        return key == "a0"

    (step,) = squeeze(chain(), swap(odd), feeds).report.steps
    assert [skip.key for skip in step.skipped] == ["a0"]
    (step,) = squeeze(chain(), swap(odd, lossless=False), feeds).report.steps
    assert step.skipped == ()


def test_a_pass_that_cannot_go_on_at_a_place_leaves_it_alone() -> None:
    def odd(graph: Graph, key: str) -> bool:
        if key in ("a1", "a2"):
            raise ModelError(f"'{key}' is not what it seems")
        return False

    for validate in ("full", "none"):
        (step,) = squeeze(chain(), swap(odd, lossless=False), rows(), validate=validate).report.steps
        assert len(step.done) == COUNT - 2
        assert {skip.key: skip.reason for skip in step.skipped} == {
            key: f"it cannot be rewritten: '{key}' is not what it seems" for key in ("a1", "a2")
        }


def test_what_a_pass_tries_on_the_bench_names_its_place_too() -> None:
    def odd(graph: Graph, key: str) -> bool:
        if key == "a7":
            raise ModelError("no")
        return False

    def select(self: Swap, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
        bench.error(bench.variant(self.apply, [each for each in plan if isinstance(each, Site)]))
        return plan

    class_ = type("Trying", (Swap,), {"select": select, "lossless": False})
    made = class_()
    object.__setattr__(made, "odd", odd)
    (step,) = squeeze(chain(), made, rows()).report.steps
    assert (len(step.done), [skip.key for skip in step.skipped]) == (COUNT - 1, ["a7"])


def test_culprits_are_found_in_few_trials() -> None:
    bad, tried = {7, 31}, []

    def works(left: set[int]) -> bool:
        tried.append(left)
        return bad <= left

    assert culprits(range(64), works, 40) == bad
    assert len(tried) < 28
    assert culprits(range(64), works, 3) >= bad


def test_only_the_model_itself_can_blame_a_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(graph: Graph, key: str) -> bool:
        raise FeedError("the model does not run on the feed (x [2, 6]): a node of ours")

    result = squeeze(chain(), swap(odd, lossless=False), rows())
    assert [step.reason for step in result.report.steps] == [
        "the model does not run on the feed (x [2, 6]): a node of ours"
    ]
    assert result.report.sqnr_db == np.inf


class Blind(Switchboard):
    """Switchboards that never run."""

    def __init__(self, *_: object) -> None:
        raise UnmeasuredError("it does not run")


@pytest.mark.parametrize("spec", ["int8", "lowrank{ratio=0.7},int8", "sparsify{ratio=0.5}", "prune{ratio=0.7}"])
def test_passes_do_without_measured_effects(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.measure.switchboard.Switchboard", Blind)
    model = MODELS["mlp"]()
    result = squeeze(model, spec, small_feeds(model))
    assert all(step.kept for step in result.report.steps)
