"""Raising a model's opset with ONNX's official converter, without losing what the converter does not know.

Lowering it needs no converter where the operators of the model say the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs

from onnxsqueeze.errors import ModelError
from onnxsqueeze.graph.walk import is_standard, key_of, walk
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode_with
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.ir.payloads import Skeleton
from onnxsqueeze.ir.weights import Derived, Weight

__all__ = ["changed", "lower_opset", "raise_opset"]

Bodies = Iterator[onnx.GraphProto]


def raise_opset(graph: Graph, target: int) -> Graph:
    """Return the graph in opset ``target``: a new one, or itself if it is there already.

    The converter sees a skeleton without weights, and only the nodes that it changes are taken over from it: weights,
    docs, metadata, types, functions and operators of other domains stay as they are.
    Raises ModelError when the converter cannot do it, or when a local function is written for an older opset.
    """
    if graph.opset >= target:
        return graph
    for function in graph.functions:
        if any(is_standard(node) and changed(node.op, function.opset, target) for node in function.nodes):
            raise ModelError(
                f"ONNX's converter does not raise local functions, and '{function.name}' is written for opset "
                f"{function.opset}; export the model for opset {target}"
            )
    source = graph.copy()
    model = encode_with(source, Skeleton(whole_lists=True))  # it is decoded again
    try:
        converted = onnx.version_converter.convert_version(model, target)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise ModelError(
            f"ONNX's converter cannot raise the model from opset {graph.opset} to {target}: {reason}"
        ) from error
    _Merge(model.graph, graph.opset, target).graph(model.graph, converted.graph)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    model.ir_version = max(model.ir_version, converted.ir_version)
    raised = decode(model, graph.folder)
    _transplant(source, raised, {})
    raised.functions[:] = source.functions
    raised.file, raised.external, raised.made_for = source.file, source.external, source.made_for
    return raised


def lower_opset(graph: Graph, target: int) -> Graph:
    """Return a copy of the graph that says opset ``target``; nothing else about it changes.

    Raises ModelError unless every operator is the same there, or was only allowed more types since.
    """
    lowered = graph.copy()
    for scope in (lowered, *lowered.functions):
        for node, _ in walk(scope):
            if is_standard(node) and scope.opset > target and not _only_more_types(node.op, scope.opset, target):
                raise ModelError(f"{node.op} means something else in opset {scope.opset} than in {target}")
        for body in (scope, *(body for node, _ in walk(scope) for body in subgraphs(node))):
            body.opset = min(int(body.opset), target)
    return lowered


def _only_more_types(op: str, source: int, target: int) -> bool:
    """Whether the operator is the same in both opsets, but for types that the newer one takes besides."""
    if not changed(op, source, target):
        return onnx.defs.has(op)
    if not onnx.defs.has(op, target):
        return False
    new, old = (onnx.defs.get_schema(op, opset) for opset in (source, target))
    pairs = list(zip(new.type_constraints, old.type_constraints, strict=False))
    more = any(set(one.allowed_type_strs) > set(other.allowed_type_strs) for one, other in pairs)
    return more and _interface(new) == _interface(old)


def _interface(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    attributes = {n: (str(a.type), a.required, str(a.default_value)) for n, a in schema.attributes.items()}
    return attributes, [
        [(each.name, each.option, each.type_str) for each in side] for side in (schema.inputs, schema.outputs)
    ]


def changed(op: str, source: int, target: int) -> bool:
    """Whether the operator has another definition in opset ``target`` than in ``source``."""
    if not onnx.defs.has(op, source) or not onnx.defs.has(op, target):
        return onnx.defs.has(op)
    one, other = (onnx.defs.get_schema(op, opset).since_version for opset in (source, target))
    return bool(one != other)


class _Merge:
    """Takes over what the converter has changed, under names that the model does not have."""

    def __init__(self, main: onnx.GraphProto, source: int, target: int) -> None:
        self.source = source
        self.target = target
        self.names = {name for graph in _graphs(main) for name in _names(graph)}

    def graph(self, old: onnx.GraphProto, new: onnx.GraphProto) -> None:
        """Give ``old`` the nodes of ``new``, in which those that were not changed stand as they were."""
        own = set(_names(old))
        renamed = {name: self.mint() for node in new.node for name in node.output if name and name not in own}
        stored = {tensor.name for tensor in old.initializer}
        for tensor in new.initializer:
            if tensor.name not in stored:
                renamed[tensor.name] = self.mint()
                old.initializer.add().CopyFrom(tensor)
                old.initializer[-1].name = renamed[tensor.name]
        before = {tuple(node.output): node for node in old.node}
        nodes = [self.node(before.get(tuple(node.output)), node) for node in new.node]
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        del old.node[:]
        old.node.extend(nodes)

    def node(self, old: onnx.NodeProto | None, new: onnx.NodeProto) -> onnx.NodeProto:
        if old is None or old.op_type != new.op_type:
            return new
        converted = {attribute.name: attribute for attribute in new.attribute}
        for attribute in old.attribute:
            if attribute.name in converted:
                for one, other in zip(_bodies(attribute), _bodies(converted[attribute.name]), strict=True):
                    self.graph(one, other)
                converted[attribute.name].doc_string = attribute.doc_string
                if next(_bodies(attribute), None) is not None:
                    converted[attribute.name].CopyFrom(attribute)
        if old.domain not in ("", "ai.onnx") or not changed(old.op_type, self.source, self.target):
            return old
        if _says(old) == _says(new):
            return old
        new.doc_string = old.doc_string
        new.metadata_props.extend(old.metadata_props)
        return new

    def mint(self) -> str:
        count = 1
        while (name := f"opset{self.target}_{count}") in self.names:
            count += 1
        self.names.add(name)
        return name


def _graphs(graph: onnx.GraphProto) -> Bodies:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in _bodies(attribute):
                yield from _graphs(body)


def _bodies(attribute: onnx.AttributeProto) -> Bodies:
    yield from [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (*node.input, *node.output)


def _says(node: onnx.NodeProto) -> tuple[object, ...]:
    """Return what the converter may have changed."""
    plain = [a for a in node.attribute if next(_bodies(a), None) is None]
    return list(node.input), sorted((a.name, str(onnx.helper.get_attribute_value(a))) for a in plain)


def _transplant(old: Graph, new: Graph, outer: Mapping[str, gs.Constant]) -> None:
    """Give the constants of ``new`` the values of those of the same name and place in ``old``."""
    known = {**outer, **_constants(old)}
    for constant in new.source.initializers:
        _take(constant, known.get(constant.name))
    before = {key_of(node): node for node in old.nodes}
    for node in new.nodes:
        twin = before.get(key_of(node))
        if twin is None or twin.op != node.op:
            continue
        for name, value in node.attrs.items():
            if isinstance(value, gs.Constant):
                _take(value, twin.attrs.get(name))
        for body, its in zip(subgraphs(node), subgraphs(twin), strict=True):
            _transplant(its, body, known)


def _constants(graph: Graph) -> dict[str, gs.Constant]:
    """Return what ``graph`` stores, and what its nodes and bodies use, by name."""
    found: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for body in subgraphs(node):
            found.update(_constants(body))
    for node in graph.nodes:
        found.update((tensor.name, tensor) for tensor in node.inputs if isinstance(tensor, gs.Constant))
    found.update((constant.name, constant) for constant in graph.source.initializers)
    return found


def _take(constant: gs.Constant, twin: object) -> None:
    if not isinstance(twin, gs.Constant):
        return
    values = twin._values
    if not isinstance(values, Weight) and not hasattr(twin, "origin"):
        values = Derived(values.shape, values.dtype, lambda: twin._values)
    constant._values, constant._export_dtype = values, twin._export_dtype
    constant.origin = getattr(twin, "origin", values)
