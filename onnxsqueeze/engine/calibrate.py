"""``calibrate``: statistics of many feeds, measured chunk by chunk by whoever is there, the same bytes in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine import promises, registry
from onnxsqueeze.engine.chunks import Task, digest, results
from onnxsqueeze.engine.convergence import Convergence
from onnxsqueeze.engine.implied import with_implied
from onnxsqueeze.engine.places import refuse_places
from onnxsqueeze.engine.recipe import Ingredient
from onnxsqueeze.engine.run import Run
from onnxsqueeze.engine.step import run_pass
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.feeds.reading import beside
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.rig import Rig, mount
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Need
from onnxsqueeze.statistics.partial import Partial
from onnxsqueeze.statistics.store import load_partial, save_partial, save_statistics
from onnxsqueeze.workers import Executors, Share, Workers

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Calibration", "calibrate", "merge"]

CHUNK = 64
"""The fewest feeds that are measured in one go."""
CHUNKS = 512
"""About as many chunks are made at most: larger ones of more feeds."""
KEPT = 16
"""Chunks after which what is there is written down, to go on from."""


@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` has measured: feeds and chunks of how many, the chunk after which nothing moved, seconds."""

    output: str
    stage: str
    feeds: int
    chunks: int
    total: int
    converged: bool
    complete: bool
    seconds: float


@one_blas_thread
def calibrate(
    model: AnyModel,
    calibration: Any = None,
    executor: Executors = None,
    *,
    output: str | os.PathLike[str],
    pipeline: str | Pass | Sequence[str | Pass] | None = None,
    shard: tuple[int, int] | None = None,
    every_feed: bool = False,
    seed: int = 0,
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    share: Share = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration:
    """Measure what the passes of ``pipeline`` ask for on the calibration part of the data, and write it to ``output``.

    The file is what ``squeeze(stats=[output])`` takes. Measured is what the first pass that asks for statistics sees,
    so that passes behind it may have more to measure; without a pipeline, what any built-in pass asks for that stands
    first. Feeds that ``squeeze`` would hold out of the same data are left out.

    Feeds are cut into chunks by their number (64, or 1/512 of the data if that is more); the sums are made along a
    tree over the numbers of chunks, with one thread each: the same bytes on one kind of processor, however many workers
    there are. ``executor`` is anything that follows ``concurrent.futures.Executor``, or a number of processes on this
    machine: a new one takes over when one has died. Each worker reads path-like calibration data and the model itself;
    ``share`` turns the bytes of the model into what a worker gets instead (``lambda data: client.scatter(data,
    broadcast=True)``).

    ``shard=(3, 16)`` measures the third of sixteen parts, and ``output`` is for ``merge``. Else it ends early, unless
    ``every_feed``, when ranges and second moments have moved by under 0.1 % over eight chunks. What was measured is
    kept beside ``output`` every 16 chunks as ``.part``, and a run that was stopped goes on from there.

    Raises UsageError, FeedError (which names the feed) or ModelError.
    """
    start = time.perf_counter()
    progress = progress or (lambda stage, done, total: None)
    out, path = Path(output), Path(model) if isinstance(model, (str, os.PathLike)) else None
    source = calibration if calibration is not None or path is None else beside(path)
    if source is None:
        raise FeedError("there is nothing to measure on: give calibration= a path or feeds")
    refuse_places({"--output": out}, {"the model": model}, calibration=source)
    progress("loading", 0, 1)
    original = load(model)
    inputs = inputs_of(encode(original, skeleton=True))
    data = read_feeds(source, inputs, mean=mean, std=std, scale=scale, seed=seed, model_path=path)
    calib, _ = data.split()
    rig = mount(original, None, True)
    graph, stage, needs = _asked(rig, pipeline, seed, progress)
    with ExitStack() as stack:
        whole = stack.enter_context(TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True))
        file = Path(whole, "model.onnx")
        save(graph, file)
        chunk = max(CHUNK, -(-len(calib) // CHUNKS // 4) * 4)
        total = -(-len(calib) // chunk)
        place = str(file) if share is None else share(file.read_bytes())
        reads = isinstance(source, (str, os.PathLike)) and not rig.draws.nodes
        task = Task(
            key="",
            needs=tuple(needs),
            source=_where(source) if reads else None,
            how=(("mean", mean), ("std", std), ("scale", scale)),
            inputs=inputs,
            seed=seed,
            total=len(calib),
        )
        part = Partial(digest(file, task, calib, chunk), stage, total)
        task = task.keyed(part.key)
        feeds = None if reads else rig.feeds(calib, seed)
        tasks = [task.over(range(a, min(a + chunk, len(calib)))) for a in range(0, len(calib), chunk)]
        mine = _mine(total, shard)
        waiting = out.with_name(f"{out.name}.part")
        part = _resumed(waiting, part)
        settled = None if every_feed or shard is not None else Convergence()
        workers = stack.enter_context(Workers(executor, share))
        there = {chunk for span in part.known() for chunk in span}
        measured = results(workers, place, tasks, feeds, [chunk for chunk in mine if chunk not in there])
        converged = _gather(part, mine, measured, settled, waiting, progress)
    feeds_seen = sum(len(tasks[i].feeds) for span in part.known() for i in span)
    known = sum(map(len, part.known()))
    complete = shard is None
    if complete:
        save_statistics(out, {stage: part.so_far()})
    else:
        save_partial(out, part)
    with suppress(OSError):
        waiting.unlink()
    return Calibration(str(out), stage, feeds_seen, known, total, converged, complete, time.perf_counter() - start)


def merge(parts: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> str:
    """Write the statistics that the shards in ``parts`` make together to ``output``; return the stage they are of.

    The bytes are those of one run over all. Raises UsageError if shards are missing, or of different runs.
    """
    if not parts:
        raise UsageError("there is nothing to merge: give the files that calibrate has written for its shards")
    refuse_places({"--output": output}, {})
    if any(Path(path).resolve() == Path(output).resolve() for path in parts):
        raise UsageError(f"--output {output} would overwrite a part: name another file")
    first, *others = map(load_partial, parts)
    for path, other in zip(parts[1:], others, strict=True):
        try:
            first = first.merge(other)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    save_statistics(output, {first.stage: first.whole()})
    return first.stage


def _asked(
    rig: Rig, pipeline: str | Pass | Sequence[str | Pass] | None, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[Graph, str, list[Need]]:
    """Return the graph that the first pass that asks for statistics sees, the text of what led there, and its needs."""
    if pipeline is None:
        built_in = [registry.find(name)() for name in registry.names() if registry.origin(name) == "built-in"]
        asking = [each for each in built_in if _asks(each) and each.cleans_first]
        chosen = asking[:1]
    else:
        chosen = list(registry.build(pipeline))
        asking = [each for each in chosen if _asks(each)][:1]
    if not asking:
        raise UsageError("no pass of the pipeline asks for statistics: there is nothing to measure")
    run = Run((), (), {}, False, seed, progress, ruler=rig.ruler)
    graph, done = rig.graph, []
    for each, implicit in with_implied([Ingredient(pass_) for pass_ in chosen], rig.model):
        if _asks(each.pass_):
            break
        graph, step = run_pass(each.pass_, implicit, graph, run, "")
        done += [step.spec] if step.done else []
    view = View(graph)
    needs = list(dict.fromkeys(need for pass_ in asking for need in promises.needs(pass_, view)))
    if not needs:
        raise UsageError("the passes ask for nothing to be measured on this model")
    return graph, ", ".join(done), needs


def _where(source: str | os.PathLike[str]) -> str:
    """Return the data as a worker in another folder finds it."""
    return "random" if source == "random" else str(Path(source).resolve())


def _asks(pass_: Pass) -> bool:
    return type(pass_).needs is not Pass.needs


def _mine(total: int, shard: tuple[int, int] | None) -> list[int]:
    """Return the chunks of a shard: those that follow each other, so that few nodes stay."""
    if shard is None:
        return list(range(total))
    number, count = shard
    if not 1 <= number <= count:
        raise UsageError(f"shard {number}/{count} is none: the first of 16 is 1/16, the last 16/16")
    return list(range((number - 1) * total // count, number * total // count))


def _resumed(waiting: Path, part: Partial) -> Partial:
    """Return what an earlier run has left that was of the same model and data, or the part that knows nothing."""
    if not waiting.is_file():
        return part
    try:
        found = load_partial(waiting)
    except UsageError:
        return part
    return found if (found.key, found.stage, found.chunks) == (part.key, part.stage, part.chunks) else part


def _gather(
    part: Partial,
    mine: Sequence[int],
    measured: Iterable[tuple[int, Statistics]],
    settled: Convergence | None,
    waiting: Path,
    progress: Callable[[str, int, int], None],
) -> bool:
    """Add up the chunks that ``part`` does not know yet; return whether it ended early since nothing moved."""
    if settled is not None and part.nodes:
        settled.before = part.so_far()
    for chunk, found in measured:
        part.add(chunk, found)
        done = chunk + 1 - mine[0]
        progress("calibrating", done, len(mine))
        if settled is not None and settled.after(done, part):
            return True
        if done % KEPT == 0:
            save_partial(waiting, part)
    return False
