"""``narrow``: weights in 16 bits on disk, in 32 at work."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from onnxsqueeze.plugin import Graph, Pass, Site, Skip, Statistics, View, edit, key_of


@dataclass(frozen=True)
class Narrow(Pass):
    """Replace a float32 weight ``W`` by ``Cast(narrow(W))``, which ONNX Runtime computes when it loads the model."""

    name: ClassVar[str] = "narrow"
    summary: ClassVar[str] = "weights in 16 bits on disk, in 32 at work"
    forbids: ClassVar[tuple[str, ...]] = ("int8",)

    min_size: int = 1024
    """Weights with fewer elements are left alone."""

    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        for node in view.of("Conv", "Gemm", "MatMul"):
            weight = view.value(node.inputs[1])
            if weight is not None and weight.dtype == np.float32 and weight.size >= self.min_size:
                yield Site(key_of(node), "stored in 16 bits")
            else:
                yield Skip(key_of(node), "it has no float weight of this size")

    def apply(self, site: Site, graph: Graph) -> None:
        node, scope = edit.find(graph, site.key)
        weight = node.inputs[1]
        narrow = edit.constant(graph, f"{weight.name}_narrow", View(graph).value(weight).astype(np.float16))
        cast = {"to": onnx.TensorProto.FLOAT}
        node.inputs[1] = edit.insert(graph, scope, "Cast", [narrow], f"{weight.name}_float", cast, before=node)
