"""What sparse weights take once something compresses them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from onnxsqueeze.contract.plan import Site
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph

__all__ = ["packed"]

PACKED = 1 << 30
"""Bytes of weights that are compressed at most."""


def packed(graph: Graph, sites: Sequence[Site]) -> int:
    """Return the bytes of the sites' weights under gzip, 0 if they are too large to try."""
    view = View(graph)
    nodes = [edit.find(graph, site.key)[0] for site in sites]
    layers = [node.inputs[0].inputs[0] if node.op == "Add" else node for node in nodes]  # an Add holds the bias
    weights = [np.asarray(view.value(layer.inputs[1])) for layer in layers]
    if sum(weight.nbytes for weight in weights) > PACKED:
        return 0
    packer = zlib.compressobj()
    return sum(len(packer.compress(weight.tobytes())) for weight in weights) + len(packer.flush())
