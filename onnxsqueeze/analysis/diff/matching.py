"""Which node of one graph is which node of another, and which of their tensors carry the same value."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx_graphsurgeon as gs

from onnxsqueeze.analysis.diff.signature import Signatures, operands
from onnxsqueeze.graph.constants import constant_of
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import subgraphs

__all__ = ["Match", "Side", "Wires", "match"]

HOPS = 3
"""How far around a node its neighbourhood is looked at."""


class Side:
    """One scope of one model (the main graph, a body, a function) as lists indexed by the position of a node."""

    def __init__(self, graph: gs.Graph, signatures: Signatures) -> None:
        self.graph = graph
        self.nodes: list[gs.Node] = list(graph.nodes)
        self.reads = [list(_reads(node)) for node in self.nodes]
        self.maker: dict[int, tuple[int, int]] = {}
        self.readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """By the id of a tensor: who makes and who reads it, as (node, slot); slot -1 is a read from within a body."""
        for i, node in enumerate(self.nodes):
            for slot, tensor in enumerate(node.outputs):
                if tensor.name:
                    self.maker[id(tensor)] = i, slot
            for slot, tensor in self.reads[i]:
                self.readers[id(tensor)].append((i, slot))
        self.keys = [key_of(node) for node in self.nodes]
        numbers = [signatures.node(node, graph) for node in self.nodes]
        self.ops, self.attrs, self.own, self.loose = ([each[k] for each in numbers] for k in range(4))

    def makers(self, i: int) -> Iterator[tuple[int, int, int]]:
        """Yield (slot, maker, slot of the maker) for every input that another node of this scope makes."""
        for slot, tensor in self.reads[i]:
            if id(tensor) in self.maker:
                yield (slot, *self.maker[id(tensor)])


def _reads(node: gs.Node) -> Iterator[tuple[int, gs.Tensor]]:
    for slot, tensor in enumerate(operands(node)):
        if tensor.name:
            yield slot, tensor
    for body in subgraphs(node):
        own = {id(tensor) for inner in body.nodes for tensor in inner.outputs} | {id(t) for t in body.inputs}
        captured = [t for inner in body.nodes for _, t in _reads(inner)] + list(body.outputs)
        for tensor in {id(t): t for t in captured if t.name and id(t) not in own}.values():
            yield -1, tensor


class Wires:
    """Pairs of tensors, one or more of each side, that carry the same value as far as the structure tells."""

    def __init__(self) -> None:
        self._a: dict[int, int] = {}
        self._b: dict[int, int] = {}
        self.members: list[tuple[list[gs.Tensor], list[gs.Tensor]]] = []

    def a(self, tensor: gs.Tensor) -> int | None:
        """Return the wire of a tensor of the first graph, None if nothing in the second is like it."""
        return self._a.get(id(tensor))

    def b(self, tensor: gs.Tensor) -> int | None:
        """Return the wire of a tensor of the second graph."""
        return self._b.get(id(tensor))

    def link(self, a: gs.Tensor, b: gs.Tensor, *, alias: bool = True) -> None:
        """Put both on one wire; a tensor stays where it is. With ``alias`` one may join the wire of the other."""
        one, two = self.a(a), self.b(b)
        if (one is None) != (two is None) and not alias:
            return
        if one is None and two is None:
            one = two = self._a[id(a)] = self._b[id(b)] = len(self.members)
            self.members.append(([a], [b]))
        elif one is None and two is not None:
            self._a[id(a)] = two
            self.members[two][0].append(a)
        elif two is None and one is not None:
            self._b[id(b)] = one
            self.members[one][1].append(b)


@dataclass
class Match:
    """The nodes of one scope in pairs, as positions, and the wires between them."""

    a: Side
    b: Side
    wires: Wires
    pairs: dict[int, int] = field(default_factory=dict)
    partners: dict[int, int] = field(default_factory=dict)
    named: bool = True
    """Whether equal names mean the same thing: not after an exporter has numbered all tensors anew."""

    def join(self, i: int, j: int) -> None:
        """Make a pair."""
        self.pairs[i], self.partners[j] = j, i


def match(a: Side, b: Side, wires: Wires) -> Match:
    """Pair the nodes of two scopes and link their tensors; ``wires`` already joins what both take from outside.

    Anchors first (equal function of the inputs and equal use by the outputs; equal names with equal content; unique
    neighbourhoods), then neighbours of anchors, all in time linear in the size of the graphs.
    """
    found = Match(a, b, wires)
    ids: dict[Hashable, int] = {}
    does_a, does_b = _forward(a, wires.a, ids), _forward(b, wires.b, ids)
    use_a, use_b = _backward(a, ids), _backward(b, ids)
    _groups(found, list(zip(does_a, use_a, strict=True)), list(zip(does_b, use_b, strict=True)))
    found.named = _names_hold(found, (does_a, does_b), (use_a, use_b))
    if len(found.pairs) < len(a.nodes) or len(found.partners) < len(b.nodes):
        near = _neighbourhoods(a, ids), _neighbourhoods(b, ids)
        _pair_rest(found, (does_a, does_b), (use_a, use_b), near)
    _wire(found)
    return found


def _pair_rest(found: Match, *anchors: tuple[list[int], list[int]]) -> None:
    """Pair what is not the same in every respect: by names where they hold, by unique numbers, by neighbours."""
    a, b = found.a, found.b
    if found.named:
        for one, two in ((a.own, b.own), *anchors):
            _same_names(found, lambda i, j, one=one, two=two: one[i] == two[j])  # type: ignore[misc]
    for one, two in anchors:
        _unique(found, one, two)
    heavy = [[own if weighs else None for own, weighs in zip(s.own, _weighty(s), strict=True)] for s in (a, b)]
    _unique(found, *heavy)
    if found.named:
        _same_names(found, lambda i, j: a.ops[i] == b.ops[j])
    for one, two in ((a.own, b.own), (a.loose, b.loose), (a.ops, b.ops)):
        _propagate(found, one, two)
    _unique(found, a.loose, b.loose)
    _propagate(found, a.ops, b.ops)


def _forward(side: Side, wire: Callable[[gs.Tensor], int | None], ids: dict[Hashable, int]) -> list[int]:
    """Number every node by what it computes from the inputs of the scope: equal numbers, equal functions."""
    made: dict[tuple[int, int], int] = {}
    numbers = []
    for i in range(len(side.nodes)):
        inputs: list[tuple[int, bool, int]] = []
        for slot, tensor in side.reads[i]:
            if constant_of(tensor) is not None:
                continue  # its content is in the signature
            source = side.maker.get(id(tensor))
            outside = wire(tensor) if source is None else None  # out there only what is linked is the same
            inputs.append(
                (slot, source is None, made.get(source, -1) if source else -1 if outside is None else outside)
            )
        # what bodies capture has no order
        number = _number(ids, ("forward", side.own[i], *sorted(inputs)))
        numbers.append(number)
        for slot in range(len(side.nodes[i].outputs)):
            made[i, slot] = _number(ids, ("output", number, slot))
    return numbers


def _backward(side: Side, ids: dict[Hashable, int]) -> list[int]:
    """Number every node by what becomes of its outputs."""
    outputs: dict[int, list[int]] = defaultdict(list)
    for position, tensor in enumerate(side.graph.outputs):
        outputs[id(tensor)].append(position)
    numbers = [-1] * len(side.nodes)
    for i in range(len(side.nodes) - 1, -1, -1):
        used: list[Hashable] = [side.own[i]]
        for tensor in side.nodes[i].outputs:
            used.append(tuple(sorted((numbers[j], slot) for j, slot in side.readers.get(id(tensor), ()))))
            used.append(tuple(outputs.get(id(tensor), ())))
        numbers[i] = _number(ids, ("backward", *used))
    return numbers


def _neighbourhoods(side: Side, ids: dict[Hashable, int]) -> list[int]:
    """Number every node by the content of all nodes up to ``HOPS`` edges away (Weisfeiler-Lehman refinement)."""
    labels = list(side.own)
    for _ in range(HOPS):
        refined = []
        for i, node in enumerate(side.nodes):
            around: list[Hashable] = [labels[i]]
            around.append(tuple(sorted((slot, labels[j], other) for slot, j, other in side.makers(i))))
            for tensor in node.outputs:
                around.append(tuple(sorted((labels[j], slot) for j, slot in side.readers.get(id(tensor), ()))))
            refined.append(_number(ids, ("near", *around)))
        labels = refined
    return labels


def _number(ids: dict[Hashable, int], content: Hashable) -> int:
    return ids.setdefault(content, len(ids))


def _open(found: Match, one: Sequence[Hashable], two: Sequence[Hashable]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the unmatched nodes of both sides that have equal labels; the label None is like no other."""
    groups: dict[Hashable, tuple[list[int], list[int]]] = {}
    for i, label in enumerate(one):
        if i not in found.pairs and label is not None:
            groups.setdefault(label, ([], []))[0].append(i)
    for j, label in enumerate(two):
        if j not in found.partners and label in groups:
            groups[label][1].append(j)
    return (group for group in groups.values() if group[1])


def _groups(found: Match, one: Sequence[Hashable], two: Sequence[Hashable]) -> None:
    """Pair within groups of nodes that nothing tells apart: by name, then in order."""
    for left, right in _open(found, one, two):
        names = {found.b.keys[j]: j for j in right}
        for i in left:
            if found.a.keys[i] in names:
                found.join(i, names.pop(found.a.keys[i]))
        rest = [j for j in right if j not in found.partners]
        for i, j in zip([i for i in left if i not in found.pairs], rest, strict=False):
            found.join(i, j)


def _unique(found: Match, one: Sequence[Hashable], two: Sequence[Hashable]) -> None:
    for left, right in _open(found, one, two):
        if len(left) == len(right) == 1:
            found.join(left[0], right[0])


def _names_hold(found: Match, *labels: tuple[Sequence[Hashable], Sequence[Hashable]]) -> bool:
    """Judge by the nodes that are certain without names: do names stay, or move to other nodes?"""
    names_b = set(found.b.keys)
    outputs = {tensor.name for tensor in found.a.graph.outputs}
    agree = clash = 0
    for one, two in labels:
        often_a, often_b = Counter(one), Counter(two)
        only = {label: j for j, label in enumerate(two) if often_b[label] == 1}
        for i, label in enumerate(one):
            name = found.a.keys[i]
            if often_a[label] == 1 and label in only and name not in outputs:
                agree += name == found.b.keys[only[label]]
                clash += name != found.b.keys[only[label]] and name in names_b
    shared = len(names_b.intersection(found.a.keys))
    fewer = min(len(found.a.keys), len(found.b.keys))
    return agree >= clash and (agree > 0 or 2 * shared >= fewer)


def _same_names(found: Match, agree: Callable[[int, int], bool]) -> None:
    names = {key: j for j, key in enumerate(found.b.keys) if j not in found.partners and key}
    for i, key in enumerate(found.a.keys):
        if i not in found.pairs and key in names and agree(i, names[key]):
            found.join(i, names.pop(key))


def _weighty(side: Side) -> list[bool]:
    """Return which nodes read a constant that is large enough to tell them from others."""
    return [any(c is not None and prod(c.shape) >= 16 for c in map(constant_of, node.inputs)) for node in side.nodes]


def _propagate(found: Match, one: Sequence[Hashable], two: Sequence[Hashable]) -> None:
    """Pair the makers and the only alike readers of pairs, as far as that goes."""
    a, b = found.a, found.b
    queue = deque(found.pairs.items())
    while queue:
        i, j = queue.popleft()
        candidates = []
        sources = {slot: (maker, out) for slot, maker, out in b.makers(j) if slot >= 0}
        for slot, maker, out in a.makers(i):
            other = sources.get(slot)
            if other is not None and other[1] == out:
                candidates.append((maker, other[0]))
        for left, right in zip(a.nodes[i].outputs, b.nodes[j].outputs, strict=False):
            candidates += _alike_readers(found, left, right, one, two)
        for m, n in candidates:
            if m not in found.pairs and n not in found.partners and one[m] == two[n]:
                found.join(m, n)
                queue.append((m, n))


def _alike_readers(
    found: Match, left: gs.Tensor, right: gs.Tensor, one: Sequence[Hashable], two: Sequence[Hashable]
) -> Iterator[tuple[int, int]]:
    groups: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for m, slot in found.a.readers.get(id(left), ()):
        if m not in found.pairs:
            groups[one[m], slot][0].append(m)
    for n, slot in found.b.readers.get(id(right), ()):
        if n not in found.partners:
            groups[two[n], slot][1].append(n)
    for mine, other in groups.values():
        if len(mine) == len(other) == 1:
            yield mine[0], other[0]


def _wire(found: Match) -> None:
    """Link the tensors of both scopes: by name where names hold, then around pairs, the most alike first."""
    a, b, wires = found.a, found.b, found.wires
    if found.named:
        names = {t.name: t for node in b.nodes for t in node.outputs if t.name}
        for node in a.nodes:
            for tensor in node.outputs:
                if tensor.name in names:
                    wires.link(tensor, names[tensor.name])
    rounds = [(a.own, b.own, True), (a.loose, b.loose, False)]
    if not found.named:
        rounds.append((a.ops, b.ops, False))  # what else could tell where a pruned layer went
    for alike, theirs, alias in rounds:
        for i in sorted(found.pairs):
            j = found.pairs[i]
            if alike[i] != theirs[j]:
                continue
            within = any(subgraphs(a.nodes[i]))  # bodies that differ are told in their place: around them all is alike
            for one, two in zip(a.nodes[i].outputs, b.nodes[j].outputs, strict=False):
                if one.name and two.name:
                    wires.link(one, two, alias=alias or within)
            if alike is a.ops:
                continue  # a changed operator may well read something else
            for one, two in zip(operands(a.nodes[i]), operands(b.nodes[j]), strict=False):
                if one.name and two.name and constant_of(one) is None and constant_of(two) is None:
                    wires.link(one, two)
