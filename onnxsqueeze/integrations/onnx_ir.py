"""``Squeeze``: a whole pipeline of onnxsqueeze as one pass of onnx_ir, for its Sequential and PassManager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.engine.result import Result
from onnxsqueeze.engine.squeeze import squeeze

__all__ = ["Squeeze"]


class Squeeze(ir.passes.FunctionalPass):  # type: ignore[misc]
    """Return a squeezed copy of an onnx_ir.Model; the arguments are those of ``onnxsqueeze.squeeze``.

    What a run reports is in ``result`` afterwards. A pass manager with ``steps=2`` would quantize what is already
    quantized, which is refused: let it run once.
    """

    def __init__(
        self, pipeline: str | Pass | Sequence[str | Pass] | Recipe, calibration: Any = None, **settings: Any
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.calibration = calibration
        self.settings = settings
        self.result: Result | None = None
        """The result of the last call, None before the first one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Squeeze ``model``, which stays as it is."""
        self.result = squeeze(model, self.pipeline, self.calibration, **self.settings)
        changed = any(step.done for step in self.result.report.steps)
        return ir.passes.PassResult(self.result.to_ir(), changed)
