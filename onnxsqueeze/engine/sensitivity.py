"""``sensitivity``: what each layer does to the answers at each level of a pass, predicted and measured; no labels."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Level
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import spec
from onnxsqueeze.engine.squeeze import squeeze
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.feeds.reading import beside
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import Feeds, inputs_of
from onnxsqueeze.graph.opset import raise_opset
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Ruler
from onnxsqueeze.measure.cost import macs
from onnxsqueeze.measure.rig import mount
from onnxsqueeze.measure.switchboard import SAMPLES, measure
from onnxsqueeze.report.sensitivity import LayerStudy, Point, Sensitivity
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.statistics.sweep import collect
from onnxsqueeze.workers import Executors, Share, Workers

__all__ = ["sensitivity"]

CALIBRATED = (8, 128)
"""The fewest and the most feeds that statistics are taken on."""
WORK = 1e10
"""Multiply-accumulates that those feeds may take, if they are more than the fewest."""
ROWS = 8192
"""Input rows of a layer that enter its Gram matrix."""
MEASURED = 16
"""The most held-out feeds that errors are measured on, two samples of each."""
TRIAL_WORK = 1e11
"""Multiply-accumulates that all measurements may take, if they are on more than one feed."""
MOST_WORK = 4e11
"""Multiply-accumulates from which on only the most sensitive layers are measured at more than one level."""


@one_blas_thread
def sensitivity(
    model: str | os.PathLike[str] | onnx.ModelProto,
    pipeline: str | Pass | Sequence[str | Pass],
    calibration: Any = None,
    *,
    seed: int = 0,
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    executor: Executors = None,
    share: Share = None,
) -> Sensitivity:
    """Return what each layer of ``model`` does to the answers at each level of the last pass of ``pipeline``.

    The other passes, and those that clean, run first. Every layer is rewritten alone; no labels are needed.
    ``calibration`` is whatever ``squeeze`` takes; without it, data beside the model is used. Statistics are taken on
    8 feeds, errors on one that was held out; of a small model on more. Of a large one, each layer is measured at its
    middle level, and only the most sensitive ones at the others. ``executor`` and ``share`` are those of ``calibrate``,
    and what comes out is the same for any number of workers. Raises UsageError, FeedError or ModelError.
    """
    start = time.perf_counter()
    progress = progress or (lambda stage, done, total: None)
    *before, studied = registry.build(pipeline)
    _refuse_without_levels(studied)
    progress("loading", 0, 1)
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    data = _data(model, path, calibration, mean=mean, std=std, scale=scale, seed=seed)
    graph = _prepared(model, before, studied, data, seed)
    rig = mount(graph, None, True)
    graph = rig.graph
    calib, held = (rig.feeds(part, seed) for part in data.split())
    view = View(graph)
    one = max(sum(macs(graph, calib[0]).values()), 1)
    seen = _spread(calib, int(np.clip(WORK // one, *CALIBRATED)))
    stats = collect(graph, list(studied.level_needs(view)), seen, rows=ROWS, seed=seed, progress=progress)
    levels = list(_counted(studied.levels(view, stats), progress))
    used = _spread(held, int(np.clip(TRIAL_WORK // (one * max(len(levels), 1)), 1, MEASURED)))
    with Workers(executor, share) as workers:
        errors = _measured(graph, levels, used, int(MOST_WORK // (one * len(used))), progress, rig.ruler, workers)
    return Sensitivity(
        model="<memory>" if path is None else str(path),
        spec=str(spec(studied)),
        feeds=(f"{len(used)} of {len(data)} feeds, held out" if len(data) > 1 else "the only feed")
        + (f", of {data.source}" if data.invented else ""),
        levels=tuple(label for label, _ in Counter(level.label for level in levels).items()),
        layers=_layers(view, levels, errors),
        seconds=time.perf_counter() - start,
    )


def _refuse_without_levels(pass_: Pass) -> None:
    if type(pass_).levels is Pass.levels:
        known = [each.name for each in registry.listing() if not each.error and _has_levels(each.name)]
        raise UsageError(f"{pass_.name} has no levels to compare layers at; study one of {', '.join(known)}")


def _has_levels(name: str) -> bool:
    return registry.find(name).levels is not Pass.levels


def _data(model: str | os.PathLike[str] | onnx.ModelProto, path: Path | None, calibration: Any, **how: Any) -> Feeds:
    inputs = inputs_of(encode(load(model), skeleton=True))
    source = calibration if calibration is not None or path is None else beside(path)
    if source is None:
        raise FeedError(
            "a study of sensitivity runs the model: give calibration= a path or feeds, or 'random' for a first look"
        )
    return read_feeds(source, inputs, model_path=path, **how)


def _prepared(
    model: str | os.PathLike[str] | onnx.ModelProto, before: Sequence[Pass], studied: Pass, data: Feeds, seed: int
) -> Graph:
    """Return the graph as the studied pass would get it."""
    first = list(before)
    if studied.cleans_first and not any(pass_.cleans_first for pass_ in first):
        named = {pass_.name for pass_ in first}
        first += [registry.find(name)() for name in ("clean", "canonical") if name not in named]
    graph = squeeze(model, first, data, validate="none", seed=seed).graph if first else load(model)
    return raise_opset(graph, studied.min_opset) if graph.opset < studied.min_opset else graph


def _spread(data: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return at most ``count`` feeds, evenly spread."""
    count = min(count, len(data))
    return [data[i * len(data) // count] for i in range(count)]


def _counted(levels: Any, progress: Callable[[str, int, int], None]) -> Any:
    for done, level in enumerate(levels):
        progress("predicting", done, 0)
        yield level


def _measured(
    graph: Graph,
    levels: Sequence[Level],
    used: Sequence[dict[str, Any]],
    runs: int,
    progress: Callable[[str, int, int], None],
    ruler: Ruler,
    workers: Workers,
) -> list[float | None]:
    """Return the errors of all levels, or, if those are more than ``runs``, of each layer's middle one.

    The others are then measured for the layers with the largest errors there, as far as the runs go.
    """
    errors: list[float | None] = [None] * len(levels)

    def fill(numbers: Sequence[int]) -> None:
        rewrites = [levels[i].rewrites for i in numbers]
        found = measure(graph, rewrites, used, ruler.error, SAMPLES, progress, workers=workers)
        for number, error in zip(numbers, found, strict=True):
            errors[number] = error

    if len(levels) <= runs:
        fill(range(len(levels)))
        return errors
    layers: dict[str, list[int]] = {}
    for number, level in enumerate(levels):
        layers.setdefault(level.key, []).append(number)
    middle = {numbers[len(numbers) // 2]: numbers for numbers in layers.values()}
    fill(list(middle))
    left, rest = runs - len(middle), list[int]()
    for number in sorted(middle, key=lambda i: -(errors[i] or 0.0)):
        others = [i for i in middle[number] if i != number]
        if len(others) > left:
            break
        left -= len(others)
        rest += others
    fill(sorted(rest))
    return errors


def _layers(view: View, levels: Sequence[Level], errors: Sequence[float | None]) -> tuple[LayerStudy, ...]:
    points: dict[str, list[Point]] = {}
    for level, error in zip(levels, errors, strict=True):
        points.setdefault(level.key, []).append(Point(level.label, level.share, level.error, error))
    found = []
    for node in view.nodes:
        key = key_of(node)
        if key in points:
            weights = [value.size for t in node.inputs[1:] if (value := view.value(t)) is not None]
            found.append(LayerStudy(key, str(node.name), str(node.op), sum(weights), tuple(points.pop(key))))
    return tuple(found)
