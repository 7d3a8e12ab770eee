"""Perceptrons whose layers have more columns than a few feeds give rows, and feeds for them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from linear_models import Array, constant, model
from onnx import helper

__all__ = ["perceptron", "rows"]


def perceptron(columns: int, seed: int) -> onnx.ModelProto:
    """Return three Gemms with Relu between, of one row a feed; the weights have a falling spectrum."""
    rng = np.random.default_rng(seed)
    sizes = [columns, 192, 96, 24]
    constants, nodes, source = [], [], "x"
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        rank = min(inputs, outputs)
        left, right = rng.normal(size=(outputs, rank)), rng.normal(size=(rank, inputs))
        weight = (left / (1 + np.arange(rank)) ** 0.7) @ right
        weight *= np.sqrt(2 * outputs) / np.linalg.norm(weight)
        constants += [constant(f"w{i}", weight), constant(f"b{i}", 0.1 * rng.normal(size=outputs))]
        made = "y" if outputs == sizes[-1] else f"h{i}"
        nodes.append(helper.make_node("Gemm", [source, f"w{i}", f"b{i}"], [made], transB=1))
        if made != "y":
            nodes.append(helper.make_node("Relu", [made], [f"r{i}"]))
        source = f"r{i}"
    return model(nodes, constants, {"x": [1, columns]}, {"y": [1, sizes[-1]]})


def rows(count: int, columns: int, seed: int) -> list[dict[str, Array]]:
    """Return feeds of one row each, out of eight clusters, whose columns depend on each other."""
    world = np.random.default_rng(columns)
    centres, mixing = world.normal(size=(8, 64)), world.normal(size=(64, columns)) / 8
    rng = np.random.default_rng(seed)
    sources = centres[rng.integers(8, size=count)] + rng.normal(size=(count, 64)) / (1 + np.arange(64)) ** 0.5
    x = sources @ mixing + 0.05 * rng.normal(size=(count, columns))
    return [{"x": row[None].astype(np.float32)} for row in x]
