"""How much of an error at a layer's output reaches the answers, measured by perturbing one layer after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Progress, Ruler
from onnxsqueeze.measure.switchboard import measure
from onnxsqueeze.measure.switches import Feeds
from onnxsqueeze.workers import Workers

__all__ = ["Probe", "gains"]

Probe = tuple[Matrix, Matrix, float]
"""(P, p, e): the perturbation ``y + P·y + p`` over the channels of a layer's output, and its relative error there."""


def gains(
    graph: Graph,
    probes: Mapping[str, Probe],
    feeds: Feeds,
    channel_axis: Mapping[str, int],
    progress: Progress | None = None,
    ruler: Ruler | None = None,
    also: Mapping[str, Sequence[str]] | None = None,
    most: int | None = None,
    workers: Workers | None = None,
) -> dict[str, float]:
    """Return per layer the relative error of the worst output over the relative error of its own output.

    Each layer named in ``probes`` is perturbed alone, but for those that ``also`` names with it; ``channel_axis`` is 1
    for Conv and -1 else. ``most`` and ``workers`` are those of ``measure``.
    """
    alike = also or {}
    variants = [
        dict.fromkeys((key, *alike.get(key, ())), partial(_perturb, matrix, offset, channel_axis[key]))
        for key, (matrix, offset, _) in probes.items()
    ]
    errors = measure(graph, variants, feeds, (ruler or Ruler.of(graph)).error, None, progress, most, workers)
    return {
        key: error / max(local, 1e-12)
        for (key, (_, _, local)), error in zip(probes.items(), errors, strict=True)
        if error is not None
    }


def _perturb(matrix: Matrix, offset: Matrix, axis: int, graph: Graph, key: str) -> None:
    """Put ``y + P·y + p`` in the place of a layer's output y."""
    node, scope = edit.find(graph, key)
    output, hint = node.outputs[0], f"{key}_probe"
    raw = edit.variable(graph, f"{hint}_raw")
    node.outputs[0] = raw
    ones = (1,) * (len(node.inputs[1].shape) - 2)
    bias = edit.constant(graph, f"{hint}_offset", offset.astype(np.float32))
    if axis == 1 and ones:
        weight = edit.constant(graph, f"{hint}_matrix", matrix.reshape(*matrix.shape, *ones).astype(np.float32))
        change = edit.insert(graph, scope, "Conv", [raw, weight, bias], f"{hint}_change", after=node)
    else:
        weight = edit.constant(graph, f"{hint}_matrix", np.ascontiguousarray(matrix.T).astype(np.float32))
        moved = edit.insert(graph, scope, "MatMul", [raw, weight], f"{hint}_product", after=node)
        change = edit.insert(graph, scope, "Add", [moved, bias], f"{hint}_change")
    edit.insert(graph, scope, "Add", [raw, change], [output])
