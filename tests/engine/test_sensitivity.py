"""The study of sensitivity: library, command line and page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from linear_models import constant, conv_model, correlated, model
from onnx import helper

from onnxsqueeze import Sensitivity, sensitivity
from onnxsqueeze.cli.main import main
from onnxsqueeze.contract.plan import Level
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, Ruler, answer, compare, worst
from onnxsqueeze.measure.switchboard import measure, worst_error
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.passes.lowrank import LowRank
from onnxsqueeze.passes.sparsify import Sparsify
from onnxsqueeze.report.pages.figures import heat
from onnxsqueeze.report.pages.page import sensitivity_page
from onnxsqueeze.report.sensitivity import LayerStudy, Point
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect

Feeds = list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]]


def net() -> onnx.ModelProto:
    """Three convolutions, of which the last reads a hundredth of what the others make: only they matter."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (24, 6, 3, 3), "w2": (24, 24, 3, 3), "w3": (24, 24, 3, 3)}
    constants = [constant(name, rng.normal(size=size) / 9) for name, size in sizes.items()]
    constants.append(constant("small", np.array([0.003])))
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1], name="loud"),
        helper.make_node("Conv", ["b", "w3"], ["d"], pads=[1, 1, 1, 1], name="quiet"),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Mul", ["e", "small"], ["f"]),
        helper.make_node("Add", ["c", "f"], ["y"]),
    ]
    return model(nodes, constants, {"x": ["n", 6, 8, 8]}, {"y": ["n", 24, 8, 8]})  # type: ignore[list-item]


def feeds() -> Feeds:
    return correlated(24, (6, 8, 8))


@pytest.fixture(scope="module")
def studies() -> Mapping[str, Sensitivity]:
    return {name: sensitivity(net(), name, feeds()) for name in ("lowrank", "int8", "sparsify")}


@pytest.mark.parametrize("name", ["lowrank", "int8", "sparsify"])
def test_harsher_levels_have_more_error_and_leave_less(studies: Mapping[str, Sensitivity], name: str) -> None:
    found = studies[name]

    assert len(found.layers) >= 2
    for layer in found.layers:
        measured = [point.measured for point in layer.points]
        assert measured == sorted(measured)  # type: ignore[type-var]
        assert [p.share for p in layer.points] == sorted((p.share for p in layer.points), reverse=True)
        assert [p.label for p in layer.points] == [label for label in found.levels if layer.at(label)]


def test_a_layer_that_does_not_matter_comes_last_although_its_own_error_is_as_large(
    studies: Mapping[str, Sensitivity],
) -> None:
    for name in ("lowrank", "sparsify"):
        ranked = studies[name].ranked
        loud, quiet = (next(layer for layer in ranked if layer.name == each) for each in ("loud", "quiet"))

        assert ranked[-1].name == "quiet"
        assert 0.3 < quiet.points[-1].predicted / loud.points[-1].predicted < 3  # type: ignore[operator]
        assert loud.worst > 100 * quiet.worst


@pytest.mark.parametrize("pass_", [LowRank(), Int8(), Sparsify()], ids=lambda p: p.name)
def test_a_level_measured_by_a_switch_is_what_a_graph_with_that_layer_rewritten_gives(
    pass_: LowRank | Int8 | Sparsify,
) -> None:
    graph = load(net())
    stats = collect(graph, list(pass_.needs(View(graph))), feeds()[:16])
    levels = list(pass_.levels(View(graph), stats))
    found = measure(graph, [level.rewrites for level in levels], feeds()[20:22], worst_error)
    expected = answer(graph, None, feeds()[20:22])

    assert len(levels) >= 3
    for level, error in zip(levels, found, strict=True):
        variant = edit.duplicate(graph)
        for key, rewrite in level.rewrites.items():
            rewrite(variant, key)
        edit.tidy(variant)
        alone = 10 ** (-worst(compare(expected, answer(variant, None, feeds()[20:22]))) / 10)
        assert error == pytest.approx(alone, rel=0.05)


@pytest.mark.parametrize("pass_", [LowRank(), Int8(), Sparsify()], ids=lambda p: p.name)
def test_the_closed_form_predicts_the_error_of_a_last_layer(pass_: LowRank | Int8 | Sparsify) -> None:
    only = conv_model(np.random.default_rng(0).normal(size=(24, 12, 3, 3)), (9, 9), pads=[1, 1, 1, 1])
    found = sensitivity(only, pass_, correlated(48, (12, 9, 9)))

    for point in found.layers[0].points:
        assert point.measured is not None
        assert point.predicted is not None
        assert 0.05 < point.measured / point.predicted < 5  # of the energy and of the variance, which is less


def energy_over_variation(
    data: list[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]], samples: int
) -> float:
    """Return what an output that is wholly lost counts: its energy over its variation."""
    answers = answer(load(net()), None, [{"x": feed["x"][:samples]} for feed in data])
    lost: Answers = [{"y": 0 * np.asarray(each["y"])} for each in answers]
    return Ruler().error(answers, lost)


def test_several_nodes_of_one_level_are_switched_together() -> None:
    graph = load(net())

    def silent(graph: Graph, key: str) -> None:
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "silent", np.zeros(node.inputs[1].shape, np.float32))

    both, one, inside = {"c": silent, "d": silent}, {"c": silent}, {"nowhere": silent}
    found = measure(graph, [both, one, inside], feeds()[:1], worst_error)
    signal = energy_over_variation(feeds()[:1], 2)

    assert found[0] == pytest.approx(signal, rel=0.01)
    assert found[1] == pytest.approx(signal, rel=0.1)
    assert found[1] != found[0]
    assert found[2] is None


def test_a_study_of_more_levels_than_a_session_holds_keeps_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sensitivity(net(), "sparsify", feeds())
    monkeypatch.setattr("onnxsqueeze.measure.switchboard.TOGETHER", 2)
    parts = sensitivity(net(), "sparsify", feeds())

    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert [p.measured for p in a.points] == pytest.approx([p.measured for p in b.points], rel=1e-3)


def test_of_a_large_model_the_middle_level_is_measured_everywhere_and_the_others_where_it_matters(
    studies: Mapping[str, Sensitivity], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = studies["sparsify"]
    feed_macs = 6 * 8 * 8 * 9 * 24 + 2 * 24 * 8 * 8 * 9 * 24
    monkeypatch.setattr("onnxsqueeze.engine.sensitivity.MOST_WORK", 5 * feed_macs)
    monkeypatch.setattr("onnxsqueeze.engine.sensitivity.MEASURED", 1)
    some = sensitivity(net(), "sparsify", feeds())
    full = [layer.name for layer in some.layers if all(point.measured is not None for point in layer.points)]

    assert full == [max(every.layers, key=lambda layer: layer.points[1].measured or 0.0).name]
    assert some.ranked[0].name == full[0]
    for layer in some.layers:
        assert layer.points[1].measured is not None
        assert all(point.predicted is not None for point in layer.points)
    assert sensitivity_page(some, "x").count("<polyline") >= 1


def test_the_error_of_arithmetic_in_int8_is_predicted_from_rounded_weights_and_rounded_inputs() -> None:
    rng = np.random.default_rng(0)
    constants = [constant(name, rng.normal(size=(32, 32, 3, 3)) / 17) for name in ("w1", "w2")]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="last"),
    ]
    chain = model(nodes, constants, {"x": ["n", 32, 16, 16]}, {"y": ["n", 32, 14, 14]})  # type: ignore[list-item]
    found = sensitivity(chain, "int8", correlated(24, (32, 16, 16)))

    weights, arithmetic = found.layers[-1].points
    assert arithmetic.predicted == pytest.approx(arithmetic.measured, rel=0.2)
    assert weights.predicted == pytest.approx(weights.measured, rel=0.8)  # blocks round less than whole channels
    assert arithmetic.predicted > 2 * weights.predicted  # type: ignore[operator]


def test_lowrank_is_studied_at_every_level_of_every_layer_that_is_large_enough(
    studies: Mapping[str, Sensitivity],
) -> None:
    for layer in studies["lowrank"].layers:
        assert [point.label for point in layer.points] == ["75%", "50%", "25%"]
        assert all(point.share <= float(point.label[:-1]) / 100 for point in layer.points)


def test_a_layer_without_effect_does_not_take_the_colour_from_the_others() -> None:
    layers = tuple(
        LayerStudy(name, name, "Conv", 1, (Point("x", 1.0, error, error),))
        for name, error in (("bad", 1e-2), ("fair", 1e-4), ("none", 1e-12))
    )
    reds = {layer.key: cells[0][2] for layer, cells, _ in heat(Sensitivity("m", "s", "f", ("x",), layers, 0.0))}

    assert reds == {"bad": 75.0, "fair": pytest.approx(37.5), "none": 0.0}


def test_a_plug_in_brings_its_own_levels() -> None:
    class Halved(LowRank):
        def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
            def rewrite(graph: Graph, key: str) -> None:
                node, _ = edit.find(graph, key)
                node.inputs[1] = edit.constant(graph, "half", np.asarray(node.inputs[1].values) / 2)

            yield Level("c", "half", 1.0, 0.25, {"c": rewrite})

    found = sensitivity(net(), Halved(), feeds())

    assert found.levels == ("half",)
    held = feeds()
    signal = energy_over_variation([held[i] for i in range(len(held))], 2)
    assert found.layers[0].points[0].measured == pytest.approx(0.25 * signal, rel=0.1)


def test_ranks_correlate_as_spearman_says() -> None:
    def study(pairs: list[tuple[float, float]]) -> Sensitivity:
        layers = tuple(LayerStudy(str(i), "", "Conv", 1, (Point("x", 1.0, *pair),)) for i, pair in enumerate(pairs))
        return Sensitivity("m", "s", "f", ("x",), layers, 0.0)

    assert study([(1, 10), (2, 20), (3, 40)]).correlation == {"x": pytest.approx(1.0)}
    assert study([(1, 3), (2, 2), (3, 1)]).correlation == {"x": pytest.approx(-1.0)}
    assert study([(1, 1), (1, 2), (1, 3)]).correlation == {"x": None}
    assert study([(1, 1), (2, 2)]).correlation == {"x": None}


def test_what_cannot_be_studied_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"clean has no levels to compare layers at; study one of .*lowrank"):
        sensitivity(net(), "clean", feeds())
    with pytest.raises(FeedError, match="give calibration="):
        sensitivity(net(), "lowrank")


def test_the_command_prints_a_table_and_writes_json_and_a_page(tmp_path: Path) -> None:
    page, path = tmp_path / "s.html", tmp_path / "net.onnx"
    onnx.save(net(), path)
    np.savez(tmp_path / "net.calib.npz", x=np.concatenate([feed["x"] for feed in feeds()]))
    arguments = ["sensitivity", str(path), "-p", "sparsify"]
    table = CliRunner().invoke(main, [*arguments, "--html", str(page)])
    values = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    text = page.read_text(encoding="utf-8")

    assert table.exit_code == 0
    assert "is the most sensitive layer: alone at 30%" in table.stdout
    assert values["levels"] == ["70%", "50%", "30%"]
    assert len(values["layers"]) == 3
    assert 'aria-label="predicted and measured errors"' in text
    assert text.count("<polyline") >= 2
    assert "onnxsqueeze sensitivity" in text
    assert CliRunner().invoke(main, ["sensitivity", str(path)]).exit_code == 2


def test_a_study_of_nothing_is_a_page_too() -> None:
    empty = Sensitivity("model.onnx", "lowrank", "2 feeds", (), (), 0.1)

    assert "No layer can be treated by lowrank." in sensitivity_page(empty, "x")


def test_workers_come_to_the_same() -> None:
    for spec, executor in (("int8", 2), ("sparsify", ThreadPoolExecutor(2))):
        assert sensitivity(net(), spec, feeds(), executor=executor).layers == sensitivity(net(), spec, feeds()).layers
