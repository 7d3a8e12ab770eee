"""Inputs of a model and the feeds that fit them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnx

from onnxsqueeze.errors import FeedError, UsageError

__all__ = [
    "IMAGES",
    "KINDS",
    "NOT_A_TENSOR",
    "Array",
    "Feed",
    "Feeds",
    "Input",
    "check_names",
    "counted",
    "inputs_of",
    "is_float",
]

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Load = Callable[[int], tuple[str, Mapping[str, Any]]]
"""Index of a feed -> where it comes from, in words for an error, and its unchecked arrays."""
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
    labels: bool = False
    """Whether arrays that are no inputs may stand in the data: ``labelled`` returns them as well."""

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
        return _fit(arrays, self.inputs, where, self.labels)

    def labelled(self, index: int) -> Feed:
        """Return a feed with the arrays that are no inputs, which are labels for a score."""
        names = {each.name for each in self.inputs}
        _, arrays = self.load(self.order[index])
        return {**{key: np.asarray(arrays[key]) for key in arrays if key not in names}, **self[index]}

    def label(self, index: int, name: str) -> Array:
        """Return one array of a feed that is no input; UsageError if there is none of this name."""
        found = self.labelled(index)
        if name not in found:
            has = ", ".join(f"'{each}'" for each in found)
            raise UsageError(f"the calibration data has no labels '{name}'; it has {has}")
        return found[name]

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


def _fit(arrays: Mapping[str, Any], inputs: tuple[Input, ...], where: str, labels: bool = False) -> Feed:
    """Return ``arrays`` as a feed of the exact dtypes of the model."""
    check_names(arrays, inputs, where, labels)
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


def check_names(arrays: Iterable[str], inputs: tuple[Input, ...], where: str, labels: bool) -> None:
    names = [wanted.name for wanted in inputs]
    has = ", ".join(f"'{name}'" for name in names) or "no inputs"
    for name in () if labels else arrays:
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


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
