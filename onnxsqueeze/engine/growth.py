"""No pass makes a file larger, but for the few nodes of a small one, and then the report says so."""

from __future__ import annotations

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.errors import ModelError
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.words import amount

__all__ = ["LargerError", "growth"]

LARGER = 0.005
"""The share by which a file may grow for nodes that make it faster or ready for another pass."""
UNTOLD = 1 << 10
"""Bytes that are not worth a word."""
NODES = 1 << 14
"""Bytes that nodes may add to a file of any size."""


class LargerError(ModelError):
    """A pass has made the file larger."""


def growth(pass_: Pass, graph: Graph, given: Graph) -> list[str]:
    """Return what is to be said of a graph whose file is larger than that of the one that the pass was given.

    Raises LargerError where that is more than nodes may take, unless the pass says why it may be.
    """
    before, after = file_size(given), file_size(graph)
    if after - before <= UNTOLD:
        return []
    if not pass_.grows and after - before > max(NODES, LARGER * before):
        raise LargerError(f"the file would grow from {amount(before, 'B')} to {amount(after, 'B')}")
    return [f"the file is {amount(after - before, 'B')} larger: {pass_.grows or 'that is what its new nodes take'}"]
