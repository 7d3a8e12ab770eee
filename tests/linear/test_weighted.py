"""No node with a weight is left out without a word, however it is spelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import feeds, parse

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.weighted import weighted

RNG = np.random.default_rng(0)


def with_integers(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(RNG.integers(-99, 99, shape).astype(np.int8), name))
    return model


def trees() -> onnx.ModelProto:
    """Return an ensemble of one tree, whose leaves are a tensor among the attributes."""
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, tree_roots=[0], nodes_featureids=[0],
        nodes_modes=numpy_helper.from_array(np.zeros(1, np.uint8)), nodes_truenodeids=[0], nodes_falsenodeids=[1],
        nodes_splits=numpy_helper.from_array(np.zeros(1, np.float32)), nodes_trueleafs=[1], nodes_falseleafs=[1],
        leaf_targetids=[0, 0], leaf_weights=numpy_helper.from_array(np.array([1, 2], np.float32)),
    )  # fmt: skip
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, k]) for n, k in (("x", 3), ("y", 1)))
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=sets, ir_version=10)


CASES = {
    "trees": (trees(), "its weights are attributes of ai.onnx.ml.TreeEnsemble"),
    "einsum": (
        parse("""g (float[2, 5, 64] x) => (float[2, 64, 48] y) <float[48, 64, 5] w> {
            y = Einsum<equation = "bsk,nks->bkn">(x, w) }"""),
        "Einsum is not one of",
    ),
    "left": (parse("g (float[64, 8] x) => (float[64, 8] y) <float[64, 64] w> { y = MatMul(w, x) }"), "second input"),
    "table": (
        parse("g (float[8, 64] x) => (float[40, 64] y) <float[32, 64] t> { y = Concat<axis = 0>(x, t) }"),
        "Concat is not",
    ),
    "stored": (
        with_integers(
            parse("""g (float[8, 64] x) => (float[8, 64] y) <float[64, 1] s> {
                c = Cast<to = 1>(w) r = Mul(c, s) y = MatMul(x, r) }"""),
            w=(64, 64),
        ),
        "stored in integers already",
    ),
    "dequantized": (
        with_integers(
            parse("""g (float[8, 64] x) => (float[8, 64] y) <float[64] s> {
                r = DequantizeLinear<axis = 1>(w, s) y = MatMul(x, r) }"""),
            w=(64, 64),
        ),
        "",
    ),
    "custom": (
        parse("g (float[8, 64] x) => (float[8, 64] y) <float[64, 64] w> { y = my.Linear(x, w) }", domains=', "my": 1'),
        "my.Linear is not",
    ),
    "attention": (
        parse(
            """g (float[1, 9, 64] x) => (float[1, 9, 64] y) <float[64, 192] w, float[192] b> {
                y = com.microsoft.Attention<num_heads = 4>(x, w, b) }""",
            domains=', "com.microsoft": 1',
        ),
        "com.microsoft.Attention",
    ),
    "regressor": (
        parse(
            """g (float[8, 3] x) => (float[8, 1] y) {
                y = ai.onnx.ml.LinearRegressor<coefficients = [0.5, -1.0, 2.0], post_transform = "LOGISTIC">(x) }""",
            domains=', "ai.onnx.ml": 3',
        ),
        "its weights are attributes of ai.onnx.ml.LinearRegressor",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_found_wherever_it_stands(name: str) -> None:
    found = list(weighted(View(load(CASES[name][0]))))

    assert [key_of(each.node) for each in found] == ["y"]


@pytest.mark.parametrize("pass_", ["int8", "lowrank", "sparsify", "prune", "depthwise"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "dequantized"])
def test_every_pass_has_an_entry_for_it(name: str, pass_: str) -> None:
    model, words = CASES[name]

    step = squeeze(model, pass_, None if name == "custom" else feeds(model), validate="none").report.steps[-1]

    done = {site.key.partition("[")[0]: "" for site in step.done}
    entries = done | {skip.key.partition("[")[0]: skip.reason for skip in step.skipped}
    assert "y" in entries
    if entries["y"] and pass_ not in ("int8", "prune"):
        assert words in entries["y"]


@pytest.mark.parametrize("pass_", ["int8", "int8{arithmetic=false}", "bits{4}", "half", "code", "sparsify{ratio=0.5}"])
def test_scales_of_a_weight_that_is_stored_in_integers_are_not_rounded_again(pass_: str) -> None:
    model = parse("""g (float[8, 64] x) => (float[8, 512] y) <float[1024, 1] s> {
        c = Cast<to = 1>(w) b = Mul(c, s) t = Constant<value_ints = [64, 512]>()
        r = Reshape(b, t) y = MatMul(x, r) }""")
    with_integers(model, w=(1024, 32))

    result = squeeze(model, pass_, feeds(model))

    step = result.report.steps[-1]
    assert not step.done
    assert {skip.reason for skip in step.skipped} == {"its weight is stored in integers already"}


def contrib(op: str, x: list[int], out: list[int], /, *weights: tuple[int, ...], **attrs: Any) -> onnx.ModelProto:
    names = [f"w{i}" for i in range(len(weights))]
    node = helper.make_node(op, ["x", *names], ["y"], domain="com.microsoft", **attrs)
    infos = [
        helper.make_tensor_value_info(*each) for each in (("x", TensorProto.FLOAT, x), ("y", TensorProto.FLOAT, out))
    ]
    values = [
        numpy_helper.from_array((RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)
        for name, shape in zip(names, weights, strict=True)
    ]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], values)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(
    "model",
    [
        contrib("Attention", [1, 9, 64], [1, 9, 64], (64, 192), (192,), num_heads=4),
        contrib("FusedMatMul", [4, 128], [4, 128], (128, 128), transB=1, alpha=0.5),
        contrib("FusedGemm", [4, 128], [4, 128], (128, 128), (128,), activation="Relu"),
        contrib("FusedConv", [1, 32, 8, 8], [1, 64, 8, 8], (64, 32, 3, 3), activation="Relu", pads=[1] * 4),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_weights_of_the_runtimes_own_operators_are_stored(model: onnx.ModelProto) -> None:
    given = feeds(model)
    result = squeeze(model, "int8", given)

    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given[0])[0]
        for m in (model, result.model)
    )
    assert len(result.report.steps[-1].done) == 1
    assert result.report.after.bytes < 0.6 * result.report.before.bytes
    assert 10 * np.log10(np.square(before).sum() / np.square(before - after).sum()) > 25
