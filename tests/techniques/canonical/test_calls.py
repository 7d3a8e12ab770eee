"""Which calls of local functions are written out: those that hold layers with weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import feeds, parse

from onnxsqueeze import squeeze

LINEAR = """<domain: "my", opset_import: ["": 17]> linear (x, w, b) => (y) {
    t = Transpose<perm = [1, 0]>(w) m = MatMul(x, t) y = Add(m, b) }"""
OUTER = """<domain: "my", opset_import: ["": 17, "my": 1]> block (x, w, b) => (y) {
    l = my.linear(x, w, b) y = my.gelu(l) }"""
GELU = """<domain: "my", opset_import: ["": 17]> gelu (x) => (y) {
    h = Constant<value_float = 0.5>() e = Erf(x) p = Mul(e, x) y = Mul(p, h) }"""


def model_of(calls: str, *functions: str) -> onnx.ModelProto:
    return parse(
        f"""g (float[n, 32] x) => (float[n, 32] y) <float[96, 32] w, float[96] b, float[32, 96] v, float[32] c> {{
            {calls} }}""",
        domains=', "my": 1',
        functions="\n".join(functions),
    )


LAYERS = "a = my.block(x, w, b) y = my.block(a, v, c)"


@pytest.mark.parametrize("pass_", ["int8", "lowrank{rank=16}", "sparsify{ratio=0.5}"])
def test_layers_inside_functions_are_treated_like_others(pass_: str) -> None:
    model = model_of(LAYERS, LINEAR, OUTER, GELU)

    result = squeeze(model, pass_, feeds(model, 12))

    assert result.report.steps[-1].done
    assert [f.name for f in result.model.functions] == ["gelu"]
    assert sum(node.op_type == "gelu" for node in result.model.graph.node) == 2


def test_channels_leave_from_layers_that_were_in_functions() -> None:
    model = model_of("a = my.linear(x, w, b) r = Relu(a) y = my.linear(r, v, c)", LINEAR)

    result = squeeze(model, "prune{ratio=0.6}", feeds(model, 12))

    assert result.report.steps[-1].done
    assert not result.model.functions


def test_functions_without_layers_and_models_in_which_nothing_changes_keep_their_functions() -> None:
    model = model_of("a = my.gelu(x) m = MatMul(a, q) y = Add(m, c)", GELU)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(32, dtype=np.float32) / 3, "q"))

    assert squeeze(model, "clean").model == model


def test_a_weight_inside_a_function_that_is_called_twice_is_not_copied() -> None:
    model = model_of("a = my.inside(x) y = my.inside(a)")
    function = onnx.parser.parse_function("""<domain: "my", opset_import: ["": 17]> inside (x) => (y) {
        w = Constant<value_float = 1.0>() y = MatMul(x, w) }""")
    weight = onnx.numpy_helper.from_array(np.eye(32, dtype=np.float32))
    del function.node[0].attribute[:]
    function.node[0].attribute.append(onnx.helper.make_attribute("value", weight))
    model.functions.append(function)

    step = squeeze(model, "clean").report.steps[0]
    once = squeeze(model_of_once(model), "int8").report.steps[-1]

    assert not step.done
    assert {skip.reason for skip in step.skipped} == {
        "the local function it calls stays: its weights stand inside, and every call would get its own"
    }
    assert [site.key for site in once.done] == ["y"]


def model_of_once(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[0]
    copy.graph.node[0].input[0] = "x"
    return copy


def test_a_function_of_another_opset_says_why_it_stays() -> None:
    old = LINEAR.replace('"": 17', '"": 12').replace("Add(m, b)", "Softmax(m)")

    step = squeeze(model_of("a = my.linear(x, w, b) y = my.linear(a, v, c)", old), "clean").report.steps[0]

    assert "written for opset 12" in step.skipped[0].reason
