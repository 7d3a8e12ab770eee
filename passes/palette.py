"""``palette``: weights as indices of a few levels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.linear import select
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.plugin import Bench, Graph, Need, Selected, Site, Skip, Statistics, View, edit, key_of
from onnxsqueeze.techniques.quantization.apply import Quantized, quantize
from onnxsqueeze.techniques.quantization.emit.lookup import looked_up
from onnxsqueeze.techniques.quantization.emit.weights import correct_bias, values_of
from onnxsqueeze.techniques.quantization.indexed import Indexed
from onnxsqueeze.techniques.quantization.lowbits import BITS, chosen_bits, plain_bits, weights
from onnxsqueeze.words import amount

__all__ = ["Palette"]


@dataclass(frozen=True)
class Leveled:
    """What a site carries: its weights and the bits of their indices, and its form in integers if it has one."""

    weights: tuple[Indexed, ...] = ()
    bits: int = 8
    integer: Quantized | None = None


@dataclass(frozen=True)
class Palette(Selected[Leveled]):
    """Write weights as ``w = c[i]``: indices i of 2 to 8 bits, and a table c of the levels that occur.

    Levels have the least ``Σ d·(w − c)²``, d being the mean square of the input that a weight multiplies (exact k-means
    in one dimension). Where inputs were measured, indices are chosen so that the errors of neighbours cancel on them,
    ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]`` being made small, levels are fitted to that once more, and the mean error is taken off
    the bias. Small first and last layers and depthwise ones get 64 or 256 levels; with feeds as many bytes are spent
    where they take most error off the answers.

    Nodes that the runtime folds when it loads the model look the weights up; the arithmetic stays in float. With
    ``activations=8`` layers compute in 8-bit integers where ``int8`` would let them: levels are whole numbers then, and
    each output has a scale.
    """

    name: ClassVar[str] = "palette"
    summary: ClassVar[str] = "weights as indices of a few levels, 4, 8, 16 … of them"
    min_opset: ClassVar[int] = 13
    quantizes: ClassVar[bool] = True

    bits: int | None = None
    """The bits of most indices: 2, 3, 4, 6 or 8; 4 without ``entries``."""
    entries: int | None = None
    """How many levels most weights have instead, 2 to 256; indices take the fewest bits that hold them."""
    group: int = 0
    """So many outputs, at least, have levels of their own; 0: all of a weight's share them."""
    activations: int = 32
    """8: layers compute in 8-bit integers where that pays; 32: the arithmetic stays in float."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: nothing else gets levels."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names that stay in float."""

    def __post_init__(self) -> None:
        if self.bits is not None and self.entries is not None:
            raise ValueError("bits and entries exclude each other")
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits is 2, 3, 4, 6 or 8, not {self.bits}")
        if self.entries is not None and not 2 <= self.entries <= 256:
            raise ValueError(f"entries is 2 to 256, not {self.entries}")
        if self.group < 0:
            raise ValueError("group is at least 0")
        if self.activations not in (8, 32):
            raise ValueError("activations is 8 or 32")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer, and with integer arithmetic what ``int8`` needs."""
        yield from select.needs(view, self)
        if self.activations == 8:
            yield from self._int8.needs(view)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Leveled] | Skip]:
        """Yield a site for every node whose weights become indices, or that computes in integers."""
        integer = self._integer(self._int8.plan(view, stats)) if self.activations == 8 else {}
        found = list(self._weights(view, stats))
        groups = [entry for entry in found if not isinstance(entry, Skip)]
        yield from (entry for entry in found if isinstance(entry, Skip) and entry.key not in integer)
        yield from self._entries(groups, self._plain(groups), integer)

    def select(self, plan: list[Site[Leveled] | Skip], bench: Bench) -> list[Site[Leveled] | Skip]:
        """Spend the same bytes where a byte takes most error off the answers, which is measured layer by layer."""
        integer: dict[str, Quantized] = {}
        if self.activations == 8:
            base = list(self._int8.plan(View(bench.original), bench.stats))
            integer = self._integer(self._int8.select(base, bench))
        sites = [entry for entry in plan if isinstance(entry, Site) and entry.work.weights]
        groups, plain = [site.work.weights for site in sites], [site.work.bits for site in sites]
        rewrites = {
            group[0].key: [partial(_put, group=group, bits=bits)] for group, bits in zip(groups, plain, strict=True)
        }
        found = impacts(bench.original, bench.feeds[:1], rewrites, bench.progress, bench.ruler, workers=bench.workers)
        gains = {
            group[0].key: found[group[0].key][0] / max(*(weight.error(bits) for weight in group), 1e-12)
            for group, bits in zip(groups, plain, strict=True)
            if group[0].key in found
        }
        size = sum(weight.bytes(bits) for group, bits in zip(groups, plain, strict=True) for weight in group)
        bits = chosen_bits(groups, self._bits, size, gains)
        skips = [entry for entry in plan if isinstance(entry, Skip) and entry.key not in integer]
        return [*skips, *self._entries(groups, bits, integer)]

    def milder(self) -> Palette | None:
        """Return the pass with 256 levels, in float."""
        mild = replace(self, bits=8, entries=None, activations=32)
        return None if mild == self else mild

    def apply(self, site: Site[Leveled], graph: Graph) -> None:
        """Put the look-up where the weights were, and take the mean error off the bias."""
        if site.work.integer is not None:
            quantize(graph, site.key, site.work.integer)
            return
        node, scope = edit.find(graph, site.key)
        for weight in site.work.weights:
            tensor = node.inputs[weight.slot]
            values = values_of(tensor)
            found = weight.palette(site.work.bits, values)
            if weight.biased and weight.moments is not None:
                error = weight.rows(values).astype(np.float64) - found.weight
                correct_bias(graph, node, tensor, error @ weight.moments.mean)
            looked_up(graph, scope, tensor, found, site.work.bits, weight.shape, weight.columns_first)

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Say what the weights take."""
        sites = [site for site in done if "bytes" in site.detail]
        taken, size = (sum(float(str(site.detail[name])) for site in sites) for name in ("bytes", "float"))
        if size:
            yield f"these weights take {amount(taken, 'B')} with their levels, {32 * taken / size:.2f} bits each"

    @property
    def _levels(self) -> int:
        return self.entries or 1 << (self.bits or 4)

    @property
    def _bits(self) -> int:
        return min(bits for bits in BITS if 1 << bits >= self._levels)

    def _weights(self, view: View, stats: Statistics) -> Iterator[list[Indexed] | Skip]:
        for entry in weights(view, stats, self._wants):
            if isinstance(entry, Skip):
                yield entry
            else:
                yield [Indexed.of(weight, self._levels, self.group) for weight in entry]

    def _plain(self, groups: Sequence[Sequence[Indexed]]) -> list[int]:
        """Return the bits that weights get without measurements."""
        plain = plain_bits(groups, self._bits)
        return [max(weight.spared(bits) for weight in group) for group, bits in zip(groups, plain, strict=True)]

    def _entries(
        self, groups: Sequence[Sequence[Indexed]], every: Sequence[int], integer: Mapping[str, Quantized]
    ) -> Iterator[Site[Leveled] | Skip]:
        """Yield the plan; ``integer`` says which nodes compute in integers, and how."""
        known = dict(zip((group[0].key for group in groups), zip(groups, every, strict=True), strict=True))
        for key, work in integer.items():
            group, bits = known.pop(key, ((), 8))
            yield self._in_integers(key, work, group, bits)
        for group, bits in known.values():
            detail = self._detail(group, bits)
            if 2 * int(str(detail["bytes"])) >= int(str(detail["float"])):
                yield Skip(group[0].key, f"levels and indices would take {detail['bytes']} of {detail['float']} bytes")
                continue
            yield Site(group[0].key, _words(detail), detail, work=Leveled(tuple(group), bits))

    def _in_integers(self, key: str, work: Quantized, group: Sequence[Indexed], bits: int) -> Site[Leveled]:
        if work.between or work.tied or not group:
            return Site(key, work.form, {"op": work.form}, work=Leveled(integer=work))
        detail = self._detail(group, bits)
        if bits < 8:
            moments = group[0].moments if work.form == "static" else work.moments
            work = replace(work, moments=moments, bits=bits, levels=int(str(detail["levels"])))
        return Site(key, f"{work.form}, {_words(detail)}", detail, work=Leveled(tuple(group), bits, work))

    def _detail(self, group: Sequence[Indexed], bits: int) -> dict[str, object]:
        size, taken = sum(4 * weight.size for weight in group), sum(weight.bytes(bits) for weight in group)
        levels = self._levels if bits == self._bits else 1 << bits
        return {"op": group[0].node.op, "levels": levels, "bytes": taken, "float": size}

    @property
    def _int8(self) -> Int8:
        return Int8(only=self.only, exclude=self.exclude)

    @staticmethod
    def _integer(plan: Iterable[Site[Quantized] | Skip]) -> dict[str, Quantized]:
        """Return how nodes compute that do so in integers."""
        return {site.key: site.work for site in plan if isinstance(site, Site) and site.work.form != "stored"}

    def _wants(self, node: gs.Node) -> bool:
        return self.wanted((node.name, key_of(node)))


def _words(detail: Mapping[str, object]) -> str:
    return f"{detail['levels']} levels, {32 * int(str(detail['bytes'])) / int(str(detail['float'])):.1f} bits a weight"


def _put(graph: Graph, key: str, group: Sequence[Indexed], bits: int) -> None:
    """Give a copy of a node the weights that levels leave."""
    for weight in group:
        weight.put(graph, key, bits)
