from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.errors import ModelError


def made_of(*nodes: tuple[str, list[str], list[str]]) -> ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, reads, makes) for op, reads, makes in nodes], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (made_of(("Add", ["x", "b"], ["a"]), ("Relu", ["a"], ["b"]), ("Neg", ["b"], ["y"])), "a cycle at '[ab]'"),
        (made_of(("Relu", ["x"], ["a"]), ("Neg", ["x"], ["a"]), ("Neg", ["a"], ["y"])), "two nodes make 'a'"),
    ],
)
@pytest.mark.parametrize("validate", ["full", "none"])
def test_a_broken_model_is_refused_and_no_pass_is_blamed(model: ModelProto, words: str, validate: str) -> None:
    with pytest.raises(ModelError, match=f"the model is broken: .*{words}"):
        squeeze(model, "clean", validate=validate)


def test_where_a_pass_fails_on_a_model_that_the_checker_refuses_the_model_is_to_blame() -> None:
    model = made_of(("MatMul", ["x", "x"], ["a"]), ("Add", ["a"], ["y"]))

    with pytest.raises(ModelError, match=r"the model is broken: .* has input size 1 not in range"):
        squeeze(model, "clean", validate="none")
