from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.floats.widened import computes_in, obstacle

DIGITS = Path(__file__).parents[2] / "models"
HALF = TensorProto.FLOAT16


def sixteen(model: onnx.ModelProto, dtype: type = np.float16) -> onnx.ModelProto:
    """Return a copy of a float32 model that is all in a 16-bit type, inputs and outputs included."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for held in (
        *made.graph.initializer,
        *(a.t for node in made.graph.node for a in node.attribute if a.HasField("t")),
    ):
        if held.data_type == TensorProto.FLOAT:
            held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held).astype(dtype), held.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = element
    del made.graph.value_info[:]
    return made


def feeds() -> list[dict[str, Any]]:
    with np.load(DIGITS / "resnet.calib.npz") as held:
        x = held["input"].astype(np.float16)
    return [{"input": x[i : i + 4]} for i in range(0, 64, 4)]


@pytest.mark.parametrize(
    "pipeline", ["int8", "lowrank{ratio=0.6}", "prune{ratio=0.8}", "bits{4}", "sparsify{ratio=0.4}"]
)
def test_passes_do_to_a_16_bit_model_what_they_do_to_the_float32_one(
    pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxsqueeze.contract.bench.Bench.latency", lambda *_: 0.5)
    whole = onnx.load(DIGITS / "resnet.onnx")
    half = sixteen(whole)
    plain = squeeze(whole, pipeline, [{"input": f["input"].astype(np.float32)} for f in feeds()]).report
    found = squeeze(half, pipeline, feeds())

    assert found.report.sqnr_db is not None
    assert plain.sqnr_db is not None
    assert found.report.sqnr_db > plain.sqnr_db - 3
    share = 1.05 if pipeline in ("int8", "bits{4}") else 0.56
    assert len(found.model.SerializeToString()) < share * plain.after.bytes
    for one, other in zip(
        (*half.graph.input, *half.graph.output), (*found.model.graph.input, *found.model.graph.output), strict=True
    ):
        assert one == other
    large = [t for t in found.model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= 512]
    assert large == []


def test_what_only_cleans_leaves_16_bit_arithmetic() -> None:
    half = sixteen(onnx.load(DIGITS / "resnet.onnx"))
    found = squeeze(half, "canonical", feeds())

    assert "float32" not in {step.spec for step in found.report.steps}
    assert TensorProto.FLOAT16 in {t.data_type for t in found.model.graph.initializer}


TEXT = """g (float16[2, 4] x, bool c) => (float16[2, 4] y) <float16[4, 4] w> {
    k = Constant<value = float16[1] {16384}>()
    f = Cast<to = 1>(x)
    h = Cast<to = 10>(f)
    a = MatMul(h, w)
    s = Shape(a)
    z = ConstantOfShape<value = float16[1] {14336}>(s)
    b = Add(a, z)
    d = If (c) <
        then_branch = one () => (float16[2, 4] p) { p = Mul(b, k) },
        else_branch = two () => (float16[2, 4] q) { q = MatMul(b, w) }
    >
    n = EyeLike<dtype = 10>(d)
    y = Add(d, n)
}"""


def case(dtype: type) -> onnx.ModelProto:
    text = TEXT if dtype == np.float16 else TEXT.replace("float16", "bfloat16").replace("= 10", "= 16")
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    del model.graph.value_info[:]
    w: np.ndarray[Any, Any] = np.random.default_rng(0).standard_normal((4, 4)).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return model


@pytest.mark.parametrize("taken", [True, False])
def test_casts_constants_bodies_and_types_in_attributes_follow(taken: bool) -> None:
    model = case(np.float16)
    found = squeeze(model, "float32", validate="none").model
    feed = {"x": np.arange(8, dtype=np.float16).reshape(2, 4) / 8, "c": np.array(taken)}
    one, other = (np.asarray(Session(each).run(feed)["y"]) for each in (model, found))

    onnx.checker.check_model(found)
    assert one.dtype == other.dtype == np.float16
    np.testing.assert_allclose(other.astype(float), one.astype(float), rtol=4e-3, atol=4e-3)
    assert [node.op_type for node in found.graph.node].count("Cast") == 2


def test_bfloat16_models_come_to_run_at_all() -> None:
    found = squeeze(case(ml_dtypes.bfloat16), "float32", validate="none").model

    onnx.checker.check_model(found)
    assert computes_in(View(load(found))) is None


def test_custom_operators_on_16_bits_are_left_alone() -> None:
    model = case(np.float16)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[-1].CopyFrom(helper.make_node("Gelu", ["d"], ["y"], domain="com.microsoft"))
    view = View(load(model))

    assert "the custom operator Gelu" in obstacle(view)
    assert squeeze(model, "float32", validate="none").model == model


def test_weights_in_constant_nodes_are_seen_and_written_in_16_bits_again() -> None:
    half = sixteen(onnx.load(DIGITS / "mlp.onnx"))
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in half.graph.initializer]
    del half.graph.initializer[:]
    for each in reversed(nodes):
        half.graph.node.insert(0, each)
    found = squeeze(half, "int8", [{"input": f["input"]} for f in feeds()])
    step = next(each for each in found.report.steps if each.spec.startswith("int8"))

    assert computes_in(View(load(half))) is not None
    assert sum(site.detail["op"] == "Gemm" for site in step.done) == 3
    assert len(found.model.SerializeToString()) < 0.56 * len(half.SerializeToString())
