"""All rules by operator."""

from __future__ import annotations

from onnxsqueeze.training.rules import activations, arithmetic, layers, normalization, quantized, reductions, shapes
from onnxsqueeze.training.tape import Rule

__all__ = ["RULES"]

RULES: dict[str, Rule] = {
    **arithmetic.RULES,
    **activations.RULES,
    **layers.RULES,
    **normalization.RULES,
    **reductions.RULES,
    **shapes.RULES,
    **quantized.RULES,
}
