"""Layers that ONNX Runtime's optimizer has fused are taken apart, and loaded as they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import feeds, parse

from onnxsqueeze import squeeze

DOMAIN = ', "com.microsoft": 1'
PRODUCT = "g (float[n, 64] x) => (float[n, 48] y) <float[{0}] w> {{ y = com.microsoft.FusedMatMul<{1}>(x, w) }}"
GEMM = """g (float[4, 64] x) => (float[4, 48] y) <float[64, 48] w, float[48] b> {{
    y = com.microsoft.FusedGemm<{0}>(x, w, b) }}"""
CONV = """g (float[1, 16, 8, 8] x) => (float[1, 24, 8, 8] y) <float[24, 16, 3, 3] w, float[24] b> {{
    y = com.microsoft.FusedConv<pads = [1, 1, 1, 1], {0}>(x, w, b) }}"""

GOOD = {
    "product": PRODUCT.format("64, 48", "alpha = 0.5"),
    "transposed": PRODUCT.format("48, 64", "transB = 1"),
    "gemm": GEMM.format('activation = "Relu"'),
    "leaky": GEMM.format('activation = "LeakyRelu", activation_alpha = 0.3'),
    "conv": CONV.format('activation = "Relu"'),
    "clip": CONV.format('activation = "Clip", activation_params = [0.0, 0.5]'),
    "hard": CONV.format('activation = "HardSigmoid", activation_params = [0.2, 0.4]'),
}


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("name", GOOD)
def test_the_layer_comes_to_light_at_the_same_answers(name: str) -> None:
    model = parse(GOOD[name], domains=DOMAIN)
    feed = feeds(model)[0]

    result = squeeze(model, "canonical", feeds(model))

    assert result.report.steps[-1].done
    assert all(node.domain == "" for node in result.model.graph.node)
    assert np.allclose(run(model, feed), run(result.model, feed), atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        PRODUCT.format("64, 48", "alpha = 1e38"),
        GEMM.format('activation = "Softplus"'),
        CONV.format('activation = "HardSigmoid"'),
    ],
)
def test_what_cannot_be_written_so_stays(text: str) -> None:
    model = parse(text, domains=DOMAIN)

    assert squeeze(model, "canonical", validate="none").model == model


def test_a_sum_in_front_of_the_activation_stays_fused() -> None:
    model = parse(
        """g (float[1, 16, 8, 8] x, float[1, 24, 8, 8] z) => (float[1, 24, 8, 8] y)
        <float[24, 16, 3, 3] w, float[24] b> {
            y = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(x, w, b, z) }""",
        domains=DOMAIN,
    )

    assert squeeze(model, "canonical", validate="none").model == model


def test_passes_for_layers_see_it() -> None:
    model = parse(GOOD["gemm"], domains=DOMAIN)

    step = squeeze(model, "sparsify{ratio=0.5}", feeds(model, 12)).report.steps[-1]

    assert len(step.done) == 1
