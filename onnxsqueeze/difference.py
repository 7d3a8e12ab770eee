"""``diff``: what was added, removed, replaced, changed and renamed between two graphs, as data."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxsqueeze import codec
from onnxsqueeze.graph import Graph
from onnxsqueeze.interface import FieldChange, Totals, interface, totals
from onnxsqueeze.matching import Match, Side, Wires, match
from onnxsqueeze.report import plain
from onnxsqueeze.signature import Signatures, constant_of, operands
from onnxsqueeze.trace import Trace, trace
from onnxsqueeze.view import key_of
from onnxsqueeze.weights import peek

__all__ = ["AttributeChange", "Change", "GraphDiff", "NodeRef", "Rename", "WeightChange", "diff"]


@dataclass(frozen=True)
class NodeRef:
    """A node: its first output's name (``key``), its own name, which may be empty, and its operator."""

    key: str
    name: str
    op: str


@dataclass(frozen=True)
class AttributeChange:
    """An attribute with its values as text, None where it is absent or at its default."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class WeightChange:
    """A constant that a changed node reads; the fields are (before, after), None on the side that has none.

    ``values`` are those of up to eight elements, as text. ``relative`` is ``‖after − before‖ / ‖before‖`` where both
    have the same shape; sparsity is the share of zeros.
    """

    name: tuple[str | None, str | None]
    dtype: tuple[str | None, str | None]
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    sparsity: tuple[float | None, float | None]
    values: tuple[str | None, str | None]
    relative: float | None


@dataclass(frozen=True)
class Change:
    """One place where the graphs differ, between tensors that both have.

    ``kind`` is ``added``, ``removed``, ``replaced`` (``before`` became ``after``) or ``changed`` (one node that is
    still the same operator in the same place). ``scope`` says where: empty for the main graph, ``if_out/then_branch``
    in a body, the name of a local function. ``inputs`` are the names (before, after) of tensors that a changed node
    reads in place of others.
    """

    kind: str
    scope: str
    before: tuple[NodeRef, ...]
    after: tuple[NodeRef, ...]
    attributes: tuple[AttributeChange, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rename:
    """A ``node``, ``tensor`` or ``initializer`` that only has another name."""

    kind: str
    scope: str
    before: str
    after: str


@dataclass(frozen=True)
class GraphDiff:
    """The difference of two models. ``pairs`` maps the keys of all nodes of the main graph that were paired."""

    before: str
    after: str
    interface: tuple[FieldChange, ...]
    changes: tuple[Change, ...]
    renamed: tuple[Rename, ...]
    totals: Totals
    pairs: dict[str, str]
    numbers: Trace | None = None

    @property
    def same(self) -> bool:
        """Whether nothing differs at all; the order of nodes is no difference."""
        return not (self.interface or self.changes or self.renamed)

    @property
    def verdict(self) -> str:
        """The difference in one sentence."""
        if self.same:
            return "The models are the same."
        parts = [
            f"{count} {kind}"
            for kind in ("replaced", "changed", "added", "removed")
            if (count := sum(change.kind == kind for change in self.changes))
        ]
        if self.renamed:
            parts.append(f"{len(self.renamed)} renamed")
        if self.interface:
            parts.append(f"{len(self.interface)} in the model's interface")
        if not self.changes and not self.interface:
            return f"Only names differ: {parts[0]}."
        return f"The models differ: {', '.join(parts)}."

    def to_dict(self) -> dict[str, object]:
        """Return the difference as JSON values, without ``pairs``."""
        found = plain(self)
        assert isinstance(found, dict)
        del found["pairs"]
        return {"same": self.same, "verdict": self.verdict, **found}


def diff(
    a: Graph | str | os.PathLike[str] | onnx.ModelProto,
    b: Graph | str | os.PathLike[str] | onnx.ModelProto,
    calibration: Any = None,
    *,
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    seed: int = 0,
    threshold: float = 60.0,
) -> GraphDiff:
    """Return how ``b`` differs from ``a``: files, models or graphs, made by whatever tool.

    Nodes are paired by what they compute, by how their results are used, by name where names hold and by their
    neighbourhood; so a moved node is no change and a renamed one is only renamed. With ``calibration`` (whatever
    ``squeeze`` takes) both models run, and ``numbers`` says how far each common tensor and output of ``b`` is from
    that of ``a``, and where the error is born: see ``onnxsqueeze.trace``. Raises ModelError or FeedError.
    """
    collecting = gc.isenabled()
    gc.disable()  # of the many small objects none is garbage before the end: looking for it takes a third of the time
    try:
        one, two = (model if isinstance(model, gs.Graph) else codec.load(model) for model in (a, b))
        comparison = _Comparison(one, two)
        main = comparison.run()
        weights = totals(one, two, [_size(model, graph) for model, graph in ((a, one), (b, two))])
    finally:
        if collecting:
            gc.enable()
    numbers = None
    if calibration is not None:
        numbers = trace(main, calibration, mean=mean, std=std, scale=scale, seed=seed, threshold=threshold)
    return GraphDiff(
        before=_title(a),
        after=_title(b),
        interface=interface(one, two),
        changes=tuple(comparison.changes),
        renamed=tuple(comparison.renamed),
        totals=weights,
        pairs={main.a.keys[i]: main.b.keys[j] for i, j in main.pairs.items()},
        numbers=numbers,
    )


def _size(model: object, graph: Graph) -> int | None:
    """Return the size of the files of a model that was just loaded from them."""
    if not isinstance(model, (str, os.PathLike)) or graph.file is None:
        return None
    return sum(path.stat().st_size for path in (graph.file.path, *graph.file.others))


def _title(model: object) -> str:
    if isinstance(model, gs.Graph) and getattr(model, "file", None) is not None:
        return str(model.file.path)
    return str(model) if isinstance(model, (str, os.PathLike)) else "<memory>"


class _Comparison:
    """One run of ``diff`` over all scopes of two models."""

    def __init__(self, a: Graph, b: Graph) -> None:
        self.models = a, b
        self.signatures = Signatures(a, b)
        self.wires = Wires()
        self.changes: list[Change] = []
        self.renamed: list[Rename] = []
        self._weights: set[tuple[int, int]] = set()

    def run(self) -> Match:
        """Compare the main graphs and the functions that both have; return the match of the main graphs."""
        a, b = self.models
        for one, two in ((a.inputs, b.inputs), (a.outputs, b.outputs)):
            for left, right in _by_name(one, two):
                self.wires.link(left, right)
        main = self.scope(a, b, "")
        functions = {function.unique_id: function for function in b.functions}
        for function in a.functions:
            other = functions.get(function.unique_id)
            if other is not None:
                self.inside(function, other, "::".join(part for part in function.unique_id if part))
        return main

    def inside(self, a: gs.Graph, b: gs.Graph, where: str) -> None:
        """Compare two bodies or functions, whose inputs and outputs have positions rather than names."""
        for one, two in (*zip(a.inputs, b.inputs, strict=False), *zip(a.outputs, b.outputs, strict=False)):
            self.wires.link(one, two)
        self.scope(a, b, where)

    def scope(self, a: gs.Graph, b: gs.Graph, where: str) -> Match:
        found = match(Side(a, self.signatures), Side(b, self.signatures), self.wires)
        differing: dict[int, Change] = {}
        for i, j in found.pairs.items():
            change = self.pair(found, i, j, where)
            if change is not None:
                differing[i] = change
        clean = {i for i in found.pairs if i not in differing or differing[i].kind == "changed"}
        changes = [(i, change) for i, change in differing.items() if change.kind == "changed"]
        self.renames(found, sorted(clean), where)
        changes += self.regions(found, clean, where)
        self.changes.extend(change for _, change in sorted(changes, key=lambda item: item[0]))
        for i in sorted(clean):
            one, two = found.a.nodes[i], found.b.nodes[found.pairs[i]]
            for name, left, right in _bodies(one, two):
                self.inside(left, right, f"{where}/{key_of(one)}/{name}".lstrip("/"))
        return found

    def pair(self, found: Match, i: int, j: int, where: str) -> Change | None:
        """Return how a pair of nodes differs: not at all, ``changed``, or ``replaced`` if it is not in one place."""
        one, two = found.a.nodes[i], found.b.nodes[j]
        before, after = _ref(one), _ref(two)
        elsewhere = Change("replaced", where, (before,), (after,))
        moved: list[tuple[str, str]] = []
        weights: list[tuple[gs.Constant | None, gs.Constant | None]] = []
        for left, right in _slots(operands(one), operands(two)):
            mine = None if left is None else constant_of(left)
            other = None if right is None else constant_of(right)
            if (left is None or mine is not None) and (right is None or other is not None):
                if mine is not None or other is not None:
                    weights.append((mine, other))
                continue
            if left is None or right is None or mine is not None or other is not None:
                return elsewhere
            wire, wanted = self.wires.a(left), self.wires.b(right)
            if wire is None or wanted is None:
                return elsewhere
            if wire != wanted:
                moved.append((left.name, right.name))
        for left, right in _slots(one.outputs, two.outputs):
            if left is not None and right is not None:
                wire, wanted = self.wires.a(left), self.wires.b(right)
                if wire != wanted or (wire is None and (left.outputs or right.outputs)):
                    return elsewhere
        if not moved and found.a.own[i] == found.b.own[j]:
            return None
        attributes = self.attributes(found, i, j)
        changed = [c for mine, other in weights if (c := self.weight(mine, other)) is not None]
        if not (attributes or changed or moved):
            return None  # the bodies differ, which is told where it is, or a shared weight, told already
        return Change("changed", where, (before,), (after,), attributes, tuple(changed), tuple(moved))

    def attributes(self, found: Match, i: int, j: int) -> tuple[AttributeChange, ...]:
        if found.a.attrs[i] == found.b.attrs[j]:
            return ()
        old = self.signatures.values(found.a.nodes[i], found.a.graph)
        new = self.signatures.values(found.b.nodes[j], found.b.graph)
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        return tuple(AttributeChange(name, _text(old.get(name)), _text(new.get(name))) for name in names)

    def weight(self, a: gs.Constant | None, b: gs.Constant | None) -> WeightChange | None:
        """Return how two constants differ; None if they do not, or if it was told before."""
        if a is not None and b is not None and self.signatures.content(a) == self.signatures.content(b):
            return None
        if (id(a), id(b)) in self._weights:
            return None
        self._weights.add((id(a), id(b)))
        return _weight_change(a, b)

    def renames(self, found: Match, pairs: Iterable[int], where: str) -> None:
        names = {t.name for node in found.b.nodes for t in (*node.inputs, *node.outputs)} if found.named else set()
        nodes = {node.name for node in found.b.nodes} if found.named else set()
        told: set[int] = set()
        for i in pairs:
            one, two = found.a.nodes[i], found.b.nodes[found.pairs[i]]
            if one.name != two.name and one.name not in nodes:
                self.renamed.append(Rename("node", where, one.name, two.name))
            for left, right in _slots(one.outputs, two.outputs):
                if left is not None and right is not None and left.name != right.name and left.name not in names:
                    self.renamed.append(Rename("tensor", where, left.name, right.name))
            for left, right in _slots(operands(one), operands(two)):
                if not isinstance(left, gs.Constant) or not isinstance(right, gs.Constant) or id(left) in told:
                    continue
                told.add(id(left))
                if left.name != right.name and left.name not in names:
                    self.renamed.append(Rename("initializer", where, left.name, right.name))

    def regions(self, found: Match, clean: set[int], where: str) -> Iterator[tuple[int, Change]]:
        """Yield what became of the nodes that are not paired in one place, with their position in the first graph.

        Nodes belong together when a tensor that only one side has runs between them, and the nodes of both sides when
        they make the same tensor.
        """
        a, b, wires = found.a, found.b, self.wires
        partners = {found.pairs[i] for i in clean}
        loose_a = [i for i in range(len(a.nodes)) if i not in clean]
        loose_b = [j for j in range(len(b.nodes)) if j not in partners]
        groups = _Groups()
        first: dict[int, list[Hashable]] = defaultdict(lambda: [None, None])
        for number, (side, loose, wire_of) in enumerate(((a, loose_a, wires.a), (b, loose_b, wires.b))):
            open_ = set(loose)
            made: set[int] = set()
            for i in range(len(side.nodes)):
                for tensor in side.nodes[i].outputs:
                    wire = wire_of(tensor) if tensor.name else None
                    if wire is None:
                        for reader, _ in side.readers.get(id(tensor), ()):
                            if i in open_ and reader in open_ and constant_of(tensor) is None:
                                groups.join((number, i), (number, reader))
                    elif wire not in made:
                        made.add(wire)
                        if i in open_:
                            first[wire][number] = number, i
        for one, two in first.values():
            if one is not None and two is not None:
                groups.join(one, two)
        members: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for i in loose_a:
            members[groups.root((0, i))][0].append(i)
        for j in loose_b:
            members[groups.root((1, j))][1].append(j)
        for mine, other in members.values():
            mine, other = self._without_equals(found, mine, other)
            if mine or other:
                yield _position(found, mine, other), self.region(found, mine, other, where)

    def _without_equals(self, found: Match, mine: list[int], other: list[int]) -> tuple[list[int], list[int]]:
        """Leave out the nodes of a region that both sides have if that explains one side."""
        equal = {
            i: found.pairs[i]
            for i in mine
            if found.pairs.get(i) in other and found.a.own[i] == found.b.own[found.pairs[i]]
        }
        rest_a = [i for i in mine if i not in equal]
        rest_b = [j for j in other if j not in equal.values()]
        return (rest_a, rest_b) if bool(rest_a) != bool(rest_b) else (mine, other)

    def region(self, found: Match, mine: list[int], other: list[int], where: str) -> Change:
        before = [found.a.nodes[i] for i in mine]
        after = [found.b.nodes[j] for j in other]
        kind = "replaced" if before and after else "removed" if before else "added"
        old, new = (_constants(nodes) for nodes in (before, after))
        contents = {self.signatures.content(c) for c in old} & {self.signatures.content(c) for c in new}
        weights = [_weight_change(c, None) for c in old if self.signatures.content(c) not in contents]
        weights += [_weight_change(None, c) for c in new if self.signatures.content(c) not in contents]
        return Change(kind, where, tuple(map(_ref, before)), tuple(map(_ref, after)), weights=tuple(weights))


class _Groups:
    """Disjoint sets."""

    def __init__(self) -> None:
        self._above: dict[Hashable, Hashable] = {}

    def root(self, item: Hashable) -> Hashable:
        while (above := self._above.get(item, item)) != item:
            self._above[item] = self._above.get(above, above)
            item = above
        return item

    def join(self, one: Hashable, two: Hashable) -> None:
        self._above[self.root(two)] = self.root(one)


def _position(found: Match, mine: list[int], other: list[int]) -> int:
    """Return where in the first graph a region is: after the last pair before it if it has no node there."""
    if mine:
        return mine[0]
    return next((found.partners[j] for j in range(other[0] - 1, -1, -1) if j in found.partners), -1)


def _by_name(one: list[gs.Tensor], two: list[gs.Tensor]) -> Iterator[tuple[gs.Tensor, gs.Tensor]]:
    """Pair tensors by name, and what is left in order."""
    names = {tensor.name: tensor for tensor in two}
    rest = []
    for tensor in one:
        if tensor.name in names:
            yield tensor, names.pop(tensor.name)
        else:
            rest.append(tensor)
    yield from zip(rest, names.values(), strict=False)


def _slots(one: list[gs.Tensor], two: list[gs.Tensor]) -> Iterator[tuple[gs.Tensor | None, gs.Tensor | None]]:
    """Pair tensors by position; None is an optional one that is absent."""
    for i in range(max(len(one), len(two))):
        left, right = (side[i] if i < len(side) and side[i].name else None for side in (one, two))
        if left is not None or right is not None:
            yield left, right


def _bodies(one: gs.Node, two: gs.Node) -> Iterator[tuple[str, gs.Graph, gs.Graph]]:
    for name, value in one.attrs.items():
        other = two.attrs.get(name)
        if isinstance(value, gs.Graph) and isinstance(other, gs.Graph):
            yield name, value, other
        elif isinstance(value, list) and isinstance(other, list):
            for i, (left, right) in enumerate(zip(value, other, strict=False)):
                if isinstance(left, gs.Graph) and isinstance(right, gs.Graph):
                    yield f"{name}[{i}]", left, right


def _ref(node: gs.Node) -> NodeRef:
    op = node.op if not node.domain else f"{node.domain}::{node.op}"
    return NodeRef(key_of(node), node.name or "", op)


def _constants(nodes: list[gs.Node]) -> list[gs.Constant]:
    """Return the initializers and Constant values of the nodes, without scalars."""
    found = {id(c): c for node in nodes for t in node.inputs if (c := constant_of(t)) is not None}
    return [c for c in found.values() if int(np.prod(c.shape, dtype=np.int64)) > 1]


def _weight_change(a: gs.Constant | None, b: gs.Constant | None) -> WeightChange:
    old, new = (None if c is None else _values(c) for c in (a, b))
    relative = None
    if old is not None and new is not None and old.shape == new.shape:
        norm = float(np.linalg.norm(old))
        distance = float(np.linalg.norm(new - old))
        relative = distance / norm if norm else float("inf") if distance else 0.0
    return WeightChange(
        name=tuple(None if c is None else str(c.name) for c in (a, b)),  # type: ignore[arg-type]
        dtype=tuple(None if c is None else str(np.dtype(c.dtype)) for c in (a, b)),  # type: ignore[arg-type]
        shape=tuple(None if c is None else tuple(map(int, c.shape)) for c in (a, b)),  # type: ignore[arg-type]
        sparsity=tuple(  # type: ignore[arg-type]
            None if v is None or not v.size else float(1 - np.count_nonzero(v) / v.size) for v in (old, new)
        ),
        values=tuple(None if c is None or prod(c.shape) > 8 else str(peek(c).tolist()) for c in (a, b)),  # type: ignore[arg-type]
        relative=relative,
    )


def _values(constant: gs.Constant) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return the values of a constant of numbers as a vector of its shape in float64."""
    if np.dtype(constant.dtype).kind in "OVSU":
        return None
    try:
        return peek(constant).astype(np.float64)
    except (TypeError, ValueError):
        return None


def _text(value: Hashable) -> str | None:
    if value is None:
        return None
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
