"""``float32``: a model that computes in 16-bit floats, or in integers, computes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxsqueeze.plugin import Graph, Pass, Site, Skip, Statistics, View, key_of
from onnxsqueeze.techniques.floats.restored import hindrance, in_integers, restore
from onnxsqueeze.techniques.floats.widened import computes_in, obstacle, widen

__all__ = ["Float32"]


@dataclass(frozen=True)
class Float32(Pass):
    """Make 16-bit weights, and what computes with them, float32, as ONNX Runtime does on a processor anyway.

    Passes that look at weights and answers then see plain float32 layers. Inputs and outputs keep their types. It runs
    by itself before such passes, and ``half`` writes what is left of the weights in 16 bits at the end.

    With ``integers`` a quantized model becomes a float one: weights are what their integers stand for, and nothing is
    rounded between operators any more. Passes that need a float model can follow.
    """

    name: ClassVar[str] = "float32"
    summary: ClassVar[str] = "compute in float32 where a model computes in 16-bit floats, or in integers"
    cleans_first: ClassVar[bool] = False
    float_only: ClassVar[bool] = False
    grows: ClassVar[str] = "weights in fewer bits are float32 until a pass stores them again"

    integers: bool = False
    """Write what is quantized in float32, too."""

    @property
    def restores(self) -> bool:
        """Whether passes behind it find a float graph."""
        return self.integers

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Yield one site for the whole model, named after the first node in 16 bits or in integers."""
        node = in_integers(view) if self.integers else None
        if node is not None:
            reason = hindrance(view)
            what = f"float32 instead of {node.op}, here and in all of the model"
            yield Skip(key_of(node), reason) if reason else Site(key_of(node), what)
            return
        found = computes_in(view)
        if found is None:
            return
        node, dtype = found
        reason = obstacle(view)
        if reason:
            yield Skip(key_of(node), reason)
        else:
            yield Site(key_of(node), f"float32 instead of {dtype.name}, here and in all of the model")

    def apply(self, site: Site, graph: Graph) -> None:
        """Rewrite the model."""
        if self.integers and in_integers(View(graph)) is not None:
            restore(graph)
        else:
            widen(graph)
