"""What an error in one layer does to the answers: one real perturbation per layer, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze import codec, edit
from onnxsqueeze.calibration import MASK
from onnxsqueeze.codec import Graph
from onnxsqueeze.runtime import Session

__all__ = ["Probe", "gains"]

Array = NDArray[np.generic]
Matrix = NDArray[np.float64]
Probe = tuple[Matrix, Matrix, float]
"""(P, p, e): the perturbation ``y + P·y + p`` over the channels of a layer's output, and its relative error there."""


def gains(
    graph: Graph, probes: Mapping[str, Probe], feeds: Sequence[dict[str, Array]], channel_axis: Mapping[str, int]
) -> dict[str, float]:
    """Return per layer the relative error of the answers over the relative error of its output.

    ``graph`` gets, behind each layer named in ``probes``, a perturbation times a scalar input; one session then runs
    once per layer and feed. Errors are summed over the float outputs; ``channel_axis`` is 1 for Conv and -1 else.
    """
    probed = edit.duplicate(graph)
    switches = {
        key: _insert(probed, key, matrix, offset, channel_axis[key]) for key, (matrix, offset, _) in probes.items()
    }
    edit.tidy(probed)
    model = codec.encode(probed)
    for switch in switches.values():
        value = onnx.helper.make_tensor_value_info(switch, onnx.TensorProto.FLOAT, [])
        model.graph.input.append(value)
    session = Session(model, graph.folder)
    total = dict.fromkeys(probes, 0.0)
    off = {switch: np.zeros((), np.float32) for switch in switches.values()}
    for feed in feeds:
        expected = session.run({**feed, **off})
        for key, switch in switches.items():
            found = session.run({**feed, **off, switch: np.ones((), np.float32)})
            total[key] += _relative(expected, found)
    return {key: total[key] / len(feeds) / max(probes[key][2], 1e-12) for key in probes}


def _insert(graph: Graph, key: str, matrix: Matrix, offset: Matrix, axis: int) -> str:
    """Put a perturbation behind a layer and return the name of the scalar input that scales it."""
    node, scope = edit.find(graph, key)
    output = node.outputs[0]
    raw = edit.variable(graph, f"{key}_unprobed")
    node.outputs[0] = raw
    gate = edit.variable(graph, "probe")
    switch = str(gate.name)
    ones = (1,) * (len(node.inputs[1].shape) - 2)
    if axis == 1 and ones:
        weight = edit.constant(graph, f"{switch}_matrix", matrix.reshape(*matrix.shape, *ones).astype(np.float32))
        bias = edit.constant(graph, f"{switch}_offset", offset.astype(np.float32))
        change = edit.insert(graph, scope, "Conv", [raw, weight, bias], f"{switch}_change", after=node)
    else:
        weight = edit.constant(graph, f"{switch}_matrix", np.ascontiguousarray(matrix.T).astype(np.float32))
        bias = edit.constant(graph, f"{switch}_offset", offset.astype(np.float32))
        moved = edit.insert(graph, scope, "MatMul", [raw, weight], f"{switch}_product", after=node)
        change = edit.insert(graph, scope, "Add", [moved, bias], f"{switch}_change")
    scaled = edit.insert(graph, scope, "Mul", [change, gate], f"{switch}_scaled")
    edit.insert(graph, scope, "Add", [raw, scaled], [output])
    return switch


def _relative(expected: Mapping[str, object], found: Mapping[str, object]) -> float:
    total = 0.0
    for name, value in expected.items():
        other = found[name]
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray) or value.dtype.kind != "f":
            continue
        a, b = value.astype(np.float64), other.astype(np.float64)
        usual = (np.abs(a) < MASK) & (np.abs(b) < MASK)
        signal = float((a[usual] ** 2).sum())
        total += float(((a - b)[usual] ** 2).sum()) / signal if signal > 0 else 0.0
    return total
