"""Weights that several nodes read: they are kept once, so their readers have to agree on one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of
from onnxsqueeze.techniques.quantization.emit.weights import read_by

__all__ = ["Sharing", "Tied"]


@dataclass(frozen=True, eq=False)
class Tied:
    """A weight that more than one node reads, and the layers that multiply by it along its ``axis``.

    With ``alone`` they are all that read it; else others, such as a Gather, read the same integers, so that no
    rounding that fits one input may go into them. ``held`` names a reader that needs the float
    weight, "" if none does.
    """

    axis: int
    layers: tuple[gs.Node, ...]
    alone: bool
    held: str


class Sharing:
    """The weights of a view that more than one node reads.

    ``layers`` are the nodes that could multiply by their second input in integers, and ``stays`` says of a direct
    reader of an initializer, and the input at which it reads it, whether it needs the float weight.
    """

    def __init__(self, view: View, layers: Iterable[gs.Node], stays: Callable[[gs.Node, int], bool]) -> None:
        self._view, self._stays = view, stays
        self._layers = {id(node): node for node in layers}
        self._found: dict[int, Tied | None] = {}
        self._of: dict[int, Tied] = {}
        for node in self._layers.values():
            known = read_by(node)
            tied = None if known is None else self.of(known.constant)
            if tied is not None:
                self._of[id(node)] = tied

    def layer(self, node: gs.Node) -> Tied | None:
        """Return the weight that a layer shares, None if it has one of its own."""
        return self._of.get(id(node))

    def of(self, constant: gs.Constant) -> Tied | None:
        """Return what is known of an initializer that is shared, None if it is not."""
        if id(constant) not in self._found:
            self._found[id(constant)] = self._look(constant)
        return self._found[id(constant)]

    def _look(self, constant: gs.Constant) -> Tied | None:
        readers = list(self._readers(constant))
        if len(readers) < 2 and not self._view.is_output(constant):
            return None
        axes: dict[int, list[gs.Node]] = {}
        for node, slot in readers:
            known = read_by(node) if slot == 1 and id(node) in self._layers else None
            if known is not None and known.constant is constant:
                axes.setdefault(known.axis, []).append(node)
        axis = Counter({a: len(nodes) for a, nodes in axes.items()}).most_common(1)[0][0] if axes else 0
        layers = axes.get(axis, [])
        held = next((key_of(node) for node, slot in readers if self._stays(node, slot)), "")
        if not held:
            held = next((key_of(n) for n, slot in self._direct(constant) if self._stays(n, slot)), "")
        if self._view.is_output(constant):
            held = str(constant.name)
        return Tied(axis, tuple(layers), len(layers) == len(readers), held)

    def _direct(self, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
        for node in dict.fromkeys(tensor.outputs):
            yield from ((node, slot) for slot, each in enumerate(node.inputs) if each is tensor)

    def _readers(self, tensor: gs.Tensor) -> Iterator[tuple[gs.Node, int]]:
        """Yield the nodes that read the tensor, also through Identity and Transpose, with the input that does."""
        for node, slot in self._direct(tensor):
            hands_on = node.op in ("Identity", "Transpose") and is_standard(node)
            if hands_on and not self._view.is_output(node.outputs[0]):
                yield from self._readers(node.outputs[0])
            else:
                yield node, slot
