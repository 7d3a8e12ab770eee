"""Calls of local functions written out: the same answers, names of their own, nothing lost."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nasty_models import build, text

from onnxsqueeze.graph.edit import tidy
from onnxsqueeze.graph.functions import callee, calls, inline, obstacle
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph

X = np.array([-1.0, 0.5, 2.0], np.float32)


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every call written out."""
    graph = load(model)
    while found := next(((n, s, f) for n, s in walk(graph) if (f := callee(graph, n)) is not None), None):
        node, scope, function = found
        inline(graph, scope, node, function)
    tidy(graph)
    return encode(graph)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feed)]


def twice(body: str, functions: str, **feed: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], onnx.ModelProto]:
    model = text(body, ir=10, opset='"" : 17, "local" : 1', functions=functions)
    del model.graph.value_info[:]
    flat = written_out(model)
    return run(model, **feed), run(flat, **feed), flat


@pytest.mark.parametrize("name", ["functions with defaults references and calls", "a branch within a function"])
def test_answers_stay_and_no_call_is_left(name: str) -> None:
    model = build(name)
    feed = {"x": X} | ({"c": np.array(True)} if "branch" in name else {})

    flat = written_out(model)

    assert np.array_equal(run(model, **feed)[0], run(flat, **feed)[0])
    assert not [node for node in flat.graph.node if node.domain == "local"]
    assert {f.name for f in flat.functions} <= {"unused"}


@pytest.mark.parametrize(
    ("body", "functions"),
    [
        (  # two calls of one function, and names inside that the model has, too
            "g (float[3] x) => (float[3] y) { t = local.f (x) r = local.f (t) y = Add (r, x) }",
            '<domain: "local", opset_import: ["" : 17]> f (x) => (y) { t = Neg (x) y = Exp (t) }',
        ),
        (  # a result that nobody wants
            "g (float[3] x) => (float[3] y) { y, u = local.f (x) }",
            '<domain: "local", opset_import: ["" : 17]> f (a) => (b, c) { b = Neg (a) c = Abs (b) }',
        ),
        (  # an optional input left out, in front and at the end
            "g (float[3] x) => (float[3] y) { y = local.f (x) }",
            '<domain: "local", opset_import: ["" : 17]> f (a, low, high) => (b) { b = Clip (a, low, high) }',
        ),
        (  # a result that the function reads itself, also in a branch
            "g (float[3] x, bool c) => (float[3] y, float[3] z) { y, z = local.f (x, c) }",
            """<domain: "local", opset_import: ["" : 17]> f (x, c) => (p, q) { p = Neg (x) q = If (c) <
                then_branch = t () => (r) { r = Mul (p, x) }, else_branch = e () => (s) { s = Identity (p) }> }""",
        ),
        (  # called in a branch
            "g (float[3] x, bool c) => (float[3] y) { y = If (c) < then_branch = t () => (p) { p = local.f (x) },"
            " else_branch = e () => (q) { q = local.f (x) }> }",
            '<domain: "local", opset_import: ["" : 17]> f (a) => (b) { k = Neg (a) b = Exp (k) }',
        ),
    ],
)  # fmt: skip
def test_whatever_a_function_does_with_its_inputs_and_results(body: str, functions: str) -> None:
    feed = {"x": X} | ({"c": np.array(True)} if "bool c" in body else {})

    before, after, flat = twice(body, functions, **feed)

    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert not flat.functions
    names = [name for node in flat.graph.node for name in node.output if name]
    assert len(names) == len(set(names))


def test_an_input_that_is_handed_on_becomes_an_identity() -> None:
    model = text(  # ONNX Runtime does not load it as a function
        "g (float[3] x) => (float[3] y, float[3] z) { y, z = local.f (x) }", 10, '"" : 17, "local" : 1',
        '<domain: "local", opset_import: ["" : 17]> f (a) => (a, b) { b = Neg (a) }',
    )  # fmt: skip
    del model.graph.value_info[:]

    y, z = run(written_out(model), x=X)

    assert np.array_equal(y, X)
    assert np.array_equal(z, -X)


def test_documentation_and_metadata_of_the_nodes_inside_stay() -> None:
    model = build("functions with defaults references and calls")
    model.functions[0].node[1].metadata_props.add(key="who", value="inner")

    flat = written_out(model)

    product = next(node for node in flat.graph.node if node.op_type == "Mul")
    assert product.doc_string == "inner"
    assert product.metadata_props[0].value == "inner"


def test_overloads_are_told_apart() -> None:
    graph = load(build("function overloads"))

    assert sorted(f.overload for _, f in calls(graph) if f.name == "unused") == ["other"]


def test_a_function_of_another_opset_is_written_out_only_where_its_operators_are_the_same() -> None:
    def of(body: str) -> Graph:
        functions = f'<domain: "local", opset_import: ["" : 12]> f (a) => (b) {{ {body} }}'
        return load(text("g (float[3] x) => (float[3] y) { y = local.f (x) }", 10, '"" : 17, "local" : 1', functions))

    unchanged, changed = of("b = Elu (a)"), of("b = Softmax (a)")

    assert obstacle(unchanged, calls(unchanged)[0][1]) == ""
    assert "written for opset 12" in obstacle(changed, calls(changed)[0][1])
