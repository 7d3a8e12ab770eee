"""What can be trained of a model, and the way back into its constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxsqueeze import squeeze
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.leaves import Leaf, leaves

MODELS = Path(__file__).parents[2] / "models"
DIGIT = {"input": np.random.default_rng(0).random((1, 1, 28, 28)).astype(np.float32)}


def leaves_of(graph: Graph) -> list[Leaf]:
    return leaves(View(graph), lambda node: True)


@pytest.mark.parametrize("opset", [12, 21])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_stored_integers_go_back_as_they_came(bits: int, opset: int) -> None:
    graph = load(squeeze(raised("mlp", opset), f"bits{{weights={bits}}}", "none").model)
    before = encode(graph).SerializeToString()
    found = leaves_of(graph)
    for leaf in found:
        leaf.put(leaf.start)

    rounding = [leaf for leaf in found if leaf.rounds]
    assert len(rounding) >= 2
    assert all(leaf.high is not None and leaf.low is not None for leaf in rounding)
    assert encode(graph).SerializeToString() == before


def test_integers_that_layers_compute_with_are_leaves_and_go_back_as_they_came() -> None:
    graph = load(squeeze(MODELS / "mlp.onnx", "bits{weights=4 activations=8}", validate="none").model)
    before = encode(graph).SerializeToString()
    found = leaves_of(graph)
    for leaf in found:
        leaf.put(leaf.start)

    readers = {key for leaf in found if leaf.rounds for key in leaf.readers}
    assert sum(node.op == "Gemm" and node.outputs[0].name in readers for node in graph.nodes) == 2
    assert encode(graph).SerializeToString() == before


def raised(name: str, opset: int) -> onnx.ModelProto:
    model = onnx.load(MODELS / f"{name}.onnx")
    return onnx.version_converter.convert_version(model, opset) if opset > 13 else model


@pytest.mark.parametrize("bits", [2, 3])
def test_an_integer_that_moves_moves_its_weight_by_the_scale(bits: int) -> None:
    graph = load(squeeze(MODELS / "mlp.onnx", f"bits{{weights={bits}}}", "none").model)
    leaf = next(leaf for leaf in leaves_of(graph) if leaf.rounds and leaf.high == (1 << bits) - 1)
    reader = next(node for node in graph.nodes if node.outputs and node.outputs[0].name in leaf.readers)
    weight = reader.inputs[1].name
    moved = leaf.start.copy()
    moved.flat[5] += 1 if moved.flat[5] < (leaf.high or 0) else -1
    before = weight_of(graph, weight)
    leaf.put(moved)
    after = weight_of(graph, weight)

    assert (before != after).sum() == 1
    assert np.unique(np.abs(before - after)).size == 2


def weight_of(graph: Graph, name: str) -> np.ndarray:
    model = encode(graph)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return np.asarray(Session(model, optimize="none").run(DIGIT, [name])[name])


def test_weights_and_biases_are_leaves_and_literals_are_not() -> None:
    graph = load(squeeze(MODELS / "dwcnn.onnx", "clean,canonical", "none").model)
    found = {leaf.tensor: leaf for leaf in leaves_of(graph)}
    convs = [node for node in graph.nodes if node.op in ("Conv", "Gemm")]

    assert set(found) == {t.name for node in convs for t in node.inputs[1:]}
    assert all(leaf.unit > 0 for leaf in found.values())


def test_zeros_that_were_made_on_purpose_stay() -> None:
    graph = load(squeeze(MODELS / "mlp.onnx", "sparsify{ratio=0.5}", "none").model)
    sparse = [leaf for leaf in leaves_of(graph) if leaf.free is not None]

    assert sparse
    assert all(np.array_equal(leaf.free, leaf.start != 0) for leaf in sparse if leaf.free is not None)


def test_a_layer_that_is_not_wanted_keeps_what_it_shares() -> None:
    graph = load(squeeze(MODELS / "mlp.onnx", "clean,canonical", "none").model)
    layers = [node for node in graph.nodes if node.op == "Gemm"]
    found = leaves(View(graph), lambda node: node is layers[0])

    assert {leaf.tensor for leaf in found} == {t.name for t in layers[0].inputs[1:]}
