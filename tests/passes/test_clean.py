from __future__ import annotations

import numpy as np
import onnx
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze import squeeze
from onnxsqueeze.runtime.session import Session


def cleaned(proto: onnx.ModelProto) -> list[str]:
    """Return the operators that are left; the answers must be the same."""
    result = squeeze(proto, "clean", validate="none").model
    shape = [size.dim_value or 2 for size in proto.graph.input[0].type.tensor_type.shape.dim]
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    one, other = (np.asarray(Session(each).run(feed)["y"]) for each in (proto, result))

    assert np.allclose(one, other, rtol=1e-4, atol=1e-5)
    return [node.op_type for node in result.graph.node]


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_what_does_nothing_leaves(op: str) -> None:
    nodes = [helper.make_node(op, ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]

    assert cleaned(model(nodes, [], {"x": [2, 4]}, {"y": [2, 4]})) == ["Relu"]


def test_constants_are_folded_and_what_no_output_needs_leaves() -> None:
    nodes = [
        helper.make_node("Neg", ["c"], ["minus"]),
        helper.make_node("Sqrt", ["x"], ["unread"]),
        helper.make_node("Add", ["x", "minus"], ["y"]),
    ]

    assert cleaned(model(nodes, [constant("c", np.arange(4.0))], {"x": [2, 4]}, {"y": [2, 4]})) == ["Add"]


def test_batch_normalization_goes_into_the_convolution_in_front() -> None:
    rng = np.random.default_rng(1)
    weights = [constant("w", rng.standard_normal((6, 3, 3, 3)))]
    weights += [constant(name, rng.uniform(0.5, 1.5, 6)) for name in ("scale", "shift", "mean", "var")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["y"]),
    ]

    assert cleaned(model(nodes, weights, {"x": [1, 3, 8, 8]}, {"y": [1, 6, 6, 6]})) == ["Conv"]


def test_a_clean_model_is_left_alone() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [], {"x": [2, 4]}, {"y": [2, 4]})
    step = squeeze(proto, "clean", validate="none").report.steps[0]

    assert (step.done, step.kept) == ((), True)
