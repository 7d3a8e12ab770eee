"""What ``squeeze`` returns: the squeezed model in every form, its report and its recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.ir import foreign
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import save, serialized
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.report.run import Report

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """What ``squeeze`` returns: the squeezed graph in every form, the report that explains it, and its recipe.

    A result can be pickled, as long as it is under 2 GB; it then no longer has the original.
    """

    graph: Graph
    report: Report
    recipe: Recipe
    original: Graph | None = field(default=None, repr=False)

    @property
    def model(self) -> onnx.ModelProto:
        """The squeezed model as a ModelProto in memory; external data of the source stays where it is."""
        return encode(self.graph)

    def to_ir(self) -> onnx_ir.Model:
        """Return the squeezed model as an onnx_ir.Model; ``program.model = result.to_ir()`` puts it into torch's.

        Raises UsageError if onnx_ir is not installed.
        """
        return foreign.from_proto(self.model, self.graph.folder)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to ``path``, whole or not at all."""
        save(self.graph, path)

    def _repr_html_(self) -> str:
        """Return the report with its picture, for a notebook."""
        from onnxsqueeze.report.pages.page import notebook_cell

        return notebook_cell(self.report, self.original, self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (serialized(self.graph), self.graph.folder, self.report, self.recipe)


def _restored(model: bytes, folder: Path | None, report: Report, recipe: Recipe) -> Result:
    return Result(decode(onnx.ModelProto.FromString(model), folder), report, recipe)
