from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from linear_models import constant, correlated, model
from onnx import TensorProto, helper

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, answer, compare, worst
from onnxsqueeze.measure.switchboard import impacts, measure, sound, worst_error
from onnxsqueeze.measure.switches import Detour, Switchboard
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit import static as qdq
from onnxsqueeze.techniques.quantization.grids import Affine

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
    graph = load(net())
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
    graph = load(net())
    before = encode(graph).SerializeToString()
    impacts(graph, correlated(1, (6, 8, 8)), REWRITES)

    assert encode(graph).SerializeToString() == before


def test_a_big_batch_is_measured_on_its_first_two_samples() -> None:
    graph = load(net())
    batch = [{"x": np.concatenate([f["x"] for f in correlated(6, (6, 8, 8))])}]
    first = [{"x": batch[0]["x"][:2]}]

    assert impacts(graph, batch, REWRITES) == impacts(graph, first, REWRITES)


def test_a_rewrite_that_yields_nan_counts_as_infinite_error() -> None:
    def broken(graph: Graph, key: str) -> None:
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "broken", np.full_like(node.inputs[1].values, np.nan))

    found = impacts(load(net()), correlated(1, (6, 8, 8)), {"c": [broken], "a": [coarser(0.1)]})

    assert found["c"] == [float("inf")]


def test_progress_counts_the_layers() -> None:
    seen: list[tuple[str, int, int]] = []
    impacts(load(net()), correlated(1, (6, 8, 8)), REWRITES, lambda *step: seen.append(step))

    assert [step[1:] for step in seen] == [(0, 3), (1, 3), (2, 3)]


# ------------------------------------------------------------------------------------------------ detours


def rounded(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
    return qdq.dequantized(graph, tensor, Affine(0.2371, 100))


ROUND = Detour(rounded)
FEEDS = correlated(2, (6, 8, 8))


def with_a_branch() -> onnx.ModelProto:
    """The net, whose ``b`` is read in both bodies of an If as well."""
    proto = net()
    body = [
        helper.make_graph(
            [helper.make_node(op, ["b"], [f"{op}_made"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_made", TensorProto.FLOAT, None)],
        )
        for op in ("Neg", "Abs")
    ]
    proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=body[0], else_branch=body[1]))
    proto.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return proto


def applied(graph: Graph, variant: dict[str, Rewrite | Detour]) -> Graph:
    copy = edit.duplicate(graph)
    for key, rewrite in variant.items():
        rewrite(copy, key)
    edit.tidy(copy)
    return copy


def same(one: Answers, two: Answers) -> bool:
    return all(
        a.keys() == b.keys() and all(np.allclose(np.asarray(a[n]), np.asarray(b[n]), atol=1e-5) for n in a)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("tensor", ["x", "a", "b", "c", "y"])
@pytest.mark.parametrize("kind", ["net", "branch", "old"])
def test_a_detour_that_is_switched_on_does_what_applying_it_does(tensor: str, kind: str) -> None:
    """``x`` is an input, ``b`` has several readers, ``c`` is read and an output; before opset 9 there is no Where."""
    proto = with_a_branch() if kind == "branch" else net()
    graph = load(proto)
    detour = ROUND
    if kind == "old":  # nor is there QuantizeLinear
        graph.opset = 8
        detour = Detour(lambda g, t: edit.insert(g, g, "Floor", [t], f"{t.name}_floor"))
    board = Switchboard(graph, [{tensor: detour}], FEEDS)
    expected, alone = answer(graph, None, FEEDS), answer(applied(graph, {tensor: detour}), None, FEEDS)

    assert same(board.expected, expected)
    assert not same(alone, expected)
    assert same(board.answers((0,)), alone)
    assert same(board.answers(()), expected)


def test_detours_and_rewrites_are_switched_together_and_one_by_one() -> None:
    graph = load(with_a_branch())
    variants: list[dict[str, Rewrite | Detour]] = [
        {"x": ROUND},
        {"a": coarser(0.0937), "b": ROUND},
        {"c": ROUND},
        {"c": coarser(0.2)},
    ]
    board = Switchboard(graph, variants, FEEDS)

    for on in [(0,), (1,), (2,), (3,), (0, 2), (2, 3), (0, 1, 2, 3)]:
        merged = edit.duplicate(graph)
        for key, rewrite in sorted(
            ((k, r) for i in on for k, r in variants[i].items()), key=lambda each: isinstance(each[1], Detour)
        ):
            rewrite(merged, key)
        edit.tidy(merged)
        session = Session(merged, optimize="none")  # else a layer between two pairs has its weights rounded as well
        assert same(board.answers(on), [session.run(feed) for feed in FEEDS]), on


def test_several_detours_of_one_tensor_can_be_compared() -> None:
    def times(factor: float) -> Detour:
        def through(graph: Graph, tensor: gs.Tensor) -> gs.Tensor:
            constant = edit.constant(graph, "factor", np.float32(factor).reshape(()))
            return edit.insert(graph, graph, "Mul", [tensor, constant], "times")

        return Detour(through)

    detours = [{"b": times(factor)} for factor in (1.2, 1.1, 1.05)]
    graph = load(net())
    board = Switchboard(graph, detours, FEEDS)
    found = [worst_error(board.expected, board.answers((i,))) for i in range(3)]

    assert found[0] > found[1] > found[2] > 0
    for one, detour in zip(found, detours, strict=True):
        alone = answer(applied(graph, dict(detour)), None, FEEDS)
        assert one == pytest.approx(worst_error(board.expected, alone), rel=1e-3)


def test_an_input_that_is_an_output_as_well_is_changed_for_its_readers_only() -> None:
    proto = net()
    proto.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 8, 8]))
    graph = load(proto)
    board = Switchboard(graph, [{"x": ROUND}], FEEDS)
    found = board.answers((0,))

    assert same(found, answer(applied(graph, {"x": ROUND}), None, FEEDS))
    assert all((np.asarray(a["x"]) == f["x"]).all() for a, f in zip(found, FEEDS, strict=True))
    assert not same(found, board.expected)


def test_a_switchboard_leaves_the_graph_as_it_was() -> None:
    graph = load(with_a_branch())
    before = encode(graph).SerializeToString()
    Switchboard(graph, [{"b": ROUND}, {"c": ROUND}], FEEDS).answers((0, 1))

    assert encode(graph).SerializeToString() == before


def test_a_switchboard_answers_on_the_first_samples_only_if_it_is_told_so() -> None:
    batch = [{"x": np.concatenate([f["x"] for f in correlated(4, (6, 8, 8))])}]
    graph = load(net())
    whole, cut = (Switchboard(graph, [{"b": ROUND}], batch, samples) for samples in (None, 2))

    assert [len(np.asarray(b.answers((0,))[0]["y"])) for b in (whole, cut)] == [4, 2]


def test_a_node_with_a_body_is_not_copied() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["u"])], "then", [], [helper.make_tensor_value_info("u", 1, None)]
    )
    nodes = [helper.make_node("If", ["c"], ["v"], then_branch=body, else_branch=body),
             helper.make_node("Mul", ["x", "v"], ["y"])]  # fmt: skip
    graph = load(model(nodes, [constant("w", np.ones(3))], {"x": [2, 3]}, {"y": [2, 3]}))
    condition = onnx.helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    proto = encode(graph)
    proto.graph.input.append(condition)
    feed = {"x": np.ones((2, 3), np.float32), "c": np.array(True)}

    assert measure(load(proto), [{"v": lambda graph, key: None}], [feed], worst_error) == [None]


def test_a_rewrite_that_makes_nan_or_infinity_is_the_worst_there_is() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Identity", ["h"], ["y"])]
    proto = model(nodes, [constant("w", np.eye(4))], {"x": ["n", 4]}, {"y": ["n", 4]})  # type: ignore[list-item]
    feed = {"x": np.ones((2, 4), np.float32)}

    def broken(value: float, graph: Graph, key: str) -> None:
        node, _ = edit.find(graph, key)
        node.inputs[1] = edit.constant(graph, "broken", np.full((4, 4), value, np.float32))

    for value in (float("nan"), float("inf")):
        rewrite = {"h": partial(broken, value)}
        assert measure(load(proto), [rewrite], [feed], worst_error) == [float("inf")]


def test_variants_that_do_not_run_behind_a_switch_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fussy(Switchboard):
        def __init__(self, original: Graph, variants: Any, feeds: Any, samples: int | None = None) -> None:
            if any("b" in variant for variant in variants):
                raise UnmeasuredError("it does not run")
            super().__init__(original, variants, feeds, samples)

    monkeypatch.setattr("onnxsqueeze.measure.switchboard.Switchboard", Fussy)
    graph = load(helper.make_model(helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["b"]),
         helper.make_node("Abs", ["b"], ["c"]), helper.make_node("Exp", ["c"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8))  # fmt: skip
    feeds = [{"x": np.array([0.1, 0.5, 1.2, 0.7], np.float32)}]
    variants = {name: {name: ROUND} for name in ("a", "b", "c")}
    found = sound(graph, variants, feeds, None)
    assert [names for _, names in found] == [("a",), ("c",)]
    errors = measure(graph, [variants[name] for name in ("a", "b", "c")], feeds, worst_error)
    assert [error is None for error in errors] == [False, True, False]
