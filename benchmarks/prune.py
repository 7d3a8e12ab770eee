"""What each part of pruning brings: ``prune.py MODEL CALIB EVAL [RATIO ...]``, folders of feeds as .npz files.

For every ratio of the cost (``--by``: macs, params or latency) one line each for: magnitude (norms of weights, no
repair), magnitude and repair, and optimal brain surgeon with repair. ``--options`` are further options of the pass,
such as ``heads=true``. SQNR in dB of the worst output on EVAL; latency relative to the float model on one thread,
interleaved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency

Feeds = Sequence[dict[str, Any]]
METHODS = {"magnitude": "score=l2 repair=false", "magnitude, repair": "score=l2", "surgeon, repair": "score=obs"}


def rows(model: Path, calib: Feeds, evals: Feeds, ratios: Sequence[float], by: str, options: str) -> None:
    """Print one line for every ratio and method."""
    reference = Session(model, threads=1)
    expected = [reference.run(feed) for feed in evals]
    for ratio in ratios:
        for name, method in METHODS.items():
            report_of = squeeze(model, f"prune{{ratio={ratio} by={by} {method} {options}}}", calib)
            session = Session(report_of.model, threads=1)
            found = [session.run(feed) for feed in evals]
            report = report_of.report
            row = {
                "model": model.stem, "ratio": ratio, "method": name,
                "sqnr": round(worst(compare(expected, found)), 2),
                "latency": round(latency([reference, session], evals[:4], 2.0).ratio, 3),
                "parameters": round(report.after.parameters / report.before.parameters, 3),
                "macs": round((report.after.macs or 0) / (report.before.macs or 1), 3),
                "seconds": round(report.seconds, 1),
            }  # fmt: skip
            print(json.dumps(row), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("calib", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("ratios", type=float, nargs="*", default=[0.8, 0.6])
    parser.add_argument("--by", choices=("macs", "params", "latency"), default="macs")
    parser.add_argument("--options", default="")
    given = parser.parse_args()
    feeds = [
        [dict(np.load(path, allow_pickle=False)) for path in sorted(f.glob("*.npz"))] for f in (given.calib, given.eval)
    ]
    rows(given.model, feeds[0], feeds[1], given.ratios, given.by, given.options)


if __name__ == "__main__":
    main()
