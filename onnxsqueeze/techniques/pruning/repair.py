"""Channels leave and the layers that read them take over: removal with least squares, its gain and its proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.linear.bias import bias_value, set_bias
from onnxsqueeze.linear.chains import add_to_output
from onnxsqueeze.linear.layers import laid_out, matrix, set_matrix
from onnxsqueeze.linear.refit import Kept
from onnxsqueeze.measure import cost
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.techniques.pruning.choice import Candidate, Removal
from onnxsqueeze.techniques.pruning.coupling import Coupling
from onnxsqueeze.techniques.pruning.proof import disagreement
from onnxsqueeze.techniques.pruning.readers import Indices, Reader, bias_of
from onnxsqueeze.techniques.pruning.surgeon import compensate
from onnxsqueeze.techniques.pruning.units import Group, Slot

__all__ = ["behind", "measure", "proven", "put", "take_out", "without"]

PROBE = 0.25
"""The share of units without which a layer's gain is measured."""
WRONG = 1e-4
"""Relative deviation from the graph with the same channels masked, from which on a removal is wrong."""


def take_out(
    graph: Graph, problem: Removal, candidate: Candidate, units: Sequence[int], *, repair: bool, early: bool = False
) -> None:
    """Remove units of a group, and give the layers that read it the weights that make up for it best.

    With ``early`` those that have seen few rows get them without the feeds that are kept apart.

    What other groups have taken from the same layer before is respected: removing one after the other and repairing
    each time gives the same weights as removing all at once.
    """
    coupling = problem.coupling
    repairs: list[_Repair] = []
    for reader, slot in candidate.readers if repair else ():
        if reader.spread is not None:
            weight = matrix(View(graph), edit.find(graph, reader.key)[0])
            inputs, outputs = (coupling.survivors(graph, slot.constant, axis) for axis in (slot.axis, 1 - slot.axis))
            repairs.append(_Repair(reader, slot, weight, inputs, outputs))
    coupling.remove(graph, candidate.group, units)
    for each in repairs:
        reader, slot = each.reader, each.slot
        used = reader.trial if early else reader
        spread, mean = used.spread, used.mean
        assert spread is not None
        assert mean is not None
        inputs, outputs = (coupling.survivors(graph, slot.constant, axis) for axis in (slot.axis, 1 - slot.axis))
        weight = each.weight[np.isin(each.outputs, outputs)]
        before, after = reader.columns_of(each.inputs), reader.columns_of(inputs)
        new = compensate(weight, spread[np.ix_(before, before)], np.flatnonzero(np.isin(before, after)))
        _write(graph, reader.key, new, weight @ mean[before] - new @ mean[after])


@dataclass(frozen=True)
class _Repair:
    """A layer before the removal: its present weight, and which of the original inputs and outputs that covers."""

    reader: Reader
    slot: Slot
    weight: Matrix
    inputs: Indices
    outputs: Indices


def _write(graph: Graph, key: str, weight: Matrix, shift: Matrix) -> None:
    """Give a layer another weight of its present shape and add to its bias, both under the names that they have."""
    node, _ = edit.find(graph, key)
    bias = bias_of(View(graph), node)
    node.inputs[1].values = laid_out(node, weight)
    if bias is not None:
        bias.values = (np.asarray(peek(bias), np.float64) + shift).astype(np.dtype(bias.dtype))


def measure(problem: Removal, bench: Bench) -> None:
    """Count at how many positions each layer is applied, and measure what its errors do to the answers.

    Each layer loses, alone, the first quarter of the units of each of its groups and is repaired: the gain is the
    relative error of the answers over that of the layer's output. The units are ranked anew with it. A layer that has
    seen few rows is fitted without the feeds kept apart, and what that does to the answers measured on these.
    """
    counted = cost.macs(bench.original, bench.feeds[0])
    for layer in problem.layers:
        if layer.key in counted:
            problem.positions[layer.key] = max(counted[layer.key] // int(np.prod(layer.dims)), 1)
    if problem.score != "obs":
        return
    rewrites: dict[str, list[Rewrite]] = {}
    local: dict[str, float] = {}
    for constant, reader in problem.readers.items():
        gone = [
            reader.columns(slot)[c.curve.order[: max(int(PROBE * c.group.size), 1)]].reshape(-1)
            for c in problem.candidates
            for r, slot in c.readers
            if r is reader and len(c.curve.order)
        ]
        if reader.linear is None or reader.mean is None or not gone:
            continue
        rewrite, error = without(reader.trial, np.unique(np.concatenate(gone)))
        if error > 0:
            local[constant] = error
            rewrites[reader.key] = [rewrite]
    if not rewrites:
        return
    feeds = bench.affordable(sum(counted.values()), len(rewrites))
    if any(problem.readers[constant].early is not None for constant in local):
        feeds = bench.unseen[: len(feeds)]
    found = impacts(
        bench.original, feeds, rewrites, bench.progress, bench.ruler, most=bench.most, workers=bench.workers
    )
    for constant, error in local.items():
        reader = problem.readers[constant]
        if found.get(reader.key) and np.isfinite(found[reader.key][0]):
            reader.gain = max(found[reader.key][0] / error, 1e-6)
    problem.rank()


def without(reader: Reader, gone: Indices) -> tuple[Rewrite, float]:
    """Return what makes a layer do without some of its columns, which stay as zeros, and its relative error."""
    weight, error = reader.without(gone)
    shift = np.zeros(len(weight)) if reader.mean is None else (reader.weight - weight) @ reader.mean
    return partial(put, weight=weight, shift=shift), error


def put(graph: Graph, key: str, weight: Matrix, shift: Matrix) -> None:
    """Give a layer that shares its weight and bias with another one of its own."""
    node, scope = edit.find(graph, key)
    dtype = np.dtype(node.inputs[1].dtype)
    set_matrix(graph, node, weight, "probe")
    if node.op == "MatMul":
        add_to_output(graph, scope, node, shift.astype(dtype))
    elif shift.any():  # there is a bias, or the mean would be 0
        old = bias_value(View(graph), node)
        set_bias(node, edit.constant(graph, f"{node.inputs[2].name}_probe", (old + shift).astype(dtype)))


def proven(removals: Mapping[Group, Sequence[int]], coupling: Coupling, bench: Bench) -> dict[Group, float]:
    """Return the groups whose removal is not the same as masking them, and by how much: defects of ours."""
    if _differs(removals, coupling, bench) <= WRONG:
        return {}
    good: dict[Group, Sequence[int]] = {}
    bad: dict[Group, float] = {}
    for group, units in removals.items():
        off = _differs({**good, group: units}, coupling, bench)
        if off > WRONG:
            bad[group] = off
        else:
            good[group] = units
    return bad


def _differs(removals: Mapping[Group, Sequence[int]], coupling: Coupling, bench: Bench) -> float:
    return disagreement(bench.original, coupling.remove, removals, bench.feeds[:1]) if removals else 0.0


def behind(first: Kept, second: Kept) -> dict[str, tuple[int, Indices]]:
    """Return which of the original's channels are left after two removals, one after the other."""
    both = {name: (axis, first[name][1][left] if name in first else left) for name, (axis, left) in second.items()}
    return {**first, **both}
