"""How precisely weights are stored: 8 bits, 16 where those do much to the answers, floats where max-drop wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import prod

from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.edit import Rewrite
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.switchboard import impacts
from onnxsqueeze.techniques.quantization.apply import Quantized, quantize_alone, quantize_site
from onnxsqueeze.techniques.quantization.layers import weight_slots

__all__ = ["COSTLY", "Plan", "Precision", "sites_of"]

Plan = list[Site[Quantized] | Skip]

STORED = 42.0
"""The SQNR in dB from which stored weights need no more bits, which cost no time."""
MORE = 0.4
"""The share of the stored weights that may get 16 bits."""
WIDENED = 40
"""With more weights than this, 16 bits are not tried."""
COSTLY = "rounding its weight would cost more accuracy than max-drop allows"


class Precision:
    """The bits of the stored weights of one graph, for all its plans."""

    def __init__(self, view: View, bench: Bench, effects: dict[str, float]) -> None:
        self.view, self.bench = view, bench
        self.nodes = {key_of(node): node for node in view.nodes}
        self.effects = effects
        """What rounding a stored weight does to the answers alone: a relative error, by the key of its site."""
        self._known: dict[str, float] = {}
        """The same by the first of the sites on a weight, and of stored weights alone."""
        self.wide: set[str] = set()
        """The keys of the sites whose weights are stored in 16 bits."""
        self.spared: set[str] = set()
        """The keys of the sites whose weights stay in float."""

    def widen(self, plan: Sequence[Site[Quantized] | Skip], arithmetic: float) -> None:
        """Choose the stored weights that get 16 bits: those whose rounding does most to the answers for their size.

        It ends when the rest does less than a quarter of what ``arithmetic`` does, or next to nothing.
        """
        count = len(self._stored(plan))
        if (
            not count
            or count > (self.bench.most or WIDENED)
            or (not arithmetic and self.bench.sqnr(self._variant(plan)) >= STORED)
        ):
            return
        effects = self._effects(plan)
        left, budget = sum(effect for effect, _, _ in effects), MORE * sum(size for _, size, _ in effects)
        for effect, size, keys in sorted(effects, key=lambda each: -each[0] / each[1]):
            if left <= max(10 ** (-STORED / 10), arithmetic / 4):
                break
            if size <= budget and effect > 0.01 * left:
                left, budget = left - effect, budget - size
                self.wide.update(keys)

    def bound(self, plan: Sequence[Site[Quantized] | Skip], allowed: float) -> float:
        """Give stored weights 16 bits, those first that do most for their size, then leave them in float, until the
        error of the answers is no more than ``allowed``; return it."""
        error = self.bench.error(self._variant(plan))
        if error <= allowed:
            return error
        effects = self._effects(plan)
        ranked = [keys for _, _, keys in sorted(effects, key=lambda each: -each[0] / max(each[1], 1))]
        before = set(self.wide)
        if (error := self._fewest(self.wide, before, ranked, plan, allowed)) <= allowed:
            return error
        error = self._fewest(self.spared, set(), ranked, plan, allowed)
        return error if error > allowed else self._fewest(self.wide, before, ranked, plan, allowed)

    def _fewest(
        self,
        chosen: set[str],
        before: set[str],
        ranked: Sequence[Sequence[str]],
        plan: Sequence[Site[Quantized] | Skip],
        allowed: float,
    ) -> float:
        """Let ``chosen`` hold as few more than ``before`` as keep ``allowed``, the first ones of ``ranked``, or all if
        they do not either; return the error."""

        def tried(count: int) -> float:
            chosen.clear()
            chosen.update(before, *ranked[:count])
            return self.bench.error(self._variant(plan))

        misses, holds = 0, len(ranked)
        found = error = tried(holds)
        while error <= allowed and holds - misses > 1:
            middle = (misses + holds) // 2
            if (other := tried(middle)) <= allowed:
                holds, found = middle, other
            else:
                misses = middle
        chosen.clear()
        chosen.update(before, *ranked[:holds])
        return found

    def _effects(self, plan: Sequence[Site[Quantized] | Skip]) -> list[tuple[float, int, list[str]]]:
        """Return what rounding each stored weight alone does to the answers, its size and the sites that read it."""
        shared = self._stored(plan)
        sites = {site.key: site for site in sites_of(plan)}
        fresh = [keys for keys, _ in shared if keys[0] not in self._known]
        alone: dict[str, list[Rewrite]] = {
            keys[0]: [partial(quantize_alone, site=sites[keys[0]])]
            for keys in fresh if len(keys) == 1 and not self.view.in_body(self.nodes[keys[0]])
        }  # fmt: skip
        bench = self.bench
        found = impacts(
            bench.original, bench.feeds[:1], alone, bench.progress, bench.ruler, most=bench.most, workers=bench.workers
        )
        measured, effect = 0, 1.0
        for step, keys in enumerate(fresh):
            if keys[0] in found:
                effect = found[keys[0]][0]
            elif bench.most is None or measured < bench.most:  # else that of a neighbour: the model takes long
                measured += 1
                self.bench.progress("measuring weights", step, len(fresh))
                effect = self.bench.error(self.bench.variant(quantize_site, [sites[key] for key in keys]))
            self._known[keys[0]] = effect
            self.effects.update(dict.fromkeys(keys, effect))
        return [(self._known[keys[0]], size, keys) for keys, size in shared]

    def _stored(self, plan: Sequence[Site[Quantized] | Skip]) -> list[tuple[list[str], int]]:
        """Return the stored sites that share weights together, with the number of elements."""
        found: dict[tuple[int, ...], tuple[list[str], int]] = {}
        for site in sites_of(plan):
            if site.work.form == "stored":
                node = self.nodes[site.key]
                tensors = [node.inputs[slot] for slot in weight_slots(node)]
                size = sum(prod(tensor.shape) for tensor in tensors)
                found.setdefault(tuple(id(t) for t in tensors), ([], size))[0].append(site.key)
        return list(found.values())

    def finished(self, plan: Sequence[Site[Quantized] | Skip]) -> Plan:
        """Return the plan with 16 bits, and with floats, where they were chosen."""
        return [self._finished_site(entry) if isinstance(entry, Site) else entry for entry in plan]

    def _finished_site(self, site: Site[Quantized]) -> Site[Quantized] | Skip:
        if site.work.form == "stored" and site.key in self.spared:
            return Skip(site.key, COSTLY)
        if site.work.form == "stored" and site.key in self.wide:
            site = replace(site, action="stored in 16 bits", work=replace(site.work, wide=True))
        return site

    def _variant(self, plan: Sequence[Site[Quantized] | Skip]) -> Graph:
        return self.bench.variant(quantize_site, sites_of(self.finished(plan)))


def sites_of(plan: Iterable[Site[Quantized] | Skip]) -> list[Site[Quantized]]:
    """Return the sites of a plan."""
    return [entry for entry in plan if isinstance(entry, Site)]
