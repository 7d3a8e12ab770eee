"""What was measured, kept in a folder: figures and steps as JSON, recipes as TOML, models as ONNX; nothing is pickled.

A folder holds one sub-folder for each model, data, settings and set of versions, by their digest: another search over
the same finds what it would measure again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.arrays import Array
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine.course import Course
from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.engine.recipe import Recipe
from onnxsqueeze.engine.versions import versions
from onnxsqueeze.errors import SqueezeError, UsageError
from onnxsqueeze.feeds.types import Feeds
from onnxsqueeze.files import open_regular, whole
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import peek
from onnxsqueeze.measure.answers import answer
from onnxsqueeze.plain import fields_of, plain
from onnxsqueeze.report.run import StepReport
from onnxsqueeze.report.search import Figures
from onnxsqueeze.targets.processor import flags, machine

__all__ = ["Kept", "Store", "kept_in"]

LARGEST = 64 << 20
"""Bytes of a file of figures."""


@dataclass(frozen=True)
class Kept:
    """What is known of a pipeline: its figures and what it loses on further feeds, or why it came to nothing."""

    found: Figures | None
    problem: str = ""
    seconds: float = 0.0
    confirmed: float | None = None


@contextmanager
def kept_in(cache: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folder of a cache, or one that is there until the block ends."""
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what is mapped stays, on some systems
        yield Path(folder)


class Store:
    """A folder of what was measured for one model on one set of feeds."""

    def __init__(self, folder: Path, opened: Opened) -> None:
        self.opened = opened
        self.folder = folder

    @classmethod
    def under(cls, folder: Path, opened: Opened) -> Store:
        """Return the store in ``folder`` that belongs to the model, data and settings; UsageError if it cannot be."""
        found = cls(folder / _digest(opened)[:24], opened)
        try:
            found.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the cache {folder} cannot be written: {error.strerror}; name another folder") from None
        return found

    def find(self, pipeline: str) -> Kept | None:
        """Return what is known of a pipeline, None if nothing; a latency that was not measured yet is NaN."""
        table = self._read(_name(pipeline))
        if table is None:
            return None
        try:
            found = None if table["found"] is None else Figures(**{k: _float(v) for k, v in table["found"].items()})
            if found is not None and found.latency is None:
                found = replace(found, latency=math.nan)
            return Kept(found, str(table["problem"]), float(table["seconds"]), _maybe(table["confirmed"]))
        except (KeyError, TypeError, ValueError):
            return None

    def every(self, packed: bool) -> dict[str, Kept]:
        """Return all of which everything is known, by pipeline; what it is when ``packed``, if that is asked."""
        found: dict[str, Kept] = {}
        for path in sorted(self.folder.glob("*.json")):
            table = self._read(path.stem)
            kept = None if table is None else self.find(str(table["pipeline"]))
            if kept is None or (kept.found is not None and math.isnan(kept.found.latency)):
                continue
            if kept.found is None or not packed or kept.found.packed is not None:
                found[str(table["pipeline"])] = kept
        return found

    def keep(self, pipeline: str, kept: Kept, course: Course | None) -> None:
        """Write what was measured, and the course of a pipeline if it came to something."""
        table: dict[str, Any] = {
            **_figures(pipeline, kept),
            "steps": [] if course is None else [_told(step) for step in course.steps],
            "notes": [] if course is None else list(course.notes),
        }
        if course is not None:
            save(course.graph, self._path(pipeline, "onnx"))
            self.recipe(course).save(self._path(pipeline, "toml"))
        self._write(pipeline, table)

    def note(self, pipeline: str, kept: Kept) -> None:
        """Write other figures of a pipeline that is kept."""
        self._write(pipeline, {**(self._read(_name(pipeline)) or {}), **_figures(pipeline, kept)})

    def take(self, files: Mapping[str, bytes]) -> None:
        """Write the files of another store into this one."""
        for name in sorted(files, key=lambda name: name.endswith(".json")):
            with whole(self.folder / name, "the cache") as file:
                file.write(files[name])

    def graph(self, pipeline: str) -> Graph:
        """Return the graph that a pipeline came to, which is kept; ModelError or OSError if it cannot be read."""
        graph = load(self._path(pipeline, "onnx"))
        graph.made_for = self.opened.original.made_for
        return graph

    def recipe(self, course: Course) -> Recipe:
        """Return the recipe of a course."""
        return replace(self.opened.recipe, steps=course.made)

    def course(self, pipeline: str) -> Course | None:
        """Return the course of a pipeline with its graph, None if it is not kept or cannot be read."""
        table, path = self._read(_name(pipeline)), self._path(pipeline, "onnx")
        if table is None or not path.exists():
            return None
        try:
            graph = self.graph(pipeline)
            recipe = Recipe.load(self._path(pipeline, "toml"))
            steps = tuple(_step(each) for each in table["steps"])
            answers = answer(graph, None, self.opened.run.held)
        except (SqueezeError, OSError, KeyError, TypeError):
            return None
        return Course(graph, answers, steps, recipe.steps, tuple(map(str, table["notes"])))

    def kept_recipe(self, pipeline: str) -> Recipe | None:
        """Return the recipe of a pipeline, None if it is not kept or cannot be read."""
        try:
            steps = Recipe.load(self._path(pipeline, "toml")).steps
        except SqueezeError:
            return None
        return replace(self.opened.recipe, steps=steps)

    def forget(self, pipeline: str) -> None:
        """Remove the model of a pipeline, and keep its figures."""
        for path in self.folder.glob(f"{_name(pipeline)}.onnx*"):
            path.unlink(missing_ok=True)

    def _read(self, name: str) -> Any:
        try:
            with open_regular(self.folder / f"{name}.json") as file:
                table = json.loads(file.read(LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
        return table if isinstance(table, dict) and _name(str(table.get("pipeline"))) == name else None

    def _write(self, pipeline: str, table: Mapping[str, Any]) -> None:
        with whole(self._path(pipeline, "json"), "the cache") as file:
            file.write(json.dumps(table, ensure_ascii=True).encode())

    def _path(self, pipeline: str, suffix: str) -> Path:
        return self.folder / f"{_name(pipeline)}.{suffix}"


def _figures(pipeline: str, kept: Kept) -> dict[str, Any]:
    """Return what is known of a pipeline as JSON values."""
    found = None if kept.found is None else fields_of(kept.found)
    told = {"problem": kept.problem, "seconds": kept.seconds, "confirmed": plain(kept.confirmed)}
    return {"pipeline": pipeline, "found": found, **told}


def _told(step: StepReport) -> dict[str, object]:
    """Return a step as JSON values."""
    return {**fields_of(step), "done": [fields_of(each) for each in step.done]}


def _step(table: Mapping[str, Any]) -> StepReport:
    done = tuple(Site(t["key"], t["action"], t["detail"], _maybe(t["error"])) for t in table["done"])
    skipped = tuple(Skip(t["key"], t["reason"]) for t in table["skipped"])
    pairs = {key: tuple(table[key]) for key in ("nodes", "bytes", "notes")}
    sqnr, score = (_maybe(table[key]) for key in ("sqnr_db", "score"))
    rest = {"done": done, "skipped": skipped, "sqnr_db": sqnr, "score": score}
    return StepReport(**{**table, **pairs, **rest})


def _float(value: Any) -> Any:
    return None if value is None else float(value)


_maybe = _float


def _name(pipeline: str) -> str:
    return hashlib.sha256(pipeline.encode()).hexdigest()[:16]


def _digest(opened: Opened) -> str:
    """Return the digest of all that figures hang on: model, feeds, settings, versions and processor."""
    found = hashlib.sha256()
    recipe = opened.recipe
    use = recipe.target, recipe.threads, recipe.batch, str(opened.original.target)
    told = recipe.seed, plain(recipe.outputs), recipe.score, recipe.max_score_drop
    found.update(json.dumps([versions(), machine(), sorted(flags()), use, told]).encode())
    _add_graph(found, opened.original)
    data = opened.data or ()
    for index in range(len(data)):
        feed = data.labelled(index) if isinstance(data, Feeds) and data.labels else data[index]
        for name, array in sorted(feed.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(_bytes(array))
    return found.hexdigest()


def _add_graph(found: Any, graph: Graph) -> None:
    found.update(encode(graph, skeleton=True).SerializeToString(deterministic=True))
    seen: set[int] = set()
    for node, _ in walk(graph):
        for tensor in (*node.inputs, *node.attrs.values()):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                found.update(_bytes(peek(tensor)))


def _bytes(array: Array) -> bytes:
    return repr(array.tolist()).encode() if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes()
