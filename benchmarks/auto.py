"""What ``auto`` finds for a budget against the best of some dozens of pipelines made by hand, on the same feeds.

    python benchmarks/auto.py models/resnet.onnx models/mlp.onnx [--effort quick] [--workers 2]

Every search of a model starts from what the ones before have measured: only the first one's time is that of a search.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from onnxsqueeze.errors import ToleranceError
from onnxsqueeze.report.run import Report
from onnxsqueeze.report.search import Figures
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.search.auto import auto
from onnxsqueeze.search.start import opened_for
from onnxsqueeze.search.store import Store
from onnxsqueeze.search.trials import Trials
from onnxsqueeze.search.wishes import Wish, wish
from onnxsqueeze.words import decibels

BUDGETS = ("auto{latency=0.5}", "auto{size=0.125}", "auto{drop=1%}", "auto{latency=0.35}", "auto{size=0.06}")
RATIOS = (0.75, 0.5, 0.35)
FORMS = ("half", "int8", "bits{weights=4}", "bits{weights=3}", "bits{weights=4 activations=8}", "palette{bits=3}")
STRUCTURES = [f"{name}{{ratio={ratio}}}" for name in ("prune", "lowrank") for ratio in RATIOS]
BEHIND = ("int8", "bits{weights=4 activations=8}", "bits{weights=4}")
BY_HAND = ["canonical", *FORMS, *STRUCTURES, *(f"{first},{then}" for first in STRUCTURES for then in BEHIND)]


@one_blas_thread
def by_hand(model: Path) -> dict[str, Figures]:
    """Return what each pipeline that is made by hand turns out to be."""
    opened = opened_for(str(model), None, lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(opened, Store.under(Path(folder), opened), False)
        found = {pipeline: trials.run(pipeline).found for pipeline in BY_HAND}
    return {pipeline: figures for pipeline, figures in found.items() if figures is not None}


def searched(model: Path, text: str, effort: str, cache: Path, workers: int) -> tuple[Report, float, bool]:
    start = time.perf_counter()
    try:
        report = auto(model, text, effort=effort, cache=cache, executor=workers if workers > 1 else None).report
    except ToleranceError as error:
        return error.report, time.perf_counter() - start, False
    return report, time.perf_counter() - start, True


def line(
    model: Path, text: str, wanted: Wish, report: Report, seconds: float, kept: bool, hand: dict[str, Figures]
) -> str:
    assert report.search is not None
    found = report.search.tries[report.search.chosen].measured
    assert found is not None
    name, best = min(hand.items(), key=lambda item: wanted.rank(item[1]))
    told = [f"{each.size:.3f} {each.latency:.2f} {decibels(each.error)} dB" for each in (found, best)]
    fresh = sum(not each.remembered for each in report.search.tries)
    ranks = [f"{axis} {rank:.2f}" for axis, rank in report.search.correlation.items() if rank is not None]
    within = "" if wanted.excess(best) == 0 else " (over)"
    state = "kept" if kept else "NOT kept"
    return (
        f"{model.stem} {text} {state}: {told[0]} by {report.pipeline} | by hand{within} {told[1]} by {name} "
        f"| {fresh} tries, {seconds:.0f} s, {' '.join(ranks)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--effort", default="default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    given = parser.parse_args()
    for model in given.models:
        with tempfile.TemporaryDirectory() as cache:
            reports = []
            for text in given.budgets:
                reports.append((text, *searched(model, text, given.effort, Path(cache), given.workers)))
                print(f"{model.stem} {text}: {reports[-1][2]:.0f} s, {reports[-1][1].pipeline}", flush=True)
        start = time.perf_counter()
        hand = by_hand(model)
        print(f"{model.stem}: {len(hand)} of {len(BY_HAND)} by hand in {time.perf_counter() - start:.0f} s", flush=True)
        for text, report, seconds, kept in reports:
            wanted = wish(text, report.before.bytes, False, None, None)
            print(line(model, text, wanted, report, seconds, kept, hand), flush=True)


if __name__ == "__main__":
    main()
