"""A graph cut in two: a stem that also gives an early answer, and the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.cut import cut
from onnxsqueeze.techniques.exits.features import pooled
from onnxsqueeze.techniques.exits.head import Head

__all__ = ["Depth", "joined", "rest", "stem", "tensors", "with_features"]

Depth = tuple[str, tuple[int, ...], int, bool]
"""A tensor that features are taken of, its shape in one run, the most features, and whether its size is fixed."""


def tensors(graph: Graph) -> dict[str, gs.Tensor]:
    """Return what the main graph computes, by name."""
    return {str(t.name): t for node in graph.nodes for t in node.outputs if t.name}


def with_features(graph: Graph, depths: Sequence[Depth]) -> tuple[Graph, dict[Depth, str]]:
    """Return a copy whose outputs are features besides, and their names by depth, of those that have some."""
    copy = edit.duplicate(graph)
    made, names, outputs = tensors(copy), dict[Depth, str](), list[gs.Tensor]()
    for depth in depths:
        name, shape, most, fixed = depth
        found = pooled(copy, made[name], shape, most, fixed)
        if found is not None:
            outputs.append(edit.insert(copy, copy, "Identity", [found[0]], f"{name}_out"))
            outputs[-1].dtype = np.float32
            names[depth] = str(outputs[-1].name)
    copy.outputs.extend(outputs)
    edit.tidy(copy)
    return copy, names


def stem(graph: Graph, depths: Sequence[Depth], head: Head, probabilities: bool) -> tuple[Graph, dict[str, str]]:
    """Return the nodes in front of the cut with a head, and the names of its outputs.

    The cut is the tensor of the last of ``depths``. Outputs are ``answer``, the ``confidence`` (N) and the tensor
    itself, ``crossing``. The answer is softmax(z) where those of the model are ``probabilities``.
    """
    copy = edit.duplicate(graph)
    output = str(copy.outputs[0].name)
    made = tensors(copy)
    crossing = made[depths[-1][0]]
    crossing.dtype, crossing.shape = View(copy).dtype(crossing), [_batch(graph), *depths[-1][1][1:]]
    features = [
        found[0] for name, shape, most, fixed in depths if (found := pooled(copy, made[name], shape, most, fixed))
    ]
    both = features[0]
    if len(features) > 1:
        both = edit.insert(copy, copy, "Concat", features, f"{output}_features", {"axis": 1})
    answer = _linear(copy, both, head.weight, head.bias, f"{output}_early")
    if head.error is None:
        likely = edit.insert(copy, copy, "Softmax", [answer], f"{output}_likely", {"axis": 1})
        two = edit.constant(copy, f"{output}_two", np.array([2], np.int64))
        top, places = edit.variable(copy, f"{output}_top"), edit.variable(copy, f"{output}_places")
        edit.insert(copy, copy, "TopK", [likely, two], [top, places], {"axis": 1})
        signs = edit.constant(copy, f"{output}_difference", np.array([[1.0], [-1.0]], np.float32))
        confidence = edit.insert(copy, copy, "MatMul", [top, signs], f"{output}_margin")
        answer = likely if probabilities else answer
    else:
        column, offset = head.error
        confidence = _linear(copy, both, -column[:, None], np.array([-offset]), f"{output}_margin")
    confidence = edit.insert(
        copy, copy, "Reshape",
        [confidence, edit.constant(copy, f"{output}_rows", np.array([-1], np.int64))], f"{output}_confidence",
    )  # fmt: skip
    for tensor, shape in ((answer, [_batch(graph), head.weight.shape[1]]), (confidence, [_batch(graph)])):
        tensor.dtype, tensor.shape = np.float32, shape
    copy.outputs = [answer, confidence, crossing]
    edit.tidy(copy)
    names = {"answer": str(answer.name), "confidence": str(confidence.name), "crossing": str(crossing.name)}
    return copy, names


def rest(graph: Graph, tensor: str, shape: Sequence[int]) -> Graph:
    """Return the nodes behind the cut, with the tensor there as the only input."""
    dtype = View(graph).dtype(tensors(graph)[tensor])
    return cut(graph, {tensor: (dtype, [_batch(graph), *shape[1:]])}, [str(t.name) for t in graph.outputs])


def joined(first: onnx.ModelProto, second: onnx.ModelProto, names: dict[str, str], limit: float) -> onnx.ModelProto:
    """Return one model: the stem, and the rest in an If that runs where a row is less sure than ``limit``."""
    model = onnx.ModelProto()
    model.CopyFrom(first)
    graph, output = model.graph, second.graph.output[0]
    later = onnx.compose.add_prefix_graph(
        second.graph, "rest/", rename_inputs=False, rename_outputs=False, rename_edges=True, rename_initializers=True
    )
    del later.input[:]
    made = f"rest/{output.name}_late"
    later.node.append(onnx.helper.make_node("Identity", [output.name], [made]))
    del later.output[:]
    later.output.append(onnx.helper.make_tensor_value_info(made, output.type.tensor_type.elem_type, None))
    early = onnx.helper.make_tensor_value_info(f"{output.name}_kept", output.type.tensor_type.elem_type, None)
    kept = onnx.helper.make_node("Identity", [names["answer"]], [early.name])
    now = onnx.helper.make_graph([kept], "exit", [], [early])
    least, sure = f"{output.name}_least", f"{output.name}_sure"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(limit, np.float32), f"{output.name}_limit"))
    graph.node.extend([
        onnx.helper.make_node("ReduceMin", [names["confidence"]], [least], keepdims=0),
        onnx.helper.make_node("Less", [least, f"{output.name}_limit"], [f"{output.name}_unsure"]),
        onnx.helper.make_node("Not", [f"{output.name}_unsure"], [sure]),
        onnx.helper.make_node("If", [sure], [output.name], then_branch=now, else_branch=later),
    ])  # fmt: skip
    del graph.output[:]
    graph.output.append(output)
    return model


def _batch(graph: Graph) -> int | str | None:
    shape = graph.inputs[0].shape
    found: int | str | None = shape[0] if shape else None
    return found


def _linear(graph: Graph, x: gs.Tensor, weight: np.ndarray, bias: np.ndarray, hint: str) -> gs.Tensor:
    constants = [
        edit.constant(graph, f"{hint}_{what}", value.astype(np.float32))
        for what, value in (("weight", weight), ("bias", bias))
    ]
    return edit.insert(graph, graph, "Gemm", [x, *constants], hint)
