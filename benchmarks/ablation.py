"""What each ingredient of ``int8`` is worth: accuracy, speed and seconds with all of them, and without one at a time.

``ablation.py [MODEL CALIB EVAL]...`` takes models with folders of calibration and of evaluation feeds, a feed in each
.npz file; without arguments it takes the models that ship, and digits. It prints a row for each ingredient and a column
for each model: SQNR in dB on the evaluation feeds, run time over that of the float model (one thread, interleaved; a
row is timed against the first one), and seconds that the pass took, the sweep for its statistics left out. ``=`` is the
same file as in the first row. ``worth`` is what leaving the ingredient out adds to the loss that ``int8`` minimizes, in
percent of the float model's run time, on average. Rows are printed as they are finished.

``ablation.py --curve [MODEL CALIB EVAL]...`` prints the choices that the pass has on each model, from the fastest to
the most accurate: what it predicts, and what is measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import inf, isfinite, log10
from pathlib import Path
from time import perf_counter
from timeit import timeit
from typing import Any
from unittest.mock import patch

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.contract.plan import Site
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Answers, compare, worst
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.statistics.moments import Moments
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.grids import activation, weight_scales
from onnxsqueeze.techniques.quantization.outliers import Smoothing, smoothing
from onnxsqueeze.techniques.quantization.search import Search, _loss

MODELS = Path(__file__).parents[1] / "models"
SHIPPED = ("mlp", "cnn", "dwcnn", "resnet")
TIMED, LAPS = 4, 5  # evaluation feeds on which latency is measured, and how often at least
HELPS = (0.3, 0.01)  # decibels, and a share of the run time, from which an ingredient helps a model
Feed = dict[str, Any]

candidates_of, search_of = Search._candidates, Search._search


def everything(arithmetic: Arithmetic, price: float) -> set[int]:
    """Choose all nodes that can compute in integers, whatever it costs."""
    return {id(node) for node in arithmetic.nodes}


def without_peaks(moments: Moments, weights: Sequence[Any]) -> Smoothing:
    """Predict an infinite error for rows divided by their peak."""
    assert moments.crest is not None
    return smoothing(replace(moments, crest=np.full(moments.crest.shape, np.inf)), weights)


INGREDIENTS: dict[str, dict[str, object]] = {
    "everything on": {},
    "choice of candidate (the first)": {
        "techniques.quantization.search.Search._candidates": lambda search: candidates_of(search)[:1]
    },
    "price of accuracy (the fastest that keeps max-drop)": {"techniques.quantization.search.RATE": 0.0},
    "measured effects (errors of tensors)": {
        "techniques.quantization.search.effects": lambda board, names, own, *_: dict(own)
    },
    "minimum cut (integers wherever possible)": {"techniques.quantization.arithmetic.Arithmetic.choose": everything},
    "ranges of least error (min and max)": {
        "techniques.quantization.arithmetic.activation": partial(activation, grid=1)
    },
    "ranges of gates (the same as of others)": {
        "techniques.quantization.layers.Layers.gate": lambda layers, tensor: None
    },
    "weight scales of least error (max/127)": {
        "techniques.quantization.emit.weights.weight_scales": partial(weight_scales, steps=1)
    },
    "bias correction": {"techniques.quantization.apply._mean_error": lambda *_: np.zeros(())},
    "smoothing scales": {"techniques.quantization.outliers.ALPHAS": (0.0,)},
    "outlier channels in float": {"techniques.quantization.outliers.OUTLIERS": (0,)},
    "row peaks": {"techniques.quantization.dynamic.smoothing": without_peaks},
    "compensated rounding (to nearest)": {
        "techniques.quantization.apply.Quantized.second": None,
        "techniques.quantization.outliers.ROUNDED": 1.0,
    },
    "16-bit weights": {"techniques.quantization.search.MORE": 0.0},
    "canonical forms": {"engine.squeeze.IMPLIED": ("clean",)},
    "kernel forms": {"passes.canonical._FORMS": {}},
    "small weights left in float": {"techniques.quantization.layers.SPARED": 0.0},
    "guard by latency": {"techniques.quantization.search.SLOWER": inf},
}
"""By ingredient, the parts of onnxsqueeze that switching it off replaces."""


@dataclass
class Subject:
    """A model, feeds for its answers and its latency, and what it is with everything on."""

    path: Path
    calib: Sequence[Feed] | Path
    evals: Sequence[Feed]
    timed: Sequence[Feed]
    ratio: float = 0.0
    sqnr: float = 0.0

    @cached_property
    def expected(self) -> Answers:
        """What the float model answers."""
        return self.run(self.path)

    def run(self, model: Path | Graph) -> Answers:
        """Return the answers to the evaluation feeds."""
        session = Session(model)
        return [session.run(feed) for feed in self.evals]

    def sqnr_of(self, model: Path | Graph) -> float:
        """Return the SQNR in dB of the worst output."""
        return worst(compare(self.expected, self.run(model)))


@dataclass(frozen=True)
class Cell:
    """What came of one model in one row."""

    sqnr: float
    ratio: float
    seconds: float
    same: bool = False

    def __str__(self) -> str:
        return "=" if self.same else f"{self.sqnr:.1f} / {self.ratio:.3f} / {self.seconds:.0f}"


def shipped() -> Iterator[Subject]:
    """Yield the models that ship."""
    with np.load(MODELS / "digits.npz") as arrays:
        tests = [{"input": part.astype(np.float32) / np.float32(255)} for part in np.split(arrays["x"][:, None], 10)]
    singles = [{"input": feed["input"][:1]} for feed in tests]
    for name in SHIPPED:
        with np.load(MODELS / f"{name}.calib.npz") as arrays:
            calib = [{"input": part} for part in np.split(arrays["input"], len(arrays["input"]) // 8)]
        yield Subject(MODELS / f"{name}.onnx", calib, tests, singles)


def named(triples: Sequence[str]) -> Iterator[Subject]:
    """Yield the models of the command line."""
    for model, calib, folder in zip(triples[::3], triples[1::3], triples[2::3], strict=True):
        evals = []
        for path in sorted(Path(folder).glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                evals.append(dict(arrays))
        yield Subject(Path(model), Path(calib), evals, evals[:TIMED])


@contextmanager
def patched(parts: Mapping[str, object]) -> Iterator[None]:
    """Put these parts in the place of those of onnxsqueeze, and a clock that another process does not disturb."""
    with ExitStack() as stack:
        clock = {"contract.bench.Bench.latency": lambda bench, graph: timed(bench.original, graph, bench.feeds, 0.5)}
        for name, part in {**clock, **parts}.items():
            stack.enter_context(patch(f"onnxsqueeze.{name}", part))
        yield


def cell(each: Subject, parts: Mapping[str, object], folder: Path, seconds: float) -> Cell:
    """Return what becomes of the model; the first call for it is with everything on."""
    base, found = folder / f"{each.path.stem}.onnx", folder / f"{each.path.stem}.without.onnx"
    first, statistics = not base.exists(), folder / f"{each.path.stem}.npz"
    if first:
        squeeze(each.path, "int8", each.calib, stats=[statistics], validate="none", dry_run=True)
    with patched(parts):
        report = squeeze(each.path, "int8", each.calib, stats=[statistics], output=base if first else found).report
    taken = report.steps[-1].seconds
    if first:
        each.ratio, each.sqnr = timed(each.path, base, each.timed, seconds), each.sqnr_of(base)
        return Cell(each.sqnr, each.ratio, taken)
    if base.read_bytes() == found.read_bytes():
        return Cell(each.sqnr, each.ratio, taken, same=True)
    return Cell(each.sqnr_of(found), each.ratio * timed(base, found, each.timed, seconds), taken)


def timed(one: Path | Graph, other: Path | Graph, feeds: Sequence[Feed], seconds: float) -> float:
    """Return the run time of the other over that of the one, each feed's shortest ones, run in turns."""
    pair = [Session(each, threads=1) for each in (one, other)]
    best, laps, end = np.full((len(feeds), 2), inf), 0, perf_counter() + seconds
    while perf_counter() < end or laps < LAPS:
        laps += 1
        for i, j in np.ndindex(best.shape):
            best[i, j] = min(best[i, j], timeit(partial(pair[j].run, feeds[i]), number=1))
    return float(np.median(best[:, 1] / best[:, 0]))


def loss(ratio: float, sqnr: float) -> float:
    """Return what int8 minimizes, in run times of the float model."""
    return _loss(ratio, 10 ** (-sqnr / 10))


def table(subjects: Sequence[Subject], seconds: float, only: tuple[str, ...]) -> None:
    """Print a row for each ingredient, and those that help nowhere."""
    print("SQNR in dB / run time over float / seconds\n")
    print("| without |", *(f"{each.path.stem} |" for each in subjects), "worth |")
    print(f"|{(len(subjects) + 2) * '---|'}", flush=True)
    idle = []
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in INGREDIENTS.items():
            if parts and not name.startswith(only):
                continue
            cells = [cell(each, parts, Path(folder), seconds) for each in subjects]
            pairs = list(zip(subjects, cells, strict=True))
            mean = 100 * np.mean([loss(c.ratio, c.sqnr) - loss(s.ratio, s.sqnr) for s, c in pairs])
            print(f"| {name} | " + " | ".join(map(str, cells)) + f" | {mean:+.1f} |", flush=True)
            if parts and not any(s.sqnr - c.sqnr >= HELPS[0] or c.ratio >= s.ratio * (1 + HELPS[1]) for s, c in pairs):
                idle.append(name)
    print(f"\nhelps nowhere ({HELPS[0]} dB, {HELPS[1]:.0%} of run time): {', '.join(idle) or 'none'}")


def curve(each: Subject, seconds: float) -> None:
    """Print all choices that int8 has, and what it makes of them."""
    print(f"\n{each.path.stem}\n\n| predicted time | predicted SQNR | time | SQNR | loss | layers |\n|{6 * '---|'}")

    def row(time: float, error: float, model: Path | Graph, actions: Counter[str]) -> None:
        ratio, sqnr = timed(each.path, model, each.timed, seconds), each.sqnr_of(model)
        predicted = f"{time:.3f} | {-10 * log10(max(error, 1e-12)):.1f}" if isfinite(time) else "chosen |"
        words = ", ".join(f"{count} {action}" for action, count in actions.most_common())
        print(f"| {predicted} | {ratio:.3f} | {sqnr:.1f} | {loss(ratio, sqnr):.3f} | {words} |", flush=True)

    def search(self: Search, candidates: list[Any]) -> Any:
        for candidate in candidates:
            plan = self._plan(candidate)
            actions = Counter(entry.action for entry in plan if isinstance(entry, Site))
            row(candidate.time, self.base + candidate.error, self._variant(plan), actions)
        return search_of(self, candidates)

    with tempfile.TemporaryDirectory() as folder, patched({"techniques.quantization.search.Search._search": search}):
        output = Path(folder, "int8.onnx")
        report = squeeze(each.path, "int8", each.calib, output=output).report
        row(inf, inf, output, Counter(site.action for site in report.steps[-1].done))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL CALIB EVAL")
    parser.add_argument("--curve", action="store_true", help="print the choices of each model instead")
    parser.add_argument("--only", action="append", help="an ingredient, by the beginning of its name")
    parser.add_argument("--seconds", type=float, default=2.0, help="for which each latency is measured")
    given = parser.parse_args()
    if len(given.models) % 3:
        parser.error("each model needs a folder of calibration feeds and one of evaluation feeds")
    subjects = list(named(given.models) if given.models else shipped())
    for each in subjects if given.curve else ():
        curve(each, given.seconds)
    if not given.curve:
        table(subjects, given.seconds, tuple(given.only or ("",)))


if __name__ == "__main__":
    main()
