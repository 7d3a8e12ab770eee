"""What a node is, apart from its names: numbers that are equal for equal operators, attributes and constants."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze.errors import ModelError
from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.ir.attributes import LongList
from onnxsqueeze.ir.dtypes import pack
from onnxsqueeze.ir.objects import Graph, subgraphs
from onnxsqueeze.ir.weights import Stored, Weight, peek

__all__ = ["Signatures", "operands"]

COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum")


class Signatures:
    """Numbers for the nodes of several graphs; two are equal if and only if what they stand for is.

    Weights are compared by a digest of their bytes, which is taken once per weight, and once for all graphs that map
    the same file.
    """

    def __init__(self, *graphs: Graph) -> None:
        self._ids: dict[Hashable, int] = {}
        self._contents: dict[int, Hashable] = {}
        self._alive: list[object] = []  # an id is one object's only as long as that object lives
        self._regions: dict[Hashable, Hashable] = {}
        self._defaults: dict[tuple[str, str, int], dict[str, Hashable]] = {}
        self._files: list[tuple[int, int, Hashable]] = []
        for graph in graphs:
            if graph.file is not None and len(graph.file.data):
                base = _address(graph.file.data)
                self._files.append((base, base + len(graph.file.data), str(graph.file.path.resolve())))

    def op(self, node: gs.Node) -> int:
        """Number the operator, domain included."""
        return self._number(("op", node.domain or "", node.op))

    def node(self, node: gs.Node, graph: gs.Graph) -> tuple[int, int, int, int]:
        """Number the operator; with its attributes (a default is as good as none); with constants; with their shapes.

        The last two count the operators in bodies, too, not what those do.
        """
        op = self.op(node)
        attributes = self._number(("attributes", op, *sorted(self.values(node, graph).items())))
        inside = tuple(tuple(sorted(Counter(map(self.op, body.nodes)).items())) for body in subgraphs(node))
        own: list[Hashable] = []
        loose: list[Hashable] = []
        for tensor in operands(node):
            constant = constant_of(tensor)
            own.append(bool(tensor.name) if constant is None else self.content(constant))
            loose.append(bool(tensor.name) if constant is None else _shape(constant))
        content = self._number(("node", attributes, inside, len(node.outputs), *own))
        return op, attributes, content, self._number(("loose", attributes, *loose))

    def values(self, node: gs.Node, graph: gs.Graph) -> dict[str, Hashable]:
        """Return the attributes that are no bodies, as values that can be compared, defaults left out."""
        defaults = self._schema(node, graph)
        found = {}
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph) or (isinstance(value, list) and any(isinstance(v, gs.Graph) for v in value)):
                continue
            plain = self._plain(value)
            if name not in defaults or defaults[name] != plain:
                found[name] = plain
        return found

    def content(self, constant: gs.Constant) -> Hashable:
        """Return what is equal for constants of equal type, shape and bytes."""
        values = constant._values
        key = id(values)
        if key not in self._contents:
            self._alive.append(values)
            self._contents[key] = self._digest(constant, values)
        return self._contents[key]

    def _digest(self, constant: gs.Constant, values: Any) -> Hashable:
        region = self._region(values)
        if region is not None and region in self._regions:
            return self._regions[region]
        kind: tuple[Hashable, ...] = (str(constant.dtype), _shape(constant))
        content: Hashable
        if isinstance(values, Stored) and not values.readable:
            content = (*kind, values.proto.SerializeToString())
        elif np.dtype(constant.dtype).kind == "O":
            content = (*kind, tuple(str(item) for item in peek(constant).flat))
        else:
            data = values.data() if isinstance(values, Weight) else pack(peek(constant))
            content = (*kind, hashlib.blake2b(data, digest_size=16).digest())
        if region is not None:
            self._regions[region] = content
        return content

    def _region(self, values: object) -> Hashable:
        """Return the place in a file where the values stand, None if they do not stand in one."""
        if not isinstance(values, Stored):
            return None
        if values.external:
            try:
                return (str(values.find()), *values.region())
            except ModelError:
                return None
        if values.raw is not None and len(values.raw):
            start = _address(values.raw)
            for first, end, path in self._files:
                if first <= start < end:
                    return path, start - first, values.nbytes, values.proto.data_type, values.shape
        return None

    def _schema(self, node: gs.Node, graph: gs.Graph) -> dict[str, Hashable]:
        domain = node.domain or ""
        version = _version(graph, domain)
        key = (domain, node.op, version)
        if key not in self._defaults:
            defaults: dict[str, Hashable] = {}
            try:
                schema = onnx.defs.get_schema(node.op, version, domain)
            except Exception:  # an operator that this onnx does not know has no defaults
                schema = None
            for name, attribute in schema.attributes.items() if schema is not None else ():
                if attribute.default_value.type:
                    defaults[name] = self._plain(onnx.helper.get_attribute_value(attribute.default_value))
            self._defaults[key] = defaults
        return self._defaults[key]

    def _plain(self, value: Any) -> Hashable:
        if isinstance(value, gs.Constant):
            return self.content(value)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, (str, bool)):
            return value
        if isinstance(value, (int, float, np.number)):
            return repr(float(np.float32(value))) if isinstance(value, (float, np.floating)) else int(value)
        if isinstance(value, LongList):
            return f"{len(value)} values, {hashlib.sha256(value.proto.SerializeToString()).hexdigest()[:16]}"
        if isinstance(value, (list, tuple, np.ndarray)):
            return tuple(self._plain(item) for item in value)
        if hasattr(value, "SerializeToString"):
            return bytes(value.SerializeToString())
        if hasattr(value, "name"):  # a reference to an attribute of the function around it
            return "reference", str(value.name)
        return str(value)

    def _number(self, content: Hashable) -> int:
        return self._ids.setdefault(content, len(self._ids))


def operands(node: gs.Node) -> list[gs.Tensor]:
    """Return the inputs of a node; where their order does not matter, constants last."""
    inputs = list(node.inputs)
    if node.op in COMMUTATIVE and len(inputs) > 1:
        inputs.sort(key=lambda tensor: constant_of(tensor) is not None)
    return inputs


def _shape(constant: gs.Constant) -> tuple[int, ...]:
    return tuple(int(size) for size in constant.shape)


def _version(graph: gs.Graph, domain: str) -> int:
    if not domain:
        return int(graph.opset)
    return next((int(entry.version) for entry in graph.import_domains or () if entry.domain == domain), 1)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
