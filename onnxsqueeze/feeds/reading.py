"""Calibration data from files and from Python: lazy, checked against the inputs of the model, never unpickled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.files import (
    ONE_EACH,
    check_size,
    load_npz,
    load_protos,
    npy_header,
    open_npz,
    reading,
    size_of,
    whole,
)
from onnxsqueeze.feeds.made_up import random_feeds
from onnxsqueeze.feeds.types import IMAGES, KINDS, NOT_A_TENSOR, Feed, Feeds, Input, check_names, counted
from onnxsqueeze.files import open_regular

__all__ = ["beside", "files_of", "find_beside", "read"]

GROUP = 8
"""Samples of one file that share a feed when the batch dimension is dynamic, so that calibration is quick."""


def read(
    source: Any,
    inputs: Sequence[Input],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    seed: int = 0,
    model_path: Path | None = None,
    labels: bool = False,
) -> Feeds:
    """Return the feeds that ``source`` holds for a model with ``inputs``; the first one is read and checked.

    ``source`` is a path (a folder of .npz files, of images or of test_data_set_* folders, one .npz, one .npy), the
    word "random" (eight seeded feeds), or from Python: Feeds, an iterable of dicts, one dict, or for a model with one
    input an array of samples. None looks beside ``model_path``. ``mean``, ``std`` and ``scale`` are for images and
    win over the calib.toml in their folder: ``x = (pixel · scale − mean) / std``. With ``labels``, arrays that are no
    inputs are let pass.

    Raises FeedError when there is nothing to read or when it does not fit the model.
    """
    inputs = tuple(inputs)
    for wanted in inputs:
        if wanted.dtype == NOT_A_TENSOR:
            raise FeedError(f"input '{wanted.name}' is not a dense tensor, so no calibration data can be fed to it")
    if source is None:
        source = beside(model_path) if model_path else None
        if source is None:
            raise FeedError(f"there is no calibration data; give {KINDS}, or the word random for a first look")
    path = Path(source) if isinstance(source, (str, os.PathLike)) and source != "random" else None
    pixels = {key: value for key, value in (("mean", mean), ("std", std), ("scale", scale)) if value is not None}
    if path and path.is_dir():
        feeds = _from_folder(path, inputs, pixels)
    elif pixels:
        raise FeedError(f"only a folder of images takes {', '.join(pixels)}; scale the arrays themselves")
    elif path:
        feeds = _from_file(path, inputs, labels)
    else:
        feeds = random_feeds(inputs, seed) if isinstance(source, str) else _from_python(source, inputs)
    feeds = replace(feeds, labels=labels)
    if not feeds:
        raise FeedError(f"{feeds.source}: calibration needs at least one sample")
    feeds[0]
    return feeds


def find_beside(model_path: Path, inputs: Sequence[Input]) -> Feeds | None:
    """Return the feeds in ``model.calib.npz`` or ``model.calib/`` beside ``model.onnx``, or None if neither exists."""
    path = beside(model_path)
    return read(path, inputs) if path else None


def beside(model_path: Path) -> Path | None:
    """Return the calibration data beside a model: ``model.calib.npz``, or else the folder ``model.calib/``."""
    folder = Path(model_path).with_suffix(".calib")
    packed = folder.with_name(folder.name + ".npz")
    return packed if packed.is_file() else folder if folder.is_dir() else None


def files_of(source: object) -> list[Path]:
    """Return the files that calibration data of a path is read from, none if it is no path or is not there."""
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    if path is None or not path.is_dir():
        return [path] if path is not None and path.is_file() else []
    read_from = re.compile(rf"(?i).*(\.npz|{'|'.join(map(re.escape, IMAGES))})|calib\.toml|input_\d+\.pb")
    folders = [path, *path.glob("test_data_set_*")]
    return [file for folder in folders for file in folder.glob("*") if read_from.fullmatch(file.name)]


# Sources. Each returns Feeds whose ``load`` reads one feed.


def _from_python(source: Any, inputs: tuple[Input, ...]) -> Feeds:
    if isinstance(source, Feeds):
        return replace(source, inputs=inputs)
    if isinstance(source, np.ndarray):
        return _samples({_only(inputs, "an array").name: source}, inputs, "an array")
    if not isinstance(source, Iterable):
        raise FeedError(f"calibration data is of type {type(source).__name__}; give dicts of arrays by input name")
    feeds = (source,) if isinstance(source, Mapping) else tuple(source)
    for index, feed in enumerate(feeds):
        if not isinstance(feed, Mapping):
            raise FeedError(f"feed {index} is of type {type(feed).__name__}; give a dict of arrays by input name")
    return Feeds(counted(len(feeds), "feed"), inputs, lambda index: (f"feed {index}", feeds[index]), range(len(feeds)))


def _from_folder(folder: Path, inputs: tuple[Input, ...], pixels: Mapping[str, Any]) -> Feeds:
    with reading(folder):
        files = sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=lambda file: file.name)
    images = [file for file in files if file.suffix.lower() in IMAGES]
    packed = [file for file in files if file.suffix.lower() == ".npz"]
    sets = [file for file in files if re.fullmatch(r"test_data_set_\d+", file.name) and file.is_dir()]
    if any(re.fullmatch(r"input_\d+\.pb", file.name) for file in files):
        sets = [folder]
    name = f"{folder.resolve().name}/"
    if images and packed and not sets:
        raise FeedError(f"{folder} holds .npz files and images; keep one kind")
    if images and not sets:
        from onnxsqueeze.feeds.images import read_images

        return read_images(folder, images, inputs, pixels)
    if pixels:
        raise FeedError(f"only a folder of images takes {', '.join(pixels)}, and {folder} is none")
    if sets:
        sets.sort(key=lambda file: (len(file.name), file.name))
        return Feeds(
            f"{counted(len(sets), 'test data set')} from {name}",
            inputs,
            lambda index: (str(sets[index]), load_protos(sets[index], [wanted.name for wanted in inputs])),
            range(len(sets)),
        )
    if not packed:
        raise FeedError(
            f"{folder} holds no calibration data; looked for .npz files, images and test_data_set_* folders"
        )
    return Feeds(
        f"{counted(len(packed), 'feed')} from {name}",
        inputs,
        lambda index: (str(packed[index]), load_npz(packed[index])),
        range(len(packed)),
    )


def _from_file(path: Path, inputs: tuple[Input, ...], labels: bool) -> Feeds:
    if not path.exists():
        raise FeedError(f"{path}: no such file or folder; give {KINDS}")
    if path.suffix.lower() == ".npz":
        return _samples(open_npz(path), inputs, str(path), labels)
    if path.suffix.lower() != ".npy":
        raise FeedError(f"{path} is no calibration data; give {KINDS}")
    name = _only(inputs, str(path)).name
    with reading(path):
        with open_regular(path) as file:
            npy_header(file, f"{path}")
        return _samples({name: np.load(path, mmap_mode="r", allow_pickle=False)}, inputs, str(path))


def _samples(arrays: Mapping[str, Any], inputs: tuple[Input, ...], where: str, labels: bool = False) -> Feeds:
    """Cut arrays along their first axis into feeds; one with another length there is repeated in each feed."""
    check_names(arrays, inputs, where, labels)
    name = Path(where).name
    first: dict[str, int | str | None] = dict.fromkeys(arrays)
    first |= {wanted.name: wanted.shape[0] if wanted.shape else None for wanted in inputs}
    # An array that fits its input as it is (a recurrent state, one full batch) is no row of samples.
    lengths = {key: len(array) for key, array in arrays.items() if array.shape and len(array) != first[key]}
    if not lengths:
        check_size(sum(map(size_of, arrays.values())), where)
        only = {key: whole(array) for key, array in arrays.items()}
        return Feeds(f"1 feed from {name}", inputs, lambda _: (where, only), range(1))
    counts = list(lengths.values())
    total = max(counts, key=lambda length: (counts.count(length), length))
    sampled = [key for key in lengths if lengths[key] == total]
    for key in lengths:
        if lengths[key] not in (1, total) and first[key] in {first[other] for other in sampled} - {None}:
            raise FeedError(
                f"{where}: '{key}' has {lengths[key]} samples, but '{sampled[0]}' has {total}; make them equal"
            )
    fixed = sorted({size for size in (first[key] for key in sampled) if isinstance(size, int)})
    if len(fixed) > 1:
        raise FeedError(f"{where}: the inputs have different batch sizes, {fixed[0]} and {fixed[1]}; {ONE_EACH}")
    constants = {key: array for key, array in arrays.items() if key not in sampled}
    size = fixed[0] if fixed else _group(total, inputs, constants)
    count = total // size if fixed else -(-total // size)
    if count == 0:
        raise FeedError(f"{where} has {counted(total, 'sample')}, but the model takes {size} at a time; add samples")
    used = min(total, count * size)
    row_bytes = sum(size_of(arrays[key]) // total for key in sampled)
    check_size(row_bytes * size + sum(map(size_of, constants.values())), where)
    repeated = {key: whole(array) for key, array in constants.items()}

    def load(index: int) -> tuple[str, Feed]:
        start, stop = index * size, min(used, (index + 1) * size)
        rows = {key: np.array(arrays[key][start:stop]) for key in sampled}
        return f"{where}, samples {start} to {stop - 1}", rows | repeated

    left = f" ({total - used} left over: the model takes {size} at a time)" if used < total else ""
    return Feeds(f"{counted(used, 'sample')} of {name}{left}", inputs, load, range(count))


def _group(total: int, inputs: tuple[Input, ...], constants: Mapping[str, Any]) -> int:
    """Return how many samples may share a feed: one when a repeated array could depend on the batch."""
    for wanted in inputs:
        repeated = constants.get(wanted.name)
        loose = wanted.shape is None or any(not isinstance(dim, int) for dim in wanted.shape)
        if (repeated is not None and repeated.shape and loose) or wanted.shape is None:
            return 1
    return min(GROUP, max(1, total // GROUP))


# Checks.


def _only(inputs: tuple[Input, ...], where: str) -> Input:
    if len(inputs) != 1:
        names = ", ".join(f"'{wanted.name}'" for wanted in inputs) or "none"
        raise FeedError(f"{where} feeds one input, but the model has {len(inputs)} ({names}); {ONE_EACH}")
    return inputs[0]
