"""What every pass promises, on every small model: it is all checked again for a pass that is added later."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import MODELS, Feed, feeds

from onnxsqueeze import squeeze
from onnxsqueeze.arrays import MASK
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import spec
from onnxsqueeze.engine.result import Result
from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import Latency
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.pruning.coupling import couple

FLOORS = {"clean": 80.0, "canonical": 80.0, "int8": 25.0, "sparsify": 3.0}
"""SQNR in dB under which no model may fall, with half of random weights gone for sparsify; passes that choose their own
error are held to ANY."""
ANY = 10.0

each_model = pytest.mark.parametrize("name", MODELS)
each_pass = pytest.mark.parametrize("pass_", registry.names())


def energy_db(name: str, result: Result) -> float:
    """Return the SQNR of the worst output by its whole energy on the feeds that were held out."""
    _, held = read(feeds_of(name), inputs_of(model_of(name))).split()
    before, after = Session(model_of(name)), Session(result.model)
    found = []
    for output in before.outputs:
        answers = [[np.asarray(each.run(feed)[output], np.float64) for feed in held] for each in (before, after)]
        one, other = (np.concatenate([value.ravel() for value in each]) for each in answers)
        usual = np.abs(one) < MASK
        error = float(np.square(one - other)[usual].sum())
        found.append(10 * np.log10(np.square(one[usual]).sum() / error) if error else np.inf)
    return float(min(found))


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions that depend on measured time are taken as if nothing changed it."""
    monkeypatch.setattr("onnxsqueeze.engine.latencies.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.setattr("onnxsqueeze.contract.bench.latency", lambda *_: Latency((1.0, 1.0), 1.0, 1.0))


@cache
def model_of(name: str) -> onnx.ModelProto:
    return MODELS[name]()


@cache
def feeds_of(name: str) -> list[Feed]:
    return feeds(model_of(name))


@cache
def given(name: str, pass_: str) -> onnx.ModelProto:
    """Return the model as the engine hands it to the pass."""
    first = {"clean": "", "canonical": "clean"}.get(pass_, "clean,canonical")
    return squeeze(model_of(name), first, validate="none").model if first else model_of(name)


def interface(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.SerializeToString() for value in model.graph.input if value.name not in weights]
    return inputs, [value.SerializeToString() for value in model.graph.output]


def check_result(result: Result, model: onnx.ModelProto, run_on: list[Feed]) -> None:
    """Whatever a pass has done, the result is a valid model with the same interface that runs."""
    onnx.checker.check_model(result.model)
    assert interface(result.model) == interface(model)
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert len(session.run(None, run_on[0])) == len(model.graph.output)
    assert [step.reason for step in result.report.steps] == [None] * len(result.report.steps)
    if not any(step.done for step in result.report.steps):
        assert result.model == model


@each_model
@each_pass
def test_a_plan_changes_nothing_and_names_nodes_that_are_there(pass_: str, name: str) -> None:
    model = given(name, pass_)
    graph, chosen = load(model), registry.find(pass_)()
    statistics = collect(graph, chosen.needs(View(graph)), feeds_of(name))

    for known in (Statistics(), statistics):
        plan = list(chosen.plan(View(graph), known))

        sites = [entry.key for entry in plan if isinstance(entry, Site)]
        assert encode(graph).SerializeToString() == model.SerializeToString()
        assert len(sites) == len(set(sites)) or View(graph).ambiguous
        assert {entry.key for entry in plan} <= {key_of(node) for node in View(graph).nodes}


@each_model
@each_pass
def test_a_pass_keeps_the_interface_and_the_answers_and_leaves_the_input_alone(pass_: str, name: str) -> None:
    model = model_of(name)
    before = model.SerializeToString()
    result = squeeze(model, pass_, feeds_of(name))
    again = squeeze(model, pass_, feeds_of(name))

    check_result(result, model, feeds_of(name))
    assert model.SerializeToString() == before
    assert result.model.SerializeToString() == again.model.SerializeToString()
    assert energy_db(name, result) >= FLOORS.get(pass_, ANY)


@each_model
@each_pass
def test_a_pass_works_without_feeds(pass_: str, name: str) -> None:
    model = model_of(name)
    result = squeeze(model, pass_)

    check_result(result, model, feeds_of(name))


@each_model
@pytest.mark.parametrize("pass_", [name for name in registry.names() if name not in ("clean", "canonical", "float32")])
def test_every_node_with_a_weight_is_done_or_skipped(pass_: str, name: str) -> None:
    model = given(name, pass_)
    expected = {key_of(each.node) for each in weighted(View(load(model)))}

    report = squeeze(model, pass_, feeds_of(name), validate="none").report
    step = next(each for each in report.steps if each.spec.partition("{")[0] == pass_ and not each.implicit)

    keys = [site.key for site in step.done] + [skip.key for skip in step.skipped]
    entries = [key.partition("[")[0] for key in keys]
    inside = {key for group in couple(View(load(model))).groups for slot in group.slots for key in slot.nodes}
    joined = {str(key) for site in step.done for key in site.detail.get("layers", ())}  # type: ignore[attr-defined]
    assert not expected - set(entries) - joined - (inside if pass_ == "prune" else set())


def reworded(plan: Iterable[Site | Skip]) -> list[Site | Skip]:
    return [replace(entry, action="x") if isinstance(entry, Site) else entry for entry in plan]


@pytest.mark.parametrize(
    "name", ["attention", "branches", "conv_bn_relu", "depthwise", "hidden_weights", "spelled_out"]
)
@each_pass
def test_other_words_for_what_is_done_do_not_change_a_model(pass_: str, name: str) -> None:
    class_ = registry.find(pass_)

    class Reworded(class_):  # type: ignore[misc, valid-type]
        def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
            yield from reworded(super().plan(view, stats))

        def select(self, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
            return reworded(super().select(plan, bench))

    found = squeeze(model_of(name), Reworded(), feeds_of(name))
    expected = squeeze(model_of(name), class_(), feeds_of(name))

    assert found.model.SerializeToString() == expected.model.SerializeToString()
    own = next(step for step in found.report.steps if not step.implicit)
    assert {site.action for site in own.done} <= {"x"}


@each_pass
def test_the_text_of_a_pass_builds_it_again(pass_: str) -> None:
    chosen = registry.find(pass_)()

    assert registry.build(str(spec(chosen))) == (chosen,)


@each_pass
def test_every_pass_finds_something_to_do_somewhere(pass_: str) -> None:
    done = 0
    for name in MODELS:
        graph = load(given(name, pass_))
        chosen = registry.find(pass_)()
        statistics = collect(graph, chosen.needs(View(graph)), feeds_of(name))
        done += sum(isinstance(entry, Site) for entry in chosen.plan(View(graph), statistics))

    assert done


def test_a_run_gives_the_same_bytes_in_every_process() -> None:
    program = """
import hashlib
from small_models import MODELS, feeds
from onnxsqueeze import squeeze
from onnxsqueeze.engine import squeeze as pipeline
from onnxsqueeze.contract import bench
from onnxsqueeze.runtime.timing import Latency
pipeline.latency = bench.latency = lambda *_: Latency((1.0, 1.0), 1.0, 1.0)
for name in ("conv_bn_relu", "attention", "branches", "opset_11"):
    model = MODELS[name]()
    result = squeeze(model, "lowrank,int8", feeds(model))
    print(hashlib.sha256(result.model.SerializeToString()).hexdigest())
"""
    here = Path(__file__).parents[1]
    outputs = []
    for seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(here / "models"), str(here.parent)]),
        }
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
        )
        outputs.append(done.stdout.split())

    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 4
