"""How far the predicted times of targets are off: 40 whole layers, and whole models in float and in int8.

``clock.py TARGET... [--models MODEL...]`` measures layers of real shapes on one thread as ``profile-target`` does, and
prints for each target the median and the 90th percentile of the relative error and the rank correlation. The same for
models, by default the four that ship, each after ``clean,canonical`` and after ``int8``, by their own calibration data.
A target is a name or a file, such as one that ``onnxsqueeze profile-target`` has written here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.forecast import Forecast
from onnxsqueeze.runtime.device import Clock, conv, matmul
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency
from onnxsqueeze.targets.profiles import find
from onnxsqueeze.targets.target import Target

MODELS = [Path(__file__).parents[1] / f"models/{name}.onnx" for name in ("mlp", "cnn", "dwcnn", "resnet")]
DENSE = ((16, 3, 64), (24, 1, 56), (32, 3, 40), (40, 3, 32), (48, 1, 48), (64, 1, 28), (80, 3, 20), (96, 1, 24),
         (112, 1, 14), (128, 1, 20), (128, 3, 14), (160, 1, 20), (192, 3, 10), (240, 1, 12), (256, 1, 10), (256, 3, 8),
         (320, 1, 10), (480, 1, 12), (512, 1, 7), (512, 3, 7))  # fmt: skip
"""Channels, kernel and side."""
DEPTHWISE = ((16, 3, 64), (48, 3, 48), (64, 3, 28), (96, 5, 24), (120, 5, 14), (240, 3, 12), (256, 3, 20), (480, 5, 12))
MATRICES = ((1, 256), (16, 256), (64, 128), (32, 384), (128, 384), (256, 384), (64, 512), (8, 1024), (64, 1024),
            (100, 192), (48, 768), (200, 96))  # fmt: skip
"""Rows, and the side of the weight."""


def told(name: str, measured: Sequence[float], predicted: Sequence[float]) -> None:
    """Print how far predictions are off."""
    one, other = np.array(measured), np.array(predicted)
    errors = np.abs(other / one - 1)
    rank = np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1]
    spread = f"median {np.median(errors):.0%}, nine of ten under {np.quantile(errors, 0.9):.0%}"
    print(f"{name}: {len(one)}, {spread}, rank correlation {rank:.3f}", flush=True)


def layers(targets: Sequence[Target]) -> None:
    """Measure and predict single layers."""
    clock = Clock()
    shapes = [("Conv", (c, c, k, k), 1, (1, c, s, s), conv(c, k)) for c, k, s in DENSE]
    shapes += [("Conv", (c, 1, k, k), c, (1, c, s, s), conv(c, k, True)) for c, k, s in DEPTHWISE]
    shapes += [("MatMul", (n, n), 1, (m, n), matmul(n)) for m, n in MATRICES]
    measured = [[clock.of(shape, step, int8) for int8 in (False, True)] for *_, shape, step in shapes]
    for target in targets:
        for i, kind in enumerate(("float", "int8")):
            found = [target.times.layer(op, w, float(np.prod(x)), g)[i] for op, w, g, x, _ in shapes]
            told(f"layers in {kind}, {target.name}", [each[i] for each in measured], found)


def models(targets: Sequence[Target], paths: Sequence[Path]) -> None:
    """Measure and predict whole models; those with bodies are left out."""
    rows: list[list[list[float]]] = [[], []]
    for path in paths:
        original = load(path)
        feed = read_feeds(path.with_suffix(".calib.npz"), inputs_of(encode(original, skeleton=True)), model_path=path)[
            0
        ]
        graphs = [squeeze(path, "clean,canonical", validate="none").graph, squeeze(path, "int8").graph]
        forecasts = [Forecast(graph, feed) for graph in graphs]
        if not all(each.complete for each in forecasts):
            continue
        times = latency([Session(graph, threads=1) for graph in graphs], [feed]).milliseconds
        for row, forecast, milliseconds in zip(rows, forecasts, times, strict=True):
            row.append([milliseconds, *(forecast.nanoseconds(target.times) / 1e6 for target in targets)])
            print(f"{path.stem}: measured {row[-1][0]:.3f} ms, predicted {', '.join(f'{t:.3f}' for t in row[-1][1:])}")
    for i, target in enumerate(targets):
        for kind, row in zip(("float", "int8"), rows, strict=True):
            told(f"models in {kind}, {target.name}", [each[0] for each in row], [each[1 + i] for each in row])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--models", nargs="*", type=Path, default=MODELS)
    given = parser.parse_args()
    wanted = [find(name) for name in given.targets]
    layers(wanted)
    models(wanted, given.models)
