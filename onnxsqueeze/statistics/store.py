"""Statistics in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnxsqueeze.arrays import Array
from onnxsqueeze.errors import UsageError
from onnxsqueeze.files import open_regular, whole
from onnxsqueeze.statistics.histogram import BINS, Histogram
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import PARTS, Moments
from onnxsqueeze.statistics.needs import Channels, Gram, Mean, Range
from onnxsqueeze.statistics.partial import Partial

__all__ = ["load_partial", "load_statistics", "save_partial", "save_statistics"]


def save_statistics(path: str | os.PathLike[str], stages: Mapping[str, Statistics]) -> None:
    """Write statistics by stage (the pipeline text that ran before the sweep) to an ``.npz`` file, all or nothing.

    Raises UsageError if the file cannot be written.
    """
    _save(path, stages, {})


def save_partial(path: str | os.PathLike[str], part: Partial) -> None:
    """Write what is known of some chunks to an ``.npz`` file, all or nothing; UsageError if that cannot be."""
    named = {f"{level} {place}": statistics for (level, place), statistics in part.nodes.items()}
    _save(path, named, {"key": part.key, "stage": part.stage, "chunks": part.chunks})


def load_partial(path: str | os.PathLike[str]) -> Partial:
    """Read a file that ``save_partial`` wrote. Raises UsageError if it is something else."""
    stages, head = _load(path)
    if not head:
        raise UsageError(f"'{path}' holds whole statistics and no part of them: give it with stats=")
    try:
        key, stage, chunks = str(head["key"]), str(head["stage"]), int(head["chunks"])
        places = [(int(level), int(place)) for level, place in map(str.split, stages)]
        if not all(0 <= level <= 64 and 0 <= place << level < chunks for level, place in places):
            raise ValueError("a node outside the tree")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"'{path}' is damaged: measure that part again") from error
    return Partial(key, stage, chunks, dict(zip(places, stages.values(), strict=True)))


def _save(path: str | os.PathLike[str], stages: Mapping[str, Statistics], head: Mapping[str, object]) -> None:
    arrays: dict[str, Array] = {}
    index: list[dict[str, object]] = []
    for stage, statistics in stages.items():
        for need in (*statistics.ranges, *statistics.moments):
            key = f"s{len(index)}"
            index.append({"stage": stage, "kind": type(need).__name__, "need": asdict(need), "key": key})
            if isinstance(need, Range):
                h = statistics.ranges[need]
                rest = [h.exponent, h.zeros, h.low, h.high, h.samples, h.low_sum, h.high_sum, h.elements, h.masked]
                arrays[f"{key}.counts"], arrays[f"{key}.rest"] = h.counts, np.array(rest, np.float64)
            else:
                m = statistics.moments[need]
                arrays[f"{key}.n"], arrays[f"{key}.total"] = np.array([m.n, m.runs]), m.total
                for part in PARTS:
                    if (array := getattr(m, part)) is not None:
                        arrays[f"{key}.{part}"] = array
                if m.held is not None and m.held.gram is not None:
                    arrays[f"{key}.held.n"] = np.array([m.held.n, m.held.runs])
                    arrays[f"{key}.held.total"], arrays[f"{key}.held.gram"] = m.held.total, m.held.gram
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    if head:
        arrays["part"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    with whole(Path(path), f"the statistics file '{path}'") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_statistics(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Statistics]:
    """Read files that ``save_statistics`` wrote and merge them. Raises UsageError if one is something else."""
    stages: dict[str, Statistics] = {}
    for path in paths:
        found, head = _load(path)
        if head:
            raise UsageError(f"'{path}' holds a part of the statistics: put all parts together with merge first")
        for stage, one in found.items():
            stages[stage] = stages[stage].merge(one) if stage in stages else one
    return stages


def _load(path: str | os.PathLike[str]) -> tuple[dict[str, Statistics], dict[str, Any]]:
    """Return the statistics of a file by stage, or by node if they are a part, and then what the part is of."""
    stages: dict[str, Statistics] = {}
    try:
        with open_regular(Path(path)) as file, np.load(file, allow_pickle=False) as arrays:
            head = json.loads(arrays["part"].tobytes()) if "part" in arrays else {}
            for entry in json.loads(arrays["index"].tobytes()):
                one, stage = _read(entry, arrays), str(entry["stage"])
                stages[stage] = stages[stage].merge(one) if stage in stages else one
    except OSError as error:
        raise UsageError(f"the statistics '{path}' cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive raises a dozen types, in words for developers
        raise UsageError(f"'{path}' is not a file of statistics that this project wrote") from error
    return stages, head


def _read(entry: dict[str, Any], arrays: Mapping[str, Array]) -> Statistics:
    key, kind = entry["key"], entry["kind"]
    fields = _fields(entry["need"])
    if kind == "Range":
        exponent, zeros, low, high, samples, low_sum, high_sum, elements, masked = arrays[f"{key}.rest"].tolist()
        counts = arrays[f"{key}.counts"].astype(np.int64)
        if counts.shape != (BINS,):
            raise ValueError(f"{counts.size} bins instead of {BINS}")
        histogram = Histogram(
            int(exponent), counts, int(zeros), low, high, int(samples), low_sum, high_sum, int(elements), int(masked)
        )
        return Statistics({Range(**fields): histogram}, {})
    kinds: dict[str, type[Mean | Channels | Gram]] = {"Mean": Mean, "Channels": Channels, "Gram": Gram}
    need = kinds[kind](**fields)
    total = arrays[f"{key}.total"].astype(np.float64)
    parts = {part: arrays[f"{key}.{part}"].astype(np.float64) for part in PARTS if f"{key}.{part}" in arrays}
    held = _held(key, arrays, total.size) if f"{key}.held.n" in arrays else None
    if "gram" in parts and parts["gram"].shape != (total.size, total.size):
        raise ValueError(f"a Gram matrix of shape {list(parts['gram'].shape)} for {total.size} sums")
    n, runs = arrays[f"{key}.n"].tolist()
    return Statistics({}, {need: Moments(int(n), total, **parts, runs=int(runs), held=held)})


def _fields(need: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in need.items()}
    if fields.get("others"):
        fields["others"] = tuple(Gram(**_fields(each)) for each in fields["others"])
    return fields


def _held(key: str, arrays: Mapping[str, Array], size: int) -> Moments:
    total, gram = (arrays[f"{key}.held.{part}"].astype(np.float64) for part in ("total", "gram"))
    if total.shape != (size,) or gram.shape != (size, size):
        raise ValueError(f"moments of shape {list(gram.shape)} for {size} sums")
    n, runs = arrays[f"{key}.held.n"].tolist()
    return Moments(int(n), total, gram, runs=int(runs))
