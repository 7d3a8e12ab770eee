"""Calibration feeds from a folder of images, prepared as the model was trained to see them."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.files import check_size, reading
from onnxsqueeze.feeds.types import Array, Feed, Feeds, Input, counted, is_float
from onnxsqueeze.files import open_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Preparation", "read_images"]

Sides = tuple[int | None, int | None]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MULTIPLE = 32
"""Fully convolutional models halve the sides up to five times."""
CHOICES = {"order": ("rgb", "bgr"), "layout": ("nchw", "nhwc"), "resize": ("stretch", "crop")}
EXPECTED = {
    "mean": "a number, or one for each channel",
    "std": "a number other than 0, or one for each channel",
    "scale": "a number",
    "size": "[height, width]",
    **{key: " or ".join(f'"{word}"' for word in words) for key, words in CHOICES.items()},
}
KEYS = ", ".join(EXPECTED)


@dataclass(frozen=True)
class Preparation:
    """How a pixel becomes a value: ``x = (pixel · scale − mean) / std``. The fields are the keys of calib.toml.

    ``mean`` and ``std`` hold one number, or one for each channel in the order that the model sees. ``size`` is
    (height, width); None takes it from the model, and what the model leaves open from each image.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    order: str = "rgb"
    size: tuple[int, int] | None = None
    layout: str | None = None
    resize: str = "stretch"


def read_images(folder: Path, files: Sequence[Path], inputs: tuple[Input, ...], given: Mapping[str, Any]) -> Feeds:
    """Return one feed for each image, or for each ``B`` of them when the batch dimension is fixed to ``B``.

    ``given`` wins over calib.toml. Raises FeedError without Pillow, for a bad key and for a model that takes no image.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise FeedError(f"{folder} holds images, which need Pillow: pip install onnxsqueeze[images]") from error
    if len(inputs) != 1:
        names = ", ".join(f"'{wanted.name}'" for wanted in inputs) or "none"
        raise FeedError(f"{folder} holds images, but the model has {len(inputs)} inputs ({names}); use .npz files")
    wanted = inputs[0]
    settings = _settings(folder / "calib.toml", given)
    how = Preparation(**settings)
    if wanted.dtype == np.uint8 and settings.keys() & {"mean", "std", "scale"}:
        raise FeedError(f"'{wanted.name}' is {wanted} and gets raw pixels; leave out mean, std and scale")
    if wanted.dtype != np.uint8 and not is_float(wanted.dtype):
        raise FeedError(
            f"{folder} holds images, but '{wanted.name}' is {wanted}, neither float nor uint8; use .npz files"
        )
    layout, channels, sides = _geometry(wanted, how, folder)
    for key, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (1, channels):
            raise FeedError(f"{key} has {len(values)} numbers, but '{wanted.name}' has {counted(channels, 'channel')}")
    batch = wanted.shape[0] if wanted.shape and isinstance(wanted.shape[0], int) else 1
    count = len(files) // batch
    if not count:
        raise FeedError(f"{folder} has {counted(len(files), 'image')}, but the model takes {batch} at a time; add some")

    def load(index: int) -> tuple[str, Feed]:
        chosen = files[index * batch : (index + 1) * batch]
        images = [_image(file, how, layout, channels, sides, wanted.dtype == np.uint8) for file in chosen]
        if len({image.shape for image in images}) > 1:
            raise FeedError(
                f"{chosen[0]} and the next {batch - 1} differ in size; set size = [height, width] in calib.toml"
            )
        return str(chosen[0]), {wanted.name: np.stack(images)}

    left = len(files) - count * batch
    note = f" ({left} left over: the model takes {batch} at a time)" if left else ""
    return Feeds(f"{counted(count * batch, 'image')} from {folder.resolve().name}/{note}", inputs, load, range(count))


def _image(file: Path, how: Preparation, layout: str, channels: int, sides: Sides, raw: bool) -> Array:
    from PIL import Image, ImageOps

    with reading(file), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with open_regular(file) as raw_file, Image.open(raw_file, formats=("PNG", "JPEG", "BMP", "WEBP")) as opened:
            if opened.mode.startswith(("I", "F")):
                raise FeedError(f"{file} has more than 8 bits for each channel; convert it to 8 bits")
            image = ImageOps.exif_transpose(opened).convert("RGBA").convert(MODES[channels])
        height, width = _size(sides, image.height, image.width)
        check_size(height * width * channels * 4, str(file))
        fit = ImageOps.fit if how.resize == "crop" else Image.Image.resize
        pixels = np.asarray(fit(image, (width, height), Image.Resampling.BILINEAR)).reshape(height, width, channels)
    if how.order == "bgr" and channels > 1:
        pixels = pixels[..., [2, 1, 0, 3][:channels]]
    if not raw:
        mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
        pixels = (pixels * np.float32(how.scale) - mean) / std
    return np.ascontiguousarray(pixels if layout == "nhwc" else pixels.transpose(2, 0, 1))


def _size(sides: Sides, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) to resize to: an open side keeps the proportions, rounded down to a multiple of 32."""
    fixed_height, fixed_width = sides
    zoom = fixed_height / height if fixed_height else fixed_width / width if fixed_width else 1.0
    free_height, free_width = (max(MULTIPLE, int(side * zoom) // MULTIPLE * MULTIPLE) for side in (height, width))
    return fixed_height or free_height, fixed_width or free_width


def _geometry(wanted: Input, how: Preparation, folder: Path) -> tuple[str, int, Sides]:
    """Return (layout, channels, (height, width)); a side that neither the model nor calib.toml fixes is None."""
    shape = (None,) * 4 if wanted.shape is None else wanted.shape
    ends = shape[1:4:2]
    if len(shape) != 4 or (None not in ends and all(isinstance(end, int) and end not in MODES for end in ends)):
        raise FeedError(f"{folder} holds images, but '{wanted.name}' is {wanted}, no image; use .npz files")
    fitting = [layout for layout, end in zip(CHOICES["layout"], ends, strict=True) if end in MODES]
    if how.layout is None and len(fitting) != 1:
        raise FeedError(f"'{wanted.name}' is {wanted}: where are its channels? set layout in {folder / 'calib.toml'}")
    layout = how.layout or fitting[0]
    channels, sides = (shape[1], shape[2:]) if layout == "nchw" else (shape[3], shape[1:3])
    if isinstance(channels, int) and channels not in MODES:
        raise FeedError(
            f"'{wanted.name}' is {wanted}, which has {channels} channels as {layout}; images have 1, 3 or 4"
        )
    height, width = (side if isinstance(side, int) else None for side in sides)
    if how.size is not None:
        if (height or how.size[0], width or how.size[1]) != how.size:
            raise FeedError(f"size = {list(how.size)} does not fit '{wanted.name}', which is {wanted}; leave it out")
        height, width = how.size
    return layout, channels if isinstance(channels, int) else 3, (height, width)


def _settings(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked fields of a Preparation that calib.toml or the caller sets."""
    table: dict[str, Any] = {}
    if path.exists():
        with reading(path), open_regular(path) as file:
            table = tomllib.loads(file.read().decode("utf-8-sig"))
    for key in table:
        if key not in EXPECTED:
            near = difflib.get_close_matches(key, EXPECTED, 1)
            raise FeedError(f"{path}: no key '{key}'; " + (f"did you mean '{near[0]}'?" if near else f"it has {KEYS}"))
    return {
        key: _setting(key, value, "" if key in given else f"{path}: ") for key, value in (table | dict(given)).items()
    }


def _setting(key: str, value: Any, where: str) -> Any:
    if key in CHOICES:
        valid = value in CHOICES[key]
    elif key == "size":
        valid = isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    else:
        try:
            numbers = np.asarray(value)
            valid = numbers.dtype.kind in "iuf" and numbers.ndim <= (key != "scale") and np.isfinite(numbers).all()
        except ValueError:
            valid = False
        valid = valid and numbers.size > 0 and not (key == "std" and (numbers == 0).any())
    if not valid:
        raise FeedError(f"{where}{key} = {value!r}; expected {EXPECTED[key]}")
    if key in ("mean", "std"):
        return tuple(float(number) for number in numbers.ravel())
    return tuple(value) if key == "size" else value
