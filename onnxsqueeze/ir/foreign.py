"""Models as other libraries hold them, onnx_ir.Model and torch's ONNXProgram, to protos and back, all in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxsqueeze.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["from_proto", "to_proto"]


def to_proto(model: object) -> tuple[onnx.ModelProto, Path | None] | None:
    """Return a model of onnx_ir or torch as a proto, and the folder of its external data; None if it is neither.

    The proto shares nothing with the model that either of them could change. Raises ModelError for external data in
    several folders.
    """
    program = getattr(sys.modules.get("torch.onnx"), "ONNXProgram", None)
    if program is not None and isinstance(model, program):
        model = model.model
    ir: Any = sys.modules.get("onnx_ir")  # who holds such a model has imported it
    if ir is None or not isinstance(model, ir.Model):
        return None
    folders = {
        Path(value.const_value.base_dir or ".")
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    if len(folders) > 1:
        where = ", ".join(sorted(map(str, folders)))
        raise ModelError(
            f"the model keeps weights in several folders ({where}); read them with onnx_ir.external_data.load_to_model"
        )
    return ir.to_proto(model), next(iter(folders), None)


def from_proto(model: onnx.ModelProto, folder: Path | None) -> onnx_ir.Model:
    """Return the model as an onnx_ir.Model whose external data, if there is any, is in ``folder``."""
    try:
        import onnx_ir
    except ImportError:
        raise UsageError("an onnx_ir model needs onnx_ir: pip install onnx-ir") from None
    made = onnx_ir.from_proto(model)
    for graph in made.graphs() if folder is not None else ():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                value.const_value.base_dir = folder
    return made
