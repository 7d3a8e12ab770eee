"""Long lists of attributes, as tree ensembles have them, stand in the model and are copied by nobody."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.graph.opset import raise_opset
from onnxsqueeze.ir.attributes import LongList
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.sizes import file_size

TREES, DEPTH = 40, 7


def forest() -> onnx.ModelProto:
    """A regressor of 40 trees with 255 nodes each."""
    count, inner = 2 ** (DEPTH + 1) - 1, 2**DEPTH - 1
    ids = np.tile(np.arange(count), TREES)
    tree, leaf = np.repeat(np.arange(TREES), count), ids >= inner
    values = np.random.default_rng(0).normal(size=ids.size).astype(np.float32)
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        nodes_nodeids=ids.tolist(), nodes_treeids=tree.tolist(), nodes_featureids=(ids % 5).tolist(),
        nodes_truenodeids=np.where(leaf, 0, 2 * ids + 1).tolist(), nodes_values=values.tolist(),
        nodes_falsenodeids=np.where(leaf, 0, 2 * ids + 2).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        target_ids=[0] * int(leaf.sum()), target_nodeids=ids[leaf].tolist(), target_treeids=tree[leaf].tolist(),
        target_weights=values[leaf].tolist(),
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_long_lists_are_shared_by_copies_and_written_as_they_were() -> None:
    model = forest()
    graph = decode(model)
    copy = graph.copy()

    values = graph.nodes[0].attrs["nodes_values"]
    assert isinstance(values, LongList)
    assert copy.nodes[0].attrs["nodes_values"] is values
    assert len(values) == TREES * (2 ** (DEPTH + 1) - 1)
    assert list(values[:3]) == list(
        model.graph.node[0].attribute[[a.name for a in model.graph.node[0].attribute].index("nodes_values")].floats[:3]
    )
    assert set(graph.nodes[0].attrs["nodes_modes"]) == {"LEAF", "BRANCH_LEQ"}
    assert encode(copy).SerializeToString() == model.SerializeToString()


def test_a_list_that_is_given_to_another_node_or_name_is_written_whole() -> None:
    graph = decode(forest())
    node = graph.nodes[0]
    node.attrs["again"] = node.attrs.pop("nodes_values")
    node.attrs["n_targets"] = 2
    found = {each.name: each for each in encode(graph).graph.node[0].attribute}

    assert found["again"].floats == {a.name: a for a in forest().graph.node[0].attribute}["nodes_values"].floats
    assert found["n_targets"].i == 2


def test_a_skeleton_leaves_the_lists_out_and_the_size_counts_them() -> None:
    model = forest()
    graph = decode(model)

    assert encode(graph, skeleton=True).ByteSize() < model.ByteSize() / 5
    assert 0 <= len(model.SerializeToString()) - file_size(graph) <= 4  # the lengths of node and graph


def test_raising_the_opset_keeps_the_lists() -> None:
    model = forest()
    raised = encode(raise_opset(decode(model), 21))

    assert raised.graph.node[0].attribute == model.graph.node[0].attribute


def test_a_run_reads_no_element_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a long list was read")

    monkeypatch.setattr(LongList, "__getitem__", refuse)
    monkeypatch.setattr(LongList, "__iter__", refuse, raising=False)
    model = forest()
    result = squeeze(model, "sparsify,int8", "random")

    assert [len(step.done) for step in result.report.steps if not step.implicit] == [0, 0]
    assert [s.reason for s in result.report.steps[-1].skipped] == [
        "its weights are attributes of ai.onnx.ml.TreeEnsembleRegressor"
    ]
    assert result.model.SerializeToString() == model.SerializeToString()
