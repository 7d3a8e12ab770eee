"""What ONNX Runtime computes in one kernel stays whole, though its end could be folded into the layer behind it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxsqueeze import squeeze

ROOT = "m = ReduceMean<axes=[-1]>(x) s = Sub(x, m) p = Pow(s, two) v = ReduceMean<axes=[-1]>(p) "
NORMAL = "e = Add(v, eps) r = Sqrt(e) n = Div(s, r) k = Mul(n, gamma) "
CHAINS = {
    "gelu": ("d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) h = Mul(m, half) y = MatMul(h, W)", "Gelu"),
    "gelu before Gemm": (
        "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(a, x) h = Mul(half, m) y = Gemm(h, W)", "Gelu",
    ),
    "normalization": (f"{ROOT}{NORMAL}z = Add(k, beta) y = Gemm(z, W)", "LayerNormalization"),
    "normalization without shift": (f"{ROOT}{NORMAL}y = MatMul(k, W)", "SimplifiedLayerNormalization"),
    "root mean square": (
        "p = Pow(x, two) v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) r = Sqrt(e) n = Div(x, r) k = Mul(n, gamma) "
        "y = MatMul(k, W)", "SimplifiedLayerNormalization",
    ),
}  # fmt: skip


def _model(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 16] x) => (float[N, 16] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    values = {
        "W": rng.standard_normal((16, 16)), "gamma": rng.random(16) + 0.5, "beta": rng.random(16), "root": 2**0.5,
        "half": 0.5, "one": 1.0, "two": 2.0, "eps": 1e-5,
    }  # fmt: skip
    for name, value in values.items():
        if f"{name})" in body or f"{name}," in body or f", {name}" in body:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return model


def _kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_the_runtime_fuses_is_not_taken_apart(name: str, tmp_path: Path) -> None:
    body, kernel = CHAINS[name]
    model = _model(body)
    after = _kernels(squeeze(model, "canonical", validate="none").model, tmp_path)

    assert after == _kernels(model, tmp_path)
    assert after[kernel] == 1


def test_a_scale_behind_another_product_is_folded_still() -> None:
    model = _model("e = Erf(x) m = Mul(x, e) h = Mul(m, half) y = MatMul(h, W)")

    assert [node.op_type for node in squeeze(model, "canonical", validate="none").model.graph.node] == [
        "Erf", "Mul", "MatMul",
    ]  # fmt: skip
