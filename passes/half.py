"""``half``: weights as 16-bit floats in the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.linear.weighted import is_stored, weighted
from onnxsqueeze.plugin import Graph, Need, Selected, Site, Skip, Statistics, View, edit, key_of
from onnxsqueeze.techniques.floats.border import halve_border
from onnxsqueeze.techniques.floats.halved import HALVES, exact_half, halve
from onnxsqueeze.techniques.floats.narrowed import Narrow, narrow, ranges, refusal

__all__ = ["Half"]

SMALL = 512
"""Weights with fewer elements stay as they are: the Cast takes as many bytes as it saves."""
LARGEST = 65504.0
"""The largest number of float16."""


@dataclass(frozen=True)
class Halved:
    """What a site carries: which inputs of its node are halved, and to which type."""

    slots: tuple[tuple[int, np.dtype[Any]], ...]
    computed: Narrow | None = None
    """What of the node computes in 16 bits instead."""
    border: str = ""
    """The input or output of the model that becomes one of 16 bits."""


@dataclass(frozen=True)
class Half(Selected[Halved]):
    """Store float32 weights as 16-bit floats, from which a Cast restores them when the model is loaded.

    The file is half as large, the arithmetic stays in float32. Each weight is rounded to nearest: to 11 significant
    bits in float16, which holds numbers of size 6e-8 to 65504, to 8 in bfloat16, which has the range of float32.

    With ``exact`` only weights are taken all of whose values are values of a 16-bit type already, as exporters leave
    them: the answers are the same to the bit. This runs after every pipeline with ``clean``.

    With ``compute`` operators compute in the 16-bit type, for engines that are faster so; inputs and outputs of the
    model stay float32 unless ``io=half``. What overflows or underflows on the calibration data stays in float32,
    between Casts.
    """

    name: ClassVar[str] = "half"
    summary: ClassVar[str] = "weights as 16-bit floats in the file"
    float_only: ClassVar[bool] = False
    quantizes: ClassVar[bool] = True

    type: str = "float16"
    """The 16-bit type: float16 or bfloat16."""
    exact: bool = False
    """Only weights whose values are all of a 16-bit type, whichever it is."""
    compute: bool = False
    """Compute in the 16-bit type, too."""
    io: str = "same"
    """half: inputs and outputs of the model are float16, too; same: they keep their types."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: only their weights."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names whose weights stay in float32."""

    def __post_init__(self) -> None:
        if self.type not in ("float16", "bfloat16"):
            raise ValueError(f"type is float16 or bfloat16, not {self.type!r}")
        if self.compute and self.exact:
            raise ValueError("compute rounds what is computed, and exact rounds nothing: write one of them")
        if self.io not in ("same", "half"):
            raise ValueError(f"io is same or half, not {self.io!r}")
        if self.io == "half" and (self.exact or self.type != "float16"):
            raise ValueError("io=half makes inputs and outputs float16: it goes neither with exact nor with bfloat16")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the ranges of what is computed, where it is to be in 16 bits."""
        return ranges(view, self._kind) if self.compute else ()

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Halved] | Skip]:
        """Yield a site for every node with a float32 weight that can be written in 16 bits; a shared one only once."""
        least = 13 if self.type == "bfloat16" else 9
        if view.opset < least:
            reason = f"{self.type} needs opset {least}"
            yield from (Skip(key_of(each.node), reason) for each in weighted(view) if not self.exact)
            return
        yield from self._computed(view, stats) if self.compute else self._stored(view)
        if self.io == "half":
            yield from _borders(view)

    def _stored(self, view: View) -> Iterator[Site[Halved] | Skip]:
        """Yield a site for every node whose weights can be stored in 16 bits."""
        owners: dict[int, str] = {}
        told: set[str] = set()
        for node in view.nodes:
            key = key_of(node)
            if not self.wanted((node.name, key)):
                told.add(key)
                continue
            if any(map(is_stored, node.outputs)):  # what it reads besides are scales, which are fine as they are
                continue
            slots, reason = [], ""
            for slot, tensor in enumerate(node.inputs):
                if not _is_weight(view, tensor):
                    continue
                if id(tensor) in owners:
                    reason = f"its weight is stored with that of '{owners[id(tensor)]}'"
                    continue
                owners[id(tensor)] = key
                dtype = self._dtype(view, tensor)
                if isinstance(dtype, str):
                    reason = dtype
                else:
                    slots.append((slot, dtype))
            if slots:
                words = " and ".join(dict.fromkeys(dtype.name for _, dtype in slots))
                yield Site(key, f"stored as {words}", {"op": node.op}, work=Halved(tuple(slots)))
            elif reason and not self.exact:
                yield Skip(key, reason)
            if slots or reason:
                told.add(key)
        for each in weighted(view) if not self.exact else ():
            if key_of(each.node) not in told:
                yield Skip(key_of(each.node), each.apart or f"it reads no float32 initializer of {SMALL} elements")

    def apply(self, site: Site[Halved], graph: Graph) -> None:
        """Halve the weights of one node, or an input or output of the model."""
        if site.work.border:
            halve_border(graph, site.work.border, HALVES[0])
            return
        node, scope = edit.find(graph, site.key)
        if site.work.computed is not None:
            narrow(graph, node, site.work.computed)
        for slot, dtype in site.work.slots:
            halve(graph, scope, node.inputs[slot], dtype)

    def _computed(self, view: View, stats: Statistics) -> Iterator[Site[Halved] | Skip]:
        """Yield a site for every node that can compute in 16 bits."""
        for node in view.nodes:
            if not self.wanted((node.name, key_of(node))):
                continue
            work = Narrow.of(view, node, self._kind)
            reason = "" if work is None else refusal(view, stats, node, work)
            if work is not None and not reason:
                yield Site(key_of(node), f"computes in {self.type}", {"op": node.op}, work=Halved((), work))
            elif reason:
                yield Skip(key_of(node), reason)
        narrowed = {key_of(node) for node in view.nodes if Narrow.of(view, node, self._kind) is not None}
        for each in weighted(view):
            if key_of(each.node) not in narrowed and self.wanted((each.node.name, key_of(each.node))):
                yield Skip(key_of(each.node), each.apart or f"{each.node.op} does not compute in {self.type}")

    @property
    def _kind(self) -> np.dtype[Any]:
        return HALVES[self.type == "bfloat16"]

    def _dtype(self, view: View, tensor: gs.Tensor) -> np.dtype[Any] | str:
        """Return the type to store a weight in, or why it stays as it is."""
        values = np.asarray(view.value(tensor))
        if self.exact:
            found = exact_half(values)
            fits = found is not None and (found.name == "float16" or view.opset >= 13)
            return found if found is not None and fits else "its values need more than 16 bits"
        if self.type == "bfloat16":
            return HALVES[1]
        size = np.abs(values)
        if not bool((size <= LARGEST).all()):
            return f"it holds values over {LARGEST:.0f}, which float16 does not: use type=bfloat16"
        return HALVES[0]


def _borders(view: View) -> Iterator[Site[Halved] | Skip]:
    """Yield a site for every float32 input and output, after all others: until then nodes make what they are named by.

    What the caller may override, and an output that is no node's, stay.
    """
    graph = view.graph
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            nodes = [node for node in (tensor.outputs if what == "input" else tensor.inputs) if not view.in_body(node)]
            if isinstance(tensor, gs.Constant) or tensor.dtype != np.float32 or not nodes:
                continue
            key = f"{key_of(nodes[0])}[{what} {tensor.name}]"
            if what == "input" and any(tensor is output for output in graph.outputs):
                yield Skip(key, f"'{tensor.name}' is input and output at once")
            else:
                yield Site(key, f"{what} '{tensor.name}' in float16", {}, work=Halved((), border=str(tensor.name)))


def _is_weight(view: View, tensor: gs.Tensor) -> bool:
    constant = view.constant(tensor)
    return (
        constant is not None
        and np.dtype(constant.dtype) == np.float32
        and prod(constant.shape) >= SMALL
        and not view.is_output(constant)
        and not any(reader.op in ("QuantizeLinear", "DequantizeLinear") for reader in constant.outputs)
    )
