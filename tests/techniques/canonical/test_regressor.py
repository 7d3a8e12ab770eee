"""LinearRegressor is a Gemm for every pass, where it is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnxsqueeze import squeeze

RNG = np.random.default_rng(0)


def regressor(targets: int, columns: int, kind: int = 1, **attributes: Any) -> onnx.ModelProto:
    weights = (RNG.standard_normal(targets * columns) / np.sqrt(columns)).astype(np.float32)
    node = helper.make_node(
        "LinearRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        targets=targets,
        coefficients=weights.tolist(),
        **attributes,
    )
    x = helper.make_tensor_value_info("x", kind, ["n", columns])
    y = helper.make_tensor_value_info("y", 1, ["n", targets])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("intercepts", [{}, {"intercepts": [0.5] * 48}])
def test_it_answers_the_same_as_a_gemm_and_is_quantized(intercepts: dict[str, Any]) -> None:
    model = regressor(48, 64, **intercepts)
    feeds = [{"x": RNG.standard_normal((4, 64)).astype(np.float32)} for _ in range(4)]

    result = squeeze(model, "canonical", feeds)

    one, other = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds[0])[0]
        for m in (model, result.model)
    )
    assert [node.op_type for node in result.model.graph.node] == ["Gemm"]
    assert one.shape == other.shape
    assert np.allclose(one, other, atol=1e-5)
    assert squeeze(model, "int8", feeds).report.steps[-1].done


@pytest.mark.parametrize(
    "model", [regressor(4, 8, kind=11), regressor(4, 8, post_transform="LOGISTIC"), regressor(4, 8, intercepts=[0.5])]
)
def test_other_types_and_transforms_stay(model: onnx.ModelProto) -> None:
    assert squeeze(model, "canonical", validate="none").model == model
