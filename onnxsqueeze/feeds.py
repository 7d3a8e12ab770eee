"""Calibration data from files and from Python: lazy, checked against the inputs of the model, never unpickled."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnx

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feed_files import (
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

__all__ = ["Feed", "Feeds", "Input", "beside", "find_beside", "inputs_of", "read"]

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Load = Callable[[int], tuple[str, Mapping[str, Any]]]
"""Index of a feed -> where it comes from, in words for an error, and its unchecked arrays."""

GROUP = 8
"""Samples of one file that share a feed when the batch dimension is dynamic, so that calibration is quick."""
NOT_A_TENSOR = np.dtype(np.void)
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
KINDS = f"a folder of .npz files, of images ({' '.join(IMAGES)}) or of test_data_set_* folders, an .npz or an .npy file"


@dataclass(frozen=True)
class Input:
    """What the model takes as ``name``; an unknown dimension is its symbol or None, an unknown rank ``shape=None``."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dtype = "string" if self.dtype.kind == "O" else self.dtype.name
        dims = "..." if self.shape is None else ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{dtype}[{dims}]"


def inputs_of(model: onnx.ModelProto) -> tuple[Input, ...]:
    """Return what a caller must feed: the graph inputs that are not initializers.

    An input that is no dense tensor gets the dtype ``void``; only ``read`` refuses it.
    """
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    return tuple(_input(value) for value in graph.input if value.name not in stored)


def _input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:  # 0 for what is no tensor, or a type newer than this onnx
        return Input(value.name, NOT_A_TENSOR, None)
    if not tensor.HasField("shape"):
        return Input(value.name, dtype, None)
    # Exporters write unknown dimensions as a symbol, as nothing, as 0 and as -1.
    return Input(value.name, dtype, tuple(d.dim_param or max(d.dim_value, 0) or None for d in tensor.shape.dim))


@dataclass(frozen=True, eq=False)
class Feeds(Sequence[Feed]):
    """A sequence of feeds that are read and checked on access, so that memory does not grow with their number.

    ``source`` says for the report where they come from (parts of a split keep it), ``invented`` that they are random,
    ``shared`` that these held-out feeds are also the calibration feeds because there was only one.
    Access raises FeedError when a feed does not fit the model.
    """

    source: str
    inputs: tuple[Input, ...]
    load: Load
    order: Sequence[int]
    invented: bool = False
    shared: bool = False

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> Feeds: ...
    def __getitem__(self, index: int | slice) -> Feed | Feeds:
        if isinstance(index, slice):
            return replace(self, order=self.order[index])
        where, arrays = self.load(self.order[index])
        return _fit(arrays, self.inputs, where)

    def __iter__(self) -> Iterator[Feed]:
        return (self[index] for index in range(len(self)))

    def split(self) -> tuple[Feeds, Feeds]:
        """Return (calibration, held-out): one in eight, at least 1, at most 64, evenly spread, is held out."""
        count = len(self)
        if count < 2:
            return self, replace(self, shared=True)
        held = min(64, max(1, round(count / 8)))
        out = {(2 * part + 1) * count // (2 * held) for part in range(held)}
        kept = tuple(self.order[index] for index in range(count) if index not in out)
        return replace(self, order=kept), replace(self, order=tuple(self.order[index] for index in sorted(out)))


def read(
    source: Any,
    inputs: Sequence[Input],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    seed: int = 0,
    model_path: Path | None = None,
) -> Feeds:
    """Return the feeds that ``source`` holds for a model with ``inputs``; the first one is read and checked.

    ``source`` is a path (a folder of .npz files, of images or of test_data_set_* folders, one .npz, one .npy), the
    word "random" (eight seeded feeds), or from Python: Feeds, an iterable of dicts, one dict, or for a model with one
    input an array of samples. None looks beside ``model_path``. ``mean``, ``std`` and ``scale`` are for images and
    win over the calib.toml in their folder: ``x = (pixel · scale − mean) / std``.

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
        feeds = _from_file(path, inputs)
    else:
        feeds = _random(inputs, seed) if isinstance(source, str) else _from_python(source, inputs)
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


def _random(inputs: tuple[Input, ...], seed: int) -> Feeds:
    if seed < 0:
        raise FeedError(f"seed {seed} is negative; give 0 or more")
    shapes = _made_up_shapes(inputs)

    def load(index: int) -> tuple[str, Feed]:
        rng, feed = np.random.default_rng((seed, index)), {}
        for wanted, shape in zip(inputs, shapes, strict=True):
            # Integers are mostly tokens, masks and flags: 0 and 1 are safe for all of them.
            drawn = rng.standard_normal(shape) if is_float(wanted.dtype) else rng.integers(0, 2, shape)
            feed[wanted.name] = np.asarray(drawn).astype(wanted.dtype)
        return f"random feed {index}", feed

    return Feeds(f"8 random feeds (seed {seed})", inputs, load, range(8), invented=True)


def _made_up_shapes(inputs: tuple[Input, ...]) -> list[tuple[int, ...]]:
    """Replace unknown dimensions: a batch by 1, the sides of an image by 64, any other by 16; one symbol, one size."""
    sizes = {wanted.shape[0]: 1 for wanted in inputs if wanted.shape and isinstance(wanted.shape[0], str)}
    shapes = []
    for wanted in inputs:
        dims = wanted.shape
        if dims is None or wanted.dtype.kind == "O":
            raise FeedError(f"input '{wanted.name}' is {wanted}, which cannot be drawn at random; give {KINDS}")
        unknown = [1, *[16] * len(dims)][: len(dims)]
        if len(dims) == 4 and dims[3] in (1, 3, 4):
            unknown = [1, 64, 64, 3]
        elif len(dims) == 4 and dims[1] in (1, 3, 4, None):
            unknown = [1, 3, 64, 64]
        elif len(dims) == 3 and isinstance(dims[0], int) and dims[0] > 1 and isinstance(dims[2], int):
            unknown[1] = 1  # the state of a recurrent layer: [layers, batch, width]
        pairs = zip(dims, unknown, strict=True)
        shape = tuple(sizes.setdefault(d, size) if isinstance(d, str) else d or size for d, size in pairs)
        check_size(math.prod(shape) * wanted.dtype.itemsize, f"input '{wanted.name}'")
        shapes.append(shape)
    return shapes


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
        from onnxsqueeze.images import read_images

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


def _from_file(path: Path, inputs: tuple[Input, ...]) -> Feeds:
    if not path.exists():
        raise FeedError(f"{path}: no such file or folder; give {KINDS}")
    if path.suffix.lower() == ".npz":
        return _samples(open_npz(path), inputs, str(path))
    if path.suffix.lower() != ".npy":
        raise FeedError(f"{path} is no calibration data; give {KINDS}")
    name = _only(inputs, str(path)).name
    with reading(path):
        with path.open("rb") as file:
            npy_header(file, f"{path}")
        return _samples({name: np.load(path, mmap_mode="r", allow_pickle=False)}, inputs, str(path))


def _samples(arrays: Mapping[str, Any], inputs: tuple[Input, ...], where: str) -> Feeds:
    """Cut arrays along their first axis into feeds; one with another length there is repeated in each feed."""
    _check_names(arrays, inputs, where)
    name = Path(where).name
    first = {wanted.name: wanted.shape[0] if wanted.shape else None for wanted in inputs}
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


def _fit(arrays: Mapping[str, Any], inputs: tuple[Input, ...], where: str) -> Feed:
    """Return ``arrays`` as a feed of the exact dtypes of the model."""
    _check_names(arrays, inputs, where)
    feed: Feed = {}
    for wanted in inputs:
        try:
            found = np.asarray(arrays[wanted.name], order="C")
        except ValueError as error:
            raise FeedError(f"{where}: '{wanted.name}' is no array: {error}") from error
        dims = found.shape if wanted.shape is None else wanted.shape
        if len(dims) != found.ndim or any(
            isinstance(d, int) and d != n for d, n in zip(dims, found.shape, strict=True)
        ):
            way_out = "add a leading axis" if len(dims) == found.ndim + 1 else "resize or reshape the array"
            raise FeedError(f"{where}: '{wanted.name}' takes {wanted}, found shape {list(found.shape)}; {way_out}")
        array = _cast(found, wanted, where)
        if (is_float(array.dtype) or array.dtype.kind == "c") and np.isnan(array).any():
            index = [int(i) for i in np.unravel_index(int(np.isnan(array).argmax()), array.shape)]
            raise FeedError(f"{where}: '{wanted.name}' is NaN at {index}; repair or leave out this sample")
        feed[wanted.name] = array
    return feed


def _check_names(arrays: Iterable[str], inputs: tuple[Input, ...], where: str) -> None:
    names = [wanted.name for wanted in inputs]
    has = ", ".join(f"'{name}'" for name in names) or "no inputs"
    for name in arrays:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"the model has {has}"
            raise FeedError(f"{where}: the model has no input '{name}'; {hint}")
    for wanted in inputs:
        if wanted.name not in arrays:
            raise FeedError(f"{where}: no array for the input '{wanted.name}', {wanted}; add one")


def _cast(found: Array, wanted: Input, where: str) -> Array:
    """Change between float types, to a wider integer and from text; any other change needs the user's word."""
    old, new = found.dtype, wanted.dtype
    if old == new:
        return found
    if is_float(old) and is_float(new):
        with np.errstate(all="ignore"):
            array = found.astype(new)
        if np.isfinite(array).sum() < np.isfinite(found).sum():
            raise FeedError(f"{where}: '{wanted.name}' has values too large for {new.name}; scale them down")
        return array
    if (old.kind in "iu" and new.kind in "iu" and np.can_cast(old, new)) or (old.kind == "U" and new.kind == "O"):
        return found.astype(new)
    raise FeedError(f"{where}: '{wanted.name}' takes {wanted}, found {old.name}; convert it with .astype")


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _only(inputs: tuple[Input, ...], where: str) -> Input:
    if len(inputs) != 1:
        names = ", ".join(f"'{wanted.name}'" for wanted in inputs) or "none"
        raise FeedError(f"{where} feeds one input, but the model has {len(inputs)} ({names}); {ONE_EACH}")
    return inputs[0]


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
