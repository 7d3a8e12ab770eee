"""Words for what int8 did: what rounding each layer does to the answers, and what was done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log10

import numpy as np

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.layers import Layers

__all__ = ["explained", "in_float", "ranking"]

WORST = 4
"""How many layers the notes name."""
SPARED = 50
"""Tensors that would cost less than this SQNR in dB are not named."""


def explained(
    plan: Sequence[Site[Quantized] | Skip], layers: Layers, effects: Mapping[str, float]
) -> list[Site[Quantized] | Skip]:
    """Return the plan with the remedies of each site, and as ``answers`` what it alone does to them, ‖Δy‖² / ‖y‖²."""
    nodes = {key_of(node): node for node in layers.view.nodes}

    def facts(site: Site[Quantized]) -> dict[str, object]:
        node = nodes[site.key]
        end = (layers.tail(node) if site.work.form in ("static", "integer") else node).outputs[0]
        found: dict[str, object] = dict(site.detail)
        effect = effects.get(site.key if site.work.form in ("dynamic", "stored") else str(layers.root(end).name))
        if effect is not None and np.isfinite(effect) and not site.work.wide:
            found["answers"] = float(effect)
        remedies = list(_remedies(site.work))
        if site.work.form in ("static", "integer") and layers.gate(end) is not None:
            remedies.append("range for its gate")
        return found | ({"remedy": ", ".join(remedies)} if remedies else {})

    return [replace(entry, detail=facts(entry)) if isinstance(entry, Site) else entry for entry in plan]


def _remedies(work: Quantized) -> Iterator[str]:
    smooth = work.smoothing if work.form == "dynamic" else None
    if smooth is not None and smooth.scale is not None and np.ptp(np.delete(smooth.scale, smooth.outliers)) > 0:
        yield "a scale per channel"
    if smooth is not None and len(smooth.outliers):
        yield f"{len(smooth.outliers)} channels in float"
    if smooth is not None and smooth.rows:
        yield "rows divided by their peaks"
    if work.second is not None and not work.wide and work.form in ("dynamic", "stored"):
        yield "rounding compensated"
    if work.wide:
        yield "16 bits"
    if work.mean is not None:
        yield "mean error taken off the bias"


def in_float(plan: Sequence[Site[Quantized] | Skip]) -> Iterator[str]:
    """Yield why layers whose weights are stored do not compute in integers, as a search has found."""
    reasons = Counter(str(each.detail["float"]) for each in plan if isinstance(each, Site) and "float" in each.detail)
    for reason, count in reasons.items():
        yield f"{count} layer{'s' if count > 1 else ''} compute{'' if count > 1 else 's'} in float: {reason}"


def ranking(
    plan: Sequence[Site[Quantized] | Skip], effects: Mapping[str, float], rounded: Collection[str]
) -> Iterator[str]:
    """Yield which sites of an explained plan do most to the answers, and what stays finer for it: ``rounded`` are the
    tensors that do not.
    """
    sites = [entry for entry in plan if isinstance(entry, Site)]
    ranked = sorted(((site.detail["answers"], site) for site in sites if "answers" in site.detail), key=_worst)
    parts = [
        f"{site.key} {_db(effect)} ({', '.join(filter(None, (site.action, str(site.detail.get('remedy', '')))))})"
        for effect, site in ranked[:WORST]
    ]
    if parts:
        yield f"what costs the answers most, each alone: {'; '.join(parts)}"
    done = {site.key for site in sites} | set(rounded)
    wide = {site.key for site in sites if site.work.wide}
    spared = [name for name in effects if name not in done] if any(s.work.form != "stored" for s in sites) else []
    for names, words in ((wide, "in 16 bits, since 8"), (spared, "left in float, since rounding them")):
        told = [name for name in sorted(names, key=lambda name: (-effects.get(name, 0), name)) if name in effects]
        told = [name for name in told if effects[name] > 10 ** (-SPARED / 10)][:WORST]
        if told:
            yield f"{words} would cost: {', '.join(f'{name} {_db(effects[name])}' for name in told)}"


def _worst(entry: tuple[object, Site[Quantized]]) -> tuple[float, str]:
    effect, site = entry
    assert isinstance(effect, float)
    return -effect, site.key


def _db(effect: object) -> str:
    assert isinstance(effect, float)
    return f"{-10 * log10(max(effect, 1e-30)):.0f} dB"
