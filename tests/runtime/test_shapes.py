"""Shapes that inference gives up on are those of a run, at the sizes of the feed."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from small_models import parse

from onnxsqueeze import squeeze
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.cost import cost, macs
from onnxsqueeze.runtime.shapes import activations, inferred_and_measured

Array = NDArray[np.generic]
RNG = np.random.default_rng(0)


def computed(rows: int | str = "n") -> onnx.ModelProto:
    """A network whose Reshape goes to a shape that is computed from values, so that nobody can infer it."""
    return parse(f"""g (float[{rows}, 64] x, int64[2] to) => (float[?, ?] y)
        <float[64, 96] w, float[96, 32] v> {{
            double_to = Add(to, to) sized = Reshape(x, double_to) a = MatMul(sized, w) b = Relu(a) y = MatMul(b, v)
        }}""")


FEED: dict[str, Array] = {"x": RNG.standard_normal((6, 64)).astype(np.float32), "to": np.array([3, 32], np.int64)}


def test_layers_behind_a_computed_shape_are_counted() -> None:
    graph = load(computed())

    found = macs(graph, FEED)

    assert found == {"a": 6 * 64 * 96, "y": 6 * 96 * 32}
    assert cost(graph, 1, FEED).macs == sum(found.values())


def test_a_run_that_fails_leaves_the_count_unknown_and_not_zero() -> None:
    graph = load(computed())
    feed: dict[str, Array] = {"x": FEED["x"], "to": np.array([3, 31], np.int64)}

    assert macs(graph, feed) == {}
    assert cost(graph, 1, feed).macs is None


def test_sequences_do_not_keep_other_tensors_from_being_measured() -> None:
    model = parse("""g (float[n, 4] x, int64[2] to) => (float[?, ?] y) <float[4, 8] w> {
        parts = SplitToSequence<axis = 0>(x) whole = ConcatFromSequence<axis = 0>(parts)
        sized = Reshape(whole, to) y = MatMul(sized, w)
    }""")
    feed: dict[str, Array] = {"x": np.ones((3, 4), np.float32), "to": np.array([3, 4], np.int64)}

    assert macs(load(model), feed) == {"y": 3 * 4 * 8}


def test_bodies_learn_from_what_was_measured_around_them() -> None:
    model = parse("""g (float[n, 64] x, int64[2] to, bool c) => (float[?, ?] y) <float[64, 96] w> {
        sized = Reshape(x, to)
        y = If<then_branch = a () => (float[?, ?] p) { p = MatMul(sized, w) },
               else_branch = b () => (float[?, ?] q) { m = MatMul(sized, w) q = Neg(m) }>(c)
    }""")
    feed: dict[str, Array] = FEED | {"to": np.array([6, 64], np.int64), "c": np.array(True)}

    assert macs(load(model), feed) == {"p": 6 * 64 * 96, "m": 6 * 64 * 96}


def test_what_is_inferred_is_what_is_measured() -> None:
    graph = load(computed())

    _, shapes = inferred_and_measured(graph, FEED)

    assert shapes["sized"] == (6, 64)
    assert shapes["b"] == (6, 96)
    assert activations(graph, FEED)["b"] == ((6, 96), np.dtype(np.float32))


def test_a_budget_over_layers_of_computed_shapes_is_met() -> None:
    rng = np.random.default_rng(1)
    nodes, weights, x = [], [], "x"
    for k in range(4):
        thin = rng.standard_normal((256, 16)) @ rng.standard_normal((16, 256)) / 64
        weights.append(numpy_helper.from_array(thin.astype(np.float32), f"w{k}"))
        nodes += [
            helper.make_node("Add", ["to", "to"], [f"d{k}"]),
            helper.make_node("Reshape", [x, f"d{k}"], [f"s{k}"]),
        ]
        nodes += [
            helper.make_node("MatMul", [f"s{k}", f"w{k}"], [f"m{k}"]),
            helper.make_node("Relu", [f"m{k}"], [f"r{k}"]),
        ]
        x = f"r{k}"
    infos = [helper.make_tensor_value_info(*each) for each in (("x", 1, ["n", 256]), ("to", 7, [2]))]
    y = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["a", "b"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos, [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    feeds = [
        {"x": rng.standard_normal((128, 256)).astype(np.float32), "to": np.array([64, 128], np.int64)} for _ in range(8)
    ]

    report = squeeze(model, "lowrank{ratio=0.5}", feeds).report

    assert report.before.macs == 4 * 128 * 256 * 256
    assert report.after.macs is not None
    assert report.after.macs <= 0.5 * report.before.macs
