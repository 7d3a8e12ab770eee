"""All that the author of a pass imports; nothing else beside the public names of the package is promised to stay."""

from __future__ import annotations

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Level, Site, Skip
from onnxsqueeze.contract.selection import Selected
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of, walk
from onnxsqueeze.ir.objects import Graph, Node, subgraphs
from onnxsqueeze.ir.weights import Derived, Weight
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Channels, Gram, Mean, Need, Range

__all__ = [
    "Bench",
    "Channels",
    "Derived",
    "Gram",
    "Graph",
    "Level",
    "Mean",
    "Need",
    "Node",
    "Pass",
    "Range",
    "Selected",
    "Site",
    "Skip",
    "Statistics",
    "View",
    "Weight",
    "edit",
    "is_standard",
    "key_of",
    "subgraphs",
    "walk",
]
