"""Two graphs side by side: pairs of nodes that differ, and regions between common tensors that do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from math import prod

import networkx as nx
import onnx_graphsurgeon as gs

from onnxsqueeze.analysis.diff.changes import AttributeChange, Change, Rename, WeightChange, reference, weight_change
from onnxsqueeze.analysis.diff.matching import Match, Side, Wires, match
from onnxsqueeze.analysis.diff.signature import Signatures, operands
from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph

__all__ = ["Comparison"]


class Comparison:
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
        before, after = reference(one), reference(two)
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
        return weight_change(a, b)

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
        groups = nx.utils.UnionFind()
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
                                groups.union((number, i), (number, reader))
                    elif wire not in made:
                        made.add(wire)
                        if i in open_:
                            first[wire][number] = number, i
        for one, two in first.values():
            if one is not None and two is not None:
                groups.union(one, two)
        members: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for i in loose_a:
            members[groups[0, i]][0].append(i)
        for j in loose_b:
            members[groups[1, j]][1].append(j)
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
        weights = [weight_change(c, None) for c in old if self.signatures.content(c) not in contents]
        weights += [weight_change(None, c) for c in new if self.signatures.content(c) not in contents]
        return Change(kind, where, tuple(map(reference, before)), tuple(map(reference, after)), weights=tuple(weights))


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


def _constants(nodes: list[gs.Node]) -> list[gs.Constant]:
    """Return the initializers and Constant values of the nodes, without scalars."""
    found = {id(c): c for node in nodes for t in node.inputs if (c := constant_of(t)) is not None}
    return [c for c in found.values() if prod(map(int, c.shape)) > 1]


def _text(value: Hashable) -> str | None:
    if value is None:
        return None
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
