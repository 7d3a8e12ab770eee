"""``bits``: weights in 2 to 8 bits, chosen layer by layer under one budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.linear import select
from onnxsqueeze.linear.layers import Linear, describe
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.passes.int8 import Int8
from onnxsqueeze.plugin import Bench, Graph, Need, Selected, Site, Skip, Statistics, View, edit, key_of
from onnxsqueeze.techniques.quantization.apply import Quantized, quantize
from onnxsqueeze.techniques.quantization.emit.nbits import restored
from onnxsqueeze.techniques.quantization.emit.rows import multiplied, rows_of
from onnxsqueeze.techniques.quantization.emit.weights import correct_bias, values_of
from onnxsqueeze.techniques.quantization.lowbits import BITS, Weight, chosen_bits, heads, plain_bits, weights
from onnxsqueeze.techniques.quantization.outliers import smoothing

__all__ = ["Bits"]


@dataclass(frozen=True)
class FewBits:
    """What a site carries: its weights and their bits, and its form in integer arithmetic if it has one."""

    weights: tuple[Weight, ...] = ()
    bits: int = 8
    integer: Quantized | None = None


Plan = list[Site[FewBits] | Skip]


@dataclass(frozen=True)
class Bits(Selected[FewBits]):
    """Write weights as ``W ≈ s·q`` with integers q of 2 to 8 bits and a scale s per block of about 32.

    Scales are searched for the least error ``Σ d·(w − s·q)²``, d being the mean square of the inputs, and where inputs
    were measured integers are rounded so that their errors cancel on them: ``tr[(W − Ŵ) S (W − Ŵ)ᵀ]`` is made small,
    and the mean error is taken off the bias.

    Layers that can spare them least get more bits: small first and last layers and depthwise ones, or with feeds those
    whose rounding was measured to do most to the answers for their bytes, in as many bytes.

    * Weights are stored: nodes that the runtime folds when it loads the model restore them, and the arithmetic stays in
      float. Tables that are gathered stay small in memory, too.
    * A layer that multiplies few rows in a run, as a decoder does, multiplies by the weight in few bits, if the target
      is no slower so; so does one whose weight is a table that is also gathered.
    * With ``activations=8`` layers compute in 8-bit integers where ``int8`` would let them, with one scale per output.
    """

    name: ClassVar[str] = "bits"
    summary: ClassVar[str] = "weights in 2, 3, 4 or 6 bits, more where a layer needs them"
    min_opset: ClassVar[int] = 13
    quantizes: ClassVar[bool] = True

    weights: int = 4
    """The bits of most weights: 2, 3, 4, 6 or 8."""
    auto: bool = False
    """Give every layer the bits that make the answers best within ``size``."""
    size: float = 0.15
    """With ``auto``: the share of the weights' bytes that may be left."""
    activations: int = 32
    """8: layers compute in 8-bit integers where that pays; 32: the arithmetic stays in float."""
    rows: int = 0
    """Rows that layers multiply in a run where shapes leave that open; 0: as in the calibration data."""
    _: KW_ONLY
    only: tuple[str, ...] = ()
    """Globs on node names or output names: nothing else gets fewer bits."""
    exclude: tuple[str, ...] = ()
    """Globs on node names or output names that stay in float."""

    def __post_init__(self) -> None:
        if self.weights not in BITS:
            raise ValueError(f"weights is 2, 3, 4, 6 or 8, not {self.weights}")
        if self.activations not in (8, 32):
            raise ValueError("activations is 8 or 32")
        if not 0 < self.size < 1:
            raise ValueError("size is over 0 and under 1")
        if self.rows < 0:
            raise ValueError("rows is 0 or more")

    def needs(self, view: View) -> Iterable[Need]:
        """Yield a Gram matrix per input of a layer, and with integer arithmetic what ``int8`` needs."""
        yield from select.needs(view, self)
        for node in view.of("Gather"):
            layers = heads(view, node) if self._wants(node) and not view.in_body(node) else None
            layer = describe(view, layers[0], shared=True) if layers else None
            if isinstance(layer, Linear) and layer.columns <= select.LARGEST:
                yield layer.gram
        if self.activations == 8:
            yield from self._int8.needs(view)

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[FewBits] | Skip]:
        """Yield a site for every node whose weights get fewer bits, or that computes in integers."""
        base = list(self._int8.plan(view, stats)) if self.activations == 8 else []
        yield from self._entries(view, stats, base, None)

    def select(self, plan: Plan, bench: Bench) -> Plan:
        """Decide again with the measured effect of each layer on the answers."""
        view = View(bench.original)
        base = list(self._int8.plan(view, bench.stats)) if self.activations == 8 else []
        if any(isinstance(entry, Site) for entry in base):
            base = self._int8.select(base, bench)
        return list(self._entries(view, bench.stats, base, bench))

    def milder(self) -> Bits | None:
        """Return the pass with 8 bits, which are only stored."""
        mild = replace(self, weights=8, auto=False, activations=32)
        return None if mild == self else mild

    def apply(self, site: Site[FewBits], graph: Graph) -> None:
        """Rewrite one node."""
        work = site.work
        if work.integer is not None:
            quantize(graph, site.key, work.integer)
            return
        node, scope = edit.find(graph, site.key)
        for weight in work.weights:
            tensor = node.inputs[weight.slot]
            values = values_of(tensor)
            found = weight.fit(work.bits, values)
            if weight.rank is not None:
                rows = rows_of(graph, str(tensor.name), found)
                rows.gathered(graph, scope, node, weight.rank)
                for key in weight.heads:
                    head, place = edit.find(graph, key)
                    rows.multiplied(graph, place, head, graph.target.decoding.level)
                continue
            if weight.biased and weight.moments is not None:
                error = weight.rows(values).astype(np.float64) - found.weight
                correct_bias(graph, node, tensor, error @ weight.moments.mean)
            if weight.few:
                multiplied(graph, scope, node, found, weight.fused)
                continue
            restored(graph, scope, tensor, found, weight.columns_first)

    @property
    def _int8(self) -> Int8:
        return Int8(only=self.only, exclude=self.exclude)

    def _entries(
        self, view: View, stats: Statistics, base: Sequence[Site[Quantized] | Skip], bench: Bench | None
    ) -> Iterator[Site[FewBits] | Skip]:
        """Yield the plan; ``base`` is what ``int8`` would do, for those that compute in integers."""
        integer = {site.key: site.work for site in base if isinstance(site, Site) and site.work.form != "stored"}
        groups: list[list[Weight]] = []
        skips: list[Skip] = []
        for entry in weights(view, stats, self._wants, 4 if self.auto else self.weights, self.rows):
            if isinstance(entry, Skip):
                skips.append(entry)
                continue
            for weight in entry:
                weight.by_channel = weight.key in integer and not integer[weight.key].between
            groups.append(entry)
        bits = self._bits(groups, bench)
        known = {group[0].key: (tuple(group), each) for group, each in zip(groups, bits, strict=True)}
        for skip in skips:
            if skip.key not in integer:
                yield skip
        integer |= _treated(integer, known)
        stored: list[Site[FewBits]] = []
        for node in view.nodes:
            key = key_of(node)
            if key in integer:
                mine, each = known.pop(key, ((), 8))
                yield _integer_site(key, node, integer[key], mine, each)
            elif key in known:
                mine, each = known.pop(key)
                detail: dict[str, object] = {"op": node.op, "bits": each}
                error = max(weight.error(each) for weight in mine) if bench is not None else None
                action = f"multiplied in {each} bits" if any(w.product for w in mine) else f"stored in {each} bits"
                stored.append(Site(key, action, detail, error, FewBits(mine, each)))
        yield from stored  # at last: a weight that another layer shares must still be float when that one is rewritten

    def _bits(self, groups: Sequence[Sequence[Weight]], bench: Bench | None) -> list[int]:
        """Return the bits of each node's weights: within a size, or ``weights`` for most of them."""
        if not groups:
            return []
        plain = plain_bits(groups, self.weights)
        size = sum(weight.bytes(bits) for group, bits in zip(groups, plain, strict=True) for weight in group)
        if self.auto:
            size = int(self.size * sum(4 * weight.size for group in groups for weight in group))
        elif bench is None or self.weights == 8:
            return plain
        gains: dict[str, float] = {}
        if bench is not None:
            probe = plain if not self.auto else plain_bits(groups, 4)
            rewrites = {
                group[0].key: [partial(_put, group=group, bits=bits)] for group, bits in zip(groups, probe, strict=True)
            }
            also = {group[0].key: group[0].heads for group in groups if group[0].heads}
            found = impacts(
                bench.original, bench.feeds[:1], rewrites, bench.progress, bench.ruler, also, bench.most, bench.workers
            )
            for group, bits in zip(groups, probe, strict=True):
                if group[0].key in found:
                    local = max(weight.error(bits) for weight in group)
                    gains[group[0].key] = found[group[0].key][0] / max(local, 1e-12)
        return chosen_bits(groups, BITS[-1] if self.auto else self.weights, size, gains)

    def _wants(self, node: gs.Node) -> bool:
        return self.wanted((node.name, key_of(node)))


def _put(graph: Graph, key: str, group: Sequence[Weight], bits: int) -> None:
    """Give a copy of a node its weights as they are with so many bits."""
    for weight in group:
        weight.put(graph, key, bits)


def _treated(
    integer: Mapping[str, Quantized], known: Mapping[str, tuple[tuple[Weight, ...], int]]
) -> dict[str, Quantized]:
    """Return the layers that quantize their input at run time with outliers treated as their bits ask for."""
    readers: dict[int, list[str]] = {}
    for key, work in integer.items():
        if work.form == "dynamic" and work.moments is not None and work.smoothing is not None and not work.tied:
            readers.setdefault(id(work.smoothing), []).append(key)
    found: dict[str, Quantized] = {}
    for keys in readers.values():  # of one input, which is quantized once for all of them
        bits = min((known[key][1] for key in keys if key in known), default=8)
        moments = integer[keys[0]].moments
        if bits == 8 or moments is None:
            continue
        matrices = [w.rows(values_of(w.node.inputs[w.slot])).T for key in keys if key in known for w in known[key][0]]
        treatment = smoothing(moments, matrices, bits=bits)
        found |= {key: replace(integer[key], smoothing=treatment) for key in keys}
    return found


def _integer_site(key: str, node: gs.Node, work: Quantized, mine: tuple[Weight, ...], bits: int) -> Site[FewBits]:
    if work.between or work.tied or not mine:
        return Site(key, work.form, {"op": node.op}, work=FewBits(integer=work))
    if work.form == "static":
        work = replace(work, moments=mine[0].moments)
    action = f"{work.form}, weights in {bits} bits"
    return Site(key, action, {"op": node.op, "bits": bits}, work=FewBits(mine, bits, replace(work, bits=bits)))
