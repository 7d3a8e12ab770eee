"""Weights that are cut out of one constant become constants, and the file does not grow."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from small_models import feeds, parse

from onnxsqueeze import squeeze


def experts(cuts: str, weight: str = "3, 32, 32"):  # type: ignore[no-untyped-def]
    return parse(f"""g (float[n, 32] x) => (float[n, 32] y) <float[{weight}] w> {{
        {cuts} a = MatMul(x, e) b = MatMul(a, f) y = MatMul(b, h) }}""")


GATHERED = " ".join(
    f"i{k} = Constant<value_ints = [{k}]>() g{k} = Gather<axis = 0>(w, i{k}) {name} = Squeeze(g{k}, z)"
    for k, name in enumerate("efh")
)
SCALAR = " ".join(
    f"i{k} = Constant<value_int = {k - 3}>() {name} = Gather<axis = 0>(w, i{k})" for k, name in enumerate("efh")
)
SLICED = " ".join(
    f"s{k} = Constant<value_ints = [{k}]>() t{k} = Constant<value_ints = [{k + 1}]>() "
    f"g{k} = Slice(w, s{k}, t{k}, z) {name} = Squeeze(g{k}, z)"
    for k, name in enumerate("efh")
)
ZERO = "z = Constant<value_ints = [0]>() "
SPLIT = "e, f, h = Split<axis = 1>(w, sizes)"


@pytest.mark.parametrize("cuts", [ZERO + GATHERED, SCALAR, ZERO + SLICED])
def test_experts_become_layers(cuts: str) -> None:
    model = experts(cuts)
    feed = feeds(model)[0]

    result = squeeze(model, "clean", feeds(model))

    one, other = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for m in (model, result.model)
    )
    assert [node.op_type for node in result.model.graph.node] == ["MatMul"] * 3
    assert np.array_equal(one, other)
    assert result.report.after.bytes < result.report.before.bytes
    assert len(squeeze(model, "int8", feeds(model)).report.steps[-1].done) == 3


def test_a_split_weight_becomes_layers() -> None:
    model = experts(SPLIT, "32, 96")
    model.graph.initializer.append(numpy_helper.from_array(np.array([32, 32, 32], np.int64), "sizes"))

    result = squeeze(model, "clean", feeds(model))

    assert [node.op_type for node in result.model.graph.node] == ["MatMul"] * 3
    assert {tuple(t.dims) for t in result.model.graph.initializer} == {(32, 32)}


def test_parts_that_overlap_and_tables_that_others_read_stay() -> None:
    twice = experts(SCALAR.replace("Gather<axis = 0>(w, i2)", "Identity(e)").replace("value_int = -1", "value_int = 0"))
    beside = parse("""g (float[n, 32] x, int64[m] i) => (float[n, 32] y, float[m, 32, 32] z) <float[3, 32, 32] w> {
        k = Constant<value_int = 1>() e = Gather<axis = 0>(w, k) y = MatMul(x, e) z = Gather<axis = 0>(w, i) }""")
    larger = parse("""g (float[n, 32] x) => (float[n, 32] y, float[n, 32] z) <float[3, 32, 32] w> {
        k = Constant<value_int = 1>() e = Gather<axis = 0>(w, k) y = MatMul(x, e)
        a = Constant<value_ints = [0]>() b = Constant<value_ints = [3]>() s = Slice(w, a, b, a)
        p = MatMul(x, s) z = ReduceSum<keepdims = 0>(p, a) }""")

    assert squeeze(twice, "clean", feeds(twice)).report.steps[0].kept
    for model in (beside, larger):
        made = squeeze(model, "clean{fold-limit=0}", validate="none").model
        assert "Gather" in {node.op_type for node in made.graph.node}
