"""The plan of ``int8``: which node computes in integers, which weight is only stored, and why the others stay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.graph.words import type_name
from onnxsqueeze.linear.weighted import Weighted, weighted
from onnxsqueeze.statistics.needs import Mean
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.dynamic import Dynamic
from onnxsqueeze.techniques.quantization.layers import weight_slots

__all__ = ["planned"]

_WORDS = {"static": "static", "integer": "integer", "gate": "integer", "dynamic": "dynamic", "stored": "stored"}


def planned(run_time: Dynamic, work: Iterable[tuple[gs.Node, Quantized]]) -> Iterator[Site[Quantized] | Skip]:
    """Yield the plan in which these nodes compute in integers and all other weights are stored."""
    layers = run_time.layers
    decided = {id(node): each for node, each in work}
    known = {id(each.node): each.work for each in run_time.found}
    stored: list[Site[Quantized]] = []
    others = {id(each.node): each for each in weighted(layers.view)}
    left: list[tuple[str, Weighted]] = []
    in_few_bits: set[int] = set()
    for node in layers.view.nodes:
        key = key_of(node)
        entry = decided.get(id(node))
        if entry is None and layers.wanted(node) and not _handed_on(node, decided):
            reasons = [layers.refusal(node, slot) for slot in weight_slots(node)]
            if "" in reasons:
                moments = run_time.stats.of(Mean(node.inputs[0].name, 1)) if node.op == "Conv" else None
                entry = replace(known.get(id(node), Quantized("stored", kept=run_time.kept)), form="stored")
                entry = replace(entry, mean=None if moments is None else moments.mean, inside=layers.inside(node))
                if "stored" not in layers.target.integers.forms:
                    yield Skip(key, f"{layers.target.name} takes no weights that are only stored in integers")
                    continue
            elif any(reasons):
                yield Skip(key, next(reason for reason in reasons if reason))
            elif id(node) in others and key:
                left.append((key, others[id(node)]))
        if entry is not None:
            site = Site(key, _WORDS[entry.form], {"op": node.op}, work=entry)
            if entry.form != "stored":
                yield site
            else:
                stored.append(site)
                in_few_bits.add(id(node))
    yield from (Skip(key, _left(each, in_few_bits)) for key, each in left)
    # at last: a weight that another layer shares must still be float when that one is rewritten; and of those the
    # tables first, which may be gathered as integers only until another reader restores them
    yield from sorted(stored, key=lambda site: site.detail["op"] != "Gather")


def _handed_on(node: gs.Node, decided: Collection[int]) -> bool:
    """Whether the node only hands its weight on, and to layers that compute in integers alone."""
    readers = node.outputs[0].outputs if node.op in ("Identity", "Transpose") else ()
    return bool(readers) and all(id(reader) in decided for reader in readers)


def _left(each: Weighted, stored: set[int]) -> str:
    """Return why the weight of a node is not one to store; ``stored`` are the nodes whose weights are."""
    if each.apart:
        return f"{each.apart}, which are stored" if each.behind & stored else each.apart
    kinds = {type_name(t.dtype) for t in each.node.inputs if isinstance(t, gs.Constant) and len(t.shape) > 1}
    return f"its weight is {' and '.join(sorted(kinds))}" if kinds else f"{each.node.op} may need its weight as it is"
