"""What two models show to the outside, and what they weigh, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_graphsurgeon as gs

from onnxsqueeze.feeds.sizes import Taken, taken
from onnxsqueeze.graph.walk import key_of, walk
from onnxsqueeze.graph.words import described
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.cost import Cost, cost, macs

__all__ = ["FieldChange", "OpTotal", "Totals", "interface", "totals"]


@dataclass(frozen=True)
class FieldChange:
    """A fact about the whole model, as text, None on the side that does not have it.

    ``what`` is ``input``, ``output``, ``order``, ``opset``, ``ir``, ``producer``, ``metadata``, ``doc`` or
    ``function``; ``name`` says which one.
    """

    what: str
    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class OpTotal:
    """What all nodes of one operator sum up to, (before, after); MACs are None where no shapes are known."""

    op: str
    nodes: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    macs: tuple[int | None, int | None]


@dataclass(frozen=True)
class Totals:
    """The cost of both models, as a whole and by operator."""

    before: Cost
    after: Cost
    by_op: tuple[OpTotal, ...]
    taken: Taken | None = None
    """The sizes that the MACs are those of."""


def interface(a: Graph, b: Graph) -> tuple[FieldChange, ...]:
    """Return how inputs, outputs, opsets, metadata and the set of local functions differ."""
    found: list[FieldChange] = []
    for what, one, two in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        names = [[str(tensor.name) for tensor in side] for side in (one, two)]
        found += _fields(what, *({t.name: described(t) for t in side} for side in (one, two)))
        if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
            found.append(FieldChange("order", f"{what}s", ", ".join(names[0]), ", ".join(names[1])))
    found += _fields("opset", *(_opsets(side) for side in (a, b)))
    for what, *values in (
        ("ir", *(str(side.ir_version or "") for side in (a, b))),
        ("producer", *(f"{side.producer_name or ''} {side.producer_version or ''}".strip() for side in (a, b))),
        ("doc", *(str(side.doc_string or "") for side in (a, b))),
    ):
        if values[0] != values[1]:
            found.append(FieldChange(what, "", values[0] or None, values[1] or None))
    found += _fields("metadata", a.metadata, b.metadata)
    found += _fields(
        "function", *({_id(f): f"{len(f.nodes)} nodes" for f in side.functions} for side in (a, b)), same=True
    )
    return tuple(found)


def totals(
    a: Graph, b: Graph, sizes: Sequence[int | None] = (None, None), calibration: Any = None, **how: Any
) -> Totals:
    """Return what both models weigh; MACs are those of a feed of ``calibration``, or of a random one.

    ``sizes`` are those of the files, where they are known.
    """
    feeds, sized = taken(a, calibration, **how)
    feed = feeds[0] if feeds else None
    sums: list[dict[str, list[int | None]]] = []
    costs = []
    for graph, size in zip((a, b), sizes, strict=True):
        names = {str(tensor.name) for tensor in graph.inputs}
        fits = feed is not None and names == set(feed)
        counted = (macs(graph, feed) or None) if feed is not None and fits else None
        weight = cost(graph, file_size(graph) if size is None else size, None)
        total = None if counted is None else sum(counted.values())
        costs.append(Cost(weight.bytes, weight.parameters, total, weight.nodes, weight.opset))
        sums.append(_by_op(graph, counted))
    none: list[int | None] = [0, 0, 0, 0]
    rows = []
    for op in sorted({*sums[0], *sums[1]}):
        one, two = sums[0].get(op, none), sums[1].get(op, none)
        rows.append(OpTotal(op, *((one[k], two[k]) for k in range(4))))  # type: ignore[arg-type]
    rows.sort(key=lambda row: (-max(m or 0 for m in row.macs), -max(row.bytes), -max(row.nodes), row.op))
    return Totals(costs[0], costs[1], tuple(rows), sized)


def _by_op(graph: Graph, counted: dict[str, int] | None) -> dict[str, list[int | None]]:
    """Return [nodes, parameters, bytes, MACs] by operator; a shared weight counts for its first reader."""
    found: dict[str, list[int | None]] = defaultdict(lambda: [0, 0, 0, None if counted is None else 0])
    seen: set[int] = set()
    for node, _ in walk(graph):
        op = node.op if not node.domain else f"{node.domain}::{node.op}"
        row = found[op]
        row[0] = (row[0] or 0) + 1
        if counted is not None:
            row[3] = (row[3] or 0) + counted.get(key_of(node), 0)
        attached = [v for v in node.attrs.values() if isinstance(v, gs.Constant)]
        for tensor in (*node.inputs, *attached):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                size = prod(map(int, tensor.shape))
                row[1] = (row[1] or 0) + size
                values = tensor._values
                row[2] = (row[2] or 0) + int(getattr(values, "nbytes", 0))
    return found


def _fields(what: str, one: dict[str, str], two: dict[str, str], *, same: bool = False) -> Iterable[FieldChange]:
    """Yield what differs; with ``same`` only what one side does not have."""
    for name in [*one, *(name for name in two if name not in one)]:
        before, after = one.get(name), two.get(name)
        if before != after and not (same and before is not None and after is not None):
            yield FieldChange(what, name, before, after)


def _opsets(graph: Graph) -> dict[str, str]:
    others = {e.domain: str(e.version) for e in graph.import_domains or () if e.domain not in ("", "ai.onnx")}
    return {"": str(graph.opset), **others}


def _id(function: gs.Function) -> str:
    return "::".join(part for part in function.unique_id if part)
