"""Does the ruler agree with tasks? ``python benchmarks/ruler.py [--plans N] [MODEL ...]``.

Every model is squeezed by ``lowrank``, ``prune``, ``int8`` and ``sparsify`` from mild to harsh. The task's score of
each result is set beside the SQNR of its answers, as the report has it, and beside the pooled energy of the difference,
``10·log10(Σy² / Σ(y − ŷ)²)``: the rank correlation (Spearman) of each with the drop of the score, and at which SQNR the
model has lost a point. The four digit classifiers that ship are scored on the 1,000 digits of ``models/digits.npz``.
If ``$LAB`` names a folder with ``zoo.py``, its cases take part as well.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxsqueeze import squeeze
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import Ruler

MODELS = Path(__file__).parent.parent / "models"
SHIPPED = ("mlp", "cnn", "dwcnn", "resnet")
RATIOS = (0.97, 0.94, 0.9, 0.85, 0.8, 0.74, 0.68, 0.62, 0.55, 0.48, 0.41, 0.34, 0.28, 0.22, 0.16)
SPARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.07)
INT8 = (
    *(f"int8{{max-drop={drop}}}" for drop in (0.005, 0.01, 0.02, 0.04, 0.1, 0.3, 1)),
    "int8{max-drop=1 per-tensor=true}",
    "int8{max-drop=1 symmetric=true}",
    "int8{max-drop=1 activations=int8 symmetric=true}",
    "int8{max-drop=1 per-tensor=true symmetric=true}",
    "int8{max-drop=1 activations=int8 symmetric=true per-tensor=true}",
    *(f"lowrank{{ratio={ratio}}},int8{{max-drop=1 per-tensor=true}}" for ratio in (0.7, 0.5, 0.35)),
)
Feed = dict[str, Any]
Rows = list[list[Any]]


@dataclass
class Case:
    """A model with feeds to calibrate on, feeds to judge by and a score of the outputs on these, in [0, 1]."""

    name: str
    path: Path
    calibration: Any
    feeds: list[Feed]
    score: Callable[[Rows], float]


@dataclass
class Plan:
    """What a plan has cost: points of the score, and both figures in dB."""

    kind: str
    drop: float
    old: float
    new: float


def plans(kind: str, count: int) -> list[str]:
    """Return pipelines of one kind from mild to harsh."""
    every = INT8 if kind == "int8" else [f"{kind}{{ratio={r}}}" for r in (SPARSE if kind == "sparsify" else RATIOS)]
    return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, count).round().astype(int))]


def shipped(name: str) -> Case:
    """Return a digit classifier."""
    path = MODELS / f"{name}.onnx"
    with np.load(MODELS / "digits.npz", allow_pickle=False) as digits:
        inputs, classes = digits["x"][:, None].astype(np.float32) / np.float32(255), digits["y"]
    feeds = [{"input": part} for part in np.array_split(inputs, 50)]

    def score(found: Rows) -> float:
        return float((np.concatenate([each[0].argmax(1) for each in found]) == classes).mean())

    return Case(name, path, str(path.with_suffix(".calib.npz")), feeds, score)


def zoo() -> Iterator[Case]:
    """Yield the cases of a zoo, if there is one."""
    folder = os.environ.get("LAB")
    if not folder or not Path(folder, "zoo.py").exists():
        return
    sys.path.insert(0, folder)
    import zoo as lab

    for name, case in lab.cases().items():
        if case.path.exists():
            feeds, truth = case.evals()
            reference = run(str(case.path), feeds)
            yield Case(
                name, case.path, case.calib(), feeds, lambda found, c=case, r=reference, t=truth: c.score(found, r, t)
            )


def run(model: onnx.ModelProto | str, feeds: list[Feed]) -> Rows:
    """Return the outputs of a model, as lists."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def measured(case: Case, kind: str, count: int, full: bool) -> Iterator[Plan]:
    """Squeeze a model by every plan of a kind and yield what that has cost."""
    names = [o.name for o in onnx.load(case.path, load_external_data=False).graph.output]
    ruler = Ruler.of(load(case.path))
    expected = run(str(case.path), case.feeds)
    answers = [dict(zip(names, each, strict=True)) for each in expected]
    base = case.score(expected)
    for text in plans(kind, count):
        result = squeeze(case.path, text, case.calibration, validate="full" if full else "none")
        found = run(result.model, case.feeds)
        new = ruler.error(answers, [dict(zip(names, each, strict=True)) for each in found])
        old = min(pooled([e[i] for e in expected], [f[i] for f in found]) for i in range(len(names)))
        yield Plan(kind, base - case.score(found), old, -10 * np.log10(max(new, 1e-12)))


def pooled(expected: list[Any], found: list[Any]) -> float:
    """Return the energy of the answers over that of the difference, in dB, over all feeds together."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(expected, found, strict=True)]
    error = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float(10 * np.log10(max(sum(float((a**2).sum()) for a, _ in pairs), 1e-30) / max(error, 1e-30)))


def spearman(one: list[float], two: list[float]) -> float:
    """Return the correlation of ranks, equal values sharing theirs; NaN where one side is constant."""
    sides = []
    for values in (one, two):
        _, index, counts = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
        sides.append((np.cumsum(counts) - (counts - 1) / 2)[index])
    return float("nan") if any(np.ptp(side) == 0 for side in sides) else float(np.corrcoef(*sides)[0, 1])


def main() -> None:
    """Print a row for each model and kind of plan."""
    parser = argparse.ArgumentParser(description="Set the SQNR beside scores of tasks.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of models; all without any")
    parser.add_argument("--plans", type=int, default=15, help="plans of each kind")
    parser.add_argument("--full", action="store_true", help="let passes measure their choices, which takes longer")
    given = parser.parse_args()
    print("| model | plans | largest drop | old | new | a point is lost under, old | new | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for case in (*map(shipped, SHIPPED), *zoo()):
        if given.models and case.name not in given.models:
            continue
        every: list[Plan] = []
        for kind in ("lowrank", "prune", "int8", "sparsify"):
            start = time.time()
            every += measured(case, kind, given.plans, given.full or kind == "int8")
            show(case.name, kind, [plan for plan in every if plan.kind == kind], time.time() - start)
        show(case.name, "all", every, 0.0)


def show(name: str, kind: str, found: list[Plan], seconds: float) -> None:
    """Print one row."""
    drops = [max(plan.drop, 0.0) for plan in found]
    lost = [plan for plan in found if plan.drop > 0.01]
    edges = [f"{max(getattr(plan, side) for plan in lost):.1f} dB" if lost else "" for side in ("old", "new")]
    ranks = [spearman([-getattr(plan, side) for plan in found], drops) for side in ("old", "new")]
    cells = [f"{100 * max(drops):.1f} points", *(f"{rank:.3f}" for rank in ranks), *edges, f"{seconds:.0f}"]
    print(f"| {name} | {len(found)} {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
