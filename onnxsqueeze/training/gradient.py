"""Reverse mode over an ONNX graph: the model with the gradients of one of its tensors as further outputs.

Every rule emits ONNX nodes, so the runtime that runs the model runs its gradients as well. A backward pass goes through
the nodes from the loss to what it is differentiated by; what a tensor's readers send back is added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.training.rules.table import RULES
from onnxsqueeze.training.tape import Tape, Unsupported

__all__ = ["Known", "unsupported", "with_gradients"]

STANDARD = ("", "ai.onnx")
ROUNDING = ("Cast", "DynamicQuantizeLinear", "MatMulInteger")
"""Operators whose integers hand gradients on, as those of QuantizeLinear do, which go straight through."""
INTEGERS = ("int8", "uint8", "int32")


@dataclass(frozen=True)
class Known:
    """Shape and type of every tensor of a graph in one run, and the values of those that are the same in every run."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype[Any]]
    values: Mapping[str, NDArray[Any]]


def with_gradients(model: onnx.ModelProto, known: Known, loss: str, by: Sequence[str]) -> onnx.ModelProto:
    """Return the model with ``dL/dt`` for each t of ``by`` as its last outputs, in that order, after its own.

    ``loss`` is a float tensor of one element, whose type all gradients have; ``by`` are inputs or initializers that it
    depends on. Raises Unsupported, with the operator, where one on the way has no rule.
    """
    dtype = known.types[loss]
    active = _depending(model.graph, by, known.types, dtype)
    needed = _leading(model.graph, loss)
    tape = Tape(known.shapes, known.types, known.values, dtype, frozenset(active & needed))
    grads = {loss: tape.constant(np.ones(known.shapes[loss], dtype))}
    for node in reversed(model.graph.node):
        given = [grads.get(name) for name in node.output]
        if not any(name in tape.active for name in node.input) or all(grad is None for grad in given):
            continue
        _refuse(node)
        found = RULES[node.op_type](tape, node, given)
        for name, grad in zip(node.input, found, strict=True):
            if grad is not None and name in tape.active:
                grads[name] = tape.add(grads[name], grad) if name in grads else grad
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for node, own in zip(model.graph.node, made.graph.node, strict=True):
        for slot, name in tape.saved.get(node.output[0], ()):
            own.output.extend([""] * (slot + 1 - len(own.output)))
            own.output[slot] = name
    made.graph.node.extend(tape.nodes)
    made.graph.initializer.extend(tape.constants)
    element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    for name in by:
        output = f"grad/of/{name}"
        if name not in grads:
            raise Unsupported(f"the loss does not depend on '{name}'")
        made.graph.node.append(onnx.helper.make_node("Identity", [grads[name]], [output]))
        made.graph.output.append(onnx.helper.make_tensor_value_info(output, element, known.shapes[name]))
    return made


def unsupported(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return the operators among the nodes that no rule knows, sorted."""
    return sorted({node.op_type for node in nodes if node.op_type not in RULES or node.domain not in STANDARD})


def _refuse(node: onnx.NodeProto) -> None:
    if node.domain not in STANDARD or node.op_type not in RULES:
        raise Unsupported(f"there is no rule for {node.op_type}")


def _depending(
    graph: onnx.GraphProto, by: Sequence[str], types: Mapping[str, np.dtype[Any]], dtype: np.dtype[Any]
) -> set[str]:
    """Return the tensors through which gradients may flow from ``by`` on; integers only between those that round."""
    found = set(by)
    for node in graph.node:
        if any(name in found for name in node.input):
            passes = node.op_type == "QuantizeLinear" and node.input[0] in found
            kinds = (dtype, *map(np.dtype, INTEGERS if node.op_type in ROUNDING else ()))
            found.update(name for name in node.output if name and (passes or types.get(name) in kinds))
    return found


def _leading(graph: onnx.GraphProto, loss: str) -> set[str]:
    """Return the tensors that the loss depends on, itself included."""
    found = {loss}
    for node in reversed(graph.node):
        if any(name in found for name in node.output):
            found.update(name for name in node.input if name)
    return found
