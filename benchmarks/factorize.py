"""What each part of factoring brings: ``factorize.py MODEL CALIB EVAL [RATIO ...]``, folders of feeds as .npz files.

For every ratio of the multiply-accumulates (``--by params``: of the weights) of all layers that can be factored, one
line each for: plain (no data, every layer alike), data (fitted to the calibration inputs, every layer alike), global
(one budget over all layers, by measured gains), refit (and fitted again behind). SQNR in dB over all outputs of EVAL;
latency relative to the float model on one thread, interleaved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.budget.spend import spend, uniform
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.graph.edit import duplicate
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.refit import refit
from onnxsqueeze.measure import cost
from onnxsqueeze.passes.lowrank import LowRank
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.techniques.lowrank import forms
from onnxsqueeze.techniques.lowrank import plan as factorize
from onnxsqueeze.techniques.lowrank.choice import Factoring, Unit

Feeds = Sequence[dict[str, Any]]
Score = Callable[[list[list[Any]], list[list[Any]]], float]


def sqnr(found: list[list[Any]], expected: list[list[Any]]) -> float:
    """Return the SQNR in dB over all outputs and feeds."""
    pairs = [
        (np.ravel(a), np.ravel(b))
        for one, two in zip(found, expected, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    noise = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in pairs)
    return 10 * float(np.log10(sum(float((b.astype(np.float64) ** 2).sum()) for _, b in pairs) / max(noise, 1e-30)))


def problem(graph: Graph, stats: Statistics, by: str, alike: bool) -> Factoring:
    """Return the problem of all layers; when they are to be treated alike, none shares a factor with another."""
    units, _, positions = factorize.pose(View(graph), stats, LowRank(), forms.candidates)
    if alike:
        units = [Unit([f], [c]) for u in units for f, c in zip(u.fittings, u.found, strict=True)]
    made = Factoring(units, forms.outline, forms.compose, graph.target.work, by, None, 1.0)  # type: ignore[arg-type]
    made.positions = positions
    return made


def rows(model: Path, calib: Feeds, evals: Feeds, ratios: Sequence[float], by: str, score: Score | None) -> None:
    """Print one line for every ratio and method."""
    graph = squeeze(model, "clean", validate="none").graph
    bench = Bench(graph, calib, 0, lambda stage, done, total: None)
    pass_ = LowRank()
    start = time.perf_counter()
    stats = collect(graph, list(pass_.needs(View(graph))), calib)
    print(f"collected in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    reference = Session(encode(graph), graph.folder)
    expected = [list(reference.run(feed).values()) for feed in evals]
    one = Session(encode(graph), graph.folder, threads=1)
    before = cost.macs(graph, evals[0])

    def show(name: str, ratio: float, made: Graph) -> None:
        session = Session(encode(made), made.folder)
        found = [list(session.run(feed).values()) for feed in evals]
        pair = [one, Session(encode(made), made.folder, threads=1)]
        row = {
            "model": model.stem, "ratio": ratio, "method": name, "sqnr": round(sqnr(found, expected), 2),
            "score": None if score is None else round(score(found, expected), 4),
            "latency": round(latency(pair, evals[:4], 2.0).ratio, 3),
            "macs": round(sum(cost.macs(made, evals[0]).values()) / sum(before.values()), 3),
        }  # fmt: skip
        print(json.dumps(row), flush=True)

    blind = problem(graph, Statistics(), by, True)
    alike = problem(graph, stats, by, True)
    whole = problem(graph, stats, by, False)
    factorize.measure(whole, bench)
    blind.positions = alike.positions = whole.positions
    for ratio in ratios:
        for name, each in (("plain", blind), ("data", alike), ("global", whole)):
            options = [each.unit_options(unit) for unit in each.units]
            limit = ratio * sum(o[0].cost for o in options)
            chosen = uniform(options, limit) if each is not whole else spend(options, cost=limit)
            if chosen is None:
                print(json.dumps({"model": model.stem, "ratio": ratio, "method": name, "sqnr": None}), flush=True)
                continue
            made = bench.variant(pass_.apply, [e for e in each.entries(chosen) if isinstance(e, Site)])
            show(name, ratio, made)
        made = duplicate(made)
        list(refit(made, bench))
        show("refit", ratio, made)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("ratios", type=float, nargs="*", default=[0.75, 0.5, 0.33])
    parser.add_argument("--by", choices=("macs", "params", "latency"), default="macs")
    given = parser.parse_args()
    feeds = [
        [dict(np.load(path, allow_pickle=False)) for path in sorted(f.glob("*.npz"))] for f in (given.calib, given.eval)
    ]
    rows(given.model, feeds[0], feeds[1], given.ratios, given.by, None)


if __name__ == "__main__":
    main()
