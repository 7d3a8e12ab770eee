from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.reading import find_beside, read
from onnxsqueeze.feeds.types import Feeds, Input, inputs_of

Array = npt.NDArray[Any]


def wants(name: str, *shape: int | str | None, dtype: Any = np.float32) -> Input:
    return Input(name, np.dtype(dtype), shape)


X = wants("x", "batch", 3)
X1 = wants("x", 1, 3)
X4 = wants("x", 4, 3)
IDS = wants("ids", "batch", "seq", dtype=np.int64)
PICTURE = wants("image", "n", 3, 8, 6)


def ramp(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path, count: int = 3, **extra: Any) -> Path:
    path.mkdir(exist_ok=True)
    for index in range(count):
        npz(path / f"{index:03}.npz", x=np.full((1, 3), index, np.float32), **extra)
    return path


def picture(path: Path, width: int = 6, height: int = 8, color: Any = (255, 128, 0), mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, (width, height), color).save(path)
    return path


def test_the_inputs_of_a_model_are_those_that_are_no_initializers() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [
            value("x", TensorProto.FLOAT, ["batch", None, 0, -1, 5]),
            value("w", TensorProto.FLOAT, [5]),
            value("sr", TensorProto.INT64, []),
            value("any", TensorProto.BFLOAT16, None),
        ],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(ramp(5), "w")],
    )

    assert inputs_of(helper.make_model(graph)) == (
        wants("x", "batch", None, None, None, 5),
        wants("sr", dtype=np.int64),
        Input("any", np.dtype(ml_dtypes.bfloat16), None),
    )


def test_an_input_that_is_no_tensor_is_an_error_only_when_it_has_to_be_fed() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    inputs = inputs_of(helper.make_model(helper.make_graph([], "g", [sequence], [])))

    assert [wanted.name for wanted in inputs] == ["s"]
    with pytest.raises(FeedError, match="'s' is not a dense tensor"):
        read("random", inputs)


# Formats.


def test_a_folder_of_npz_is_one_feed_a_file_in_the_order_of_the_names(tmp_path: Path) -> None:
    source = folder(tmp_path / "calib")
    npz(source / "b.npz", x=ramp(5, 3))
    (source / "._000.npz").write_bytes(b"left by a file manager")
    (source / "README.txt").write_text("not read")

    data = read(str(source), [X])

    assert [feed["x"].shape for feed in data] == [(1, 3), (1, 3), (1, 3), (5, 3)]
    assert [feed["x"][0, 0] for feed in data] == [0, 1, 2, 0]
    assert data.source == "4 feeds from calib/"
    assert not data.invented


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_npz_is_cut_into_samples(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "digits.npz", x=ramp(3, 3), mask=np.ones((3, 1), np.int64))

    data = read(tmp_path / "digits.npz", [X1, wants("mask", 1, None, dtype=np.int64)])

    assert len(data) == 3
    assert [feed["x"].tolist() for feed in data] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]]]
    assert data[2]["mask"].shape == (1, 1)
    assert data[0]["x"].flags.writeable
    assert data.source == "3 samples of digits.npz"


@pytest.mark.parametrize(
    ("samples", "wanted", "sizes", "words"),
    [
        (1, X, [1], "1 sample of d.npz"),
        (10, X, [1] * 10, "10 samples of d.npz"),
        (20, X, [2] * 10, "20 samples of d.npz"),
        (68, X, [8] * 8 + [4], "68 samples of d.npz"),
        (8, X4, [4, 4], "8 samples of d.npz"),
        (10, X4, [4, 4], "8 samples of d.npz (2 left over: the model takes 4 at a time)"),
        (4, X4, [4], "1 feed from d.npz"),
        (20, Input("x", np.dtype(np.float32), None), [1] * 20, "20 samples of d.npz"),
    ],
)
def test_samples_share_a_feed_as_far_as_the_model_allows(
    tmp_path: Path, samples: int, wanted: Input, sizes: list[int], words: str
) -> None:
    data = read(npz(tmp_path / "d.npz", x=ramp(samples, 3)), [wanted])

    assert [len(feed["x"]) for feed in data] == sizes
    assert np.array_equal(np.concatenate([feed["x"] for feed in data]), ramp(samples, 3)[: sum(sizes)])
    assert data.source == words


def test_arrays_without_the_samples_axis_are_repeated(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=ramp(64, 3), sr=np.array(16000), table=ramp(5, 2))

    data = read(path, [X, wants("sr", dtype=np.int64), wants("table", 5, 2)])

    assert [len(feed["x"]) for feed in data] == [8] * 8
    assert {int(feed["sr"]) for feed in data} == {16000}
    assert all(np.array_equal(feed["table"], ramp(5, 2)) for feed in data)


def test_a_state_that_fits_as_it_is_is_no_sample_and_keeps_the_batch_at_one(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=ramp(2, 3), state=ramp(2, 1, 4))
    many = npz(tmp_path / "m.npz", x=ramp(64, 3), state=ramp(2, 1, 4))
    inputs = [wants("x", None, None), wants("state", 2, None, 4)]

    for data, count in ((read(path, inputs), 2), (read(many, inputs), 64)):
        assert [feed["x"].shape for feed in data] == [(1, 3)] * count
        assert {feed["state"].shape for feed in data} == {(2, 1, 4)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_in_column_order_is_cut_into_the_same_samples(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "d.npz", x=np.asfortranarray(ramp(20, 3)))

    data = read(tmp_path / "d.npz", [X])

    assert np.array_equal(np.concatenate([feed["x"] for feed in data]), ramp(20, 3))
    assert {feed["x"].shape for feed in data} == {(2, 3)}
    assert all(feed["x"].flags.c_contiguous for feed in data)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_can_be_read_in_any_order(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "d.npz", x=ramp(300, 3), y=-ramp(300, 3))
    data = read(tmp_path / "d.npz", [X1, wants("y", 1, 3)])

    for index in (299, 0, 150, 7, -1, 8):
        assert np.array_equal(data[index]["x"][0], ramp(300, 3)[index])
        assert np.array_equal(data[index]["y"][0], -ramp(300, 3)[index])


def test_an_npy_is_mapped_and_cut_into_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(5, 3))

    data = read(tmp_path / "a.npy", [X1])

    assert np.array_equal(np.concatenate([feed["x"] for feed in data]), ramp(5, 3))
    assert not isinstance(data[0]["x"], np.memmap)
    assert data.source == "5 samples of a.npy"


@pytest.mark.parametrize("named", [True, False])
def test_onnx_test_data_is_matched_by_name_or_else_by_position(tmp_path: Path, named: bool) -> None:
    for index in range(11):
        (tmp_path / f"test_data_set_{index}").mkdir()
        tensors = [numpy_helper.from_array(np.full((1, 3), index, np.float32), "x" if named else "")]
        tensors.insert(0 if named else 1, numpy_helper.from_array(np.array([[index]]), "ids" if named else "other"))
        for position, tensor in enumerate(tensors):
            path = tmp_path / f"test_data_set_{index}" / f"input_{position}.pb"
            path.write_bytes(tensor.SerializeToString())
    picture(tmp_path / "preview.png")

    data = read(tmp_path, [X, IDS])

    assert [int(feed["x"][0, 0]) for feed in data] == list(range(11))
    assert [int(feed["ids"][0, 0]) for feed in data] == list(range(11))
    assert data.source == f"11 test data sets from {tmp_path.name}/"
    assert len(read(tmp_path / "test_data_set_7", [X, IDS])) == 1


def test_random_feeds_are_seeded_typed_and_marked_as_invented() -> None:
    inputs = [
        wants("image", "n", 3, "h", "w"),
        wants("nhwc", None, None, None, 3, dtype=np.float16),
        IDS,
        wants("mask", "batch", "seq", dtype=np.bool_),
        wants("state", 2, None, 128, dtype=ml_dtypes.bfloat16),
        wants("sr", dtype=np.int32),
        wants("tokens", 1, "h", dtype=np.uint8),
    ]

    data = read("random", inputs, seed=3)

    assert len(data) == 8
    assert data.invented
    assert data.split()[1].invented
    shapes = [(1, 3, 64, 64), (1, 64, 64, 3), (1, 16), (1, 16), (2, 1, 128), (), (1, 64)]
    assert [array.shape for array in data[0].values()] == shapes
    assert all(feed[wanted.name].dtype == wanted.dtype for feed in data for wanted in inputs)
    assert {int(token) for feed in data for token in feed["ids"].flat} == {0, 1}
    assert abs(float(data[0]["image"].std()) - 1) < 0.05
    same, other = read("random", inputs, seed=3), read("random", inputs, seed=4)
    assert all(np.array_equal(data[5][key], same[5][key]) for key in data[5])
    assert not np.array_equal(data[5]["image"], other[5]["image"])
    assert not np.array_equal(data[5]["image"], data[6]["image"])


def test_a_generator_of_dicts_is_consumed_once_and_can_be_read_again() -> None:
    pulled: list[int] = []

    def generate() -> Iterator[dict[str, Array]]:
        for index in range(3):
            pulled.append(index)
            yield {"x": np.full((1, 3), index, np.float32)}

    data = read(generate(), [X])

    assert [int(feed["x"][0, 0]) for feed in data] == [0, 1, 2]
    assert [int(feed["x"][0, 0]) for feed in data] == [0, 1, 2]
    assert pulled == [0, 1, 2]
    assert data.source == "3 feeds"


def test_python_may_give_a_dict_an_array_or_feeds() -> None:
    one = read({"x": [[1, 2, 3.5]]}, [X])
    samples = read(ramp(10, 3), [X1])

    assert one[0]["x"].dtype == np.float32
    assert (len(one), one.source) == (1, "1 feed")
    assert (len(samples), samples.source) == (10, "10 samples of an array")
    assert read(samples, [X])[9]["x"].tolist() == [[27, 28, 29]]
    with pytest.raises(FeedError, match=r"takes float32\[1, 4\]"):
        read(samples, [wants("x", 1, 4)])


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.float32, ml_dtypes.bfloat16),
        (">f4", np.float32),
        (np.int32, np.int64),
        (np.uint8, np.int32),
    ],
)
def test_a_safe_change_of_type_is_silent(found: Any, wanted: Any) -> None:
    feed = read({"x": np.array([[1, 2, 3]], found)}, [wants("x", 1, 3, dtype=wanted)])[0]

    assert feed["x"].dtype == np.dtype(wanted)
    assert feed["x"].astype(float).tolist() == [[1, 2, 3]]


def test_text_and_infinities_pass(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", t=np.array([["a", "b"]]), x=np.array([[1, -np.inf, np.inf]], np.float32))

    feed = read(path, [wants("t", 1, 2, dtype=object), X1])[0]

    assert feed["t"].tolist() == [["a", "b"]]
    assert feed["t"].dtype == object
    assert np.isinf(feed["x"]).sum() == 2


def test_data_beside_the_model_is_found_by_its_name(tmp_path: Path) -> None:
    model = tmp_path / "net.v2.onnx"
    assert find_beside(model, [X]) is None
    with pytest.raises(FeedError, match="there is no calibration data; give a folder"):
        read(None, [X], model_path=model)

    folder(tmp_path / "net.v2.calib")
    beside = find_beside(model, [X])
    assert beside is not None
    assert beside.source == "3 feeds from net.v2.calib/"
    npz(tmp_path / "net.v2.calib.npz", x=ramp(2, 3))
    assert read(None, [X], model_path=model).source == "2 samples of net.v2.calib.npz"


# Images.


def test_an_image_becomes_scaled_channels_in_the_layout_of_the_input(tmp_path: Path) -> None:
    picture(tmp_path / "calib" / "a.png")
    picture(tmp_path / "calib" / "b.JPG")

    data = read(tmp_path / "calib", [PICTURE])
    last = read(tmp_path / "calib", [wants("image", 1, 8, 6, 3)], mean=[1, 0, 0], std=[0.5, 1, 1], scale=1)

    assert data.source == "2 images from calib/"
    assert data[0]["image"].shape == (1, 3, 8, 6)
    assert data[0]["image"].dtype == np.float32
    np.testing.assert_allclose(data[0]["image"][0, :, 4, 3], [1, 128 / 255, 0], rtol=1e-6)
    assert last[0]["image"].shape == (1, 8, 6, 3)
    np.testing.assert_allclose(last[0]["image"][0, 4, 3], [508, 128, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "pixel"),
    [
        (wants("i", 1, 3, 8, 6, dtype=np.uint8), [255, 128, 0]),
        (wants("i", 1, 1, 8, 6, dtype=np.uint8), [151]),
        (wants("i", 1, 4, 8, 6, dtype=np.uint8), [255, 128, 0, 255]),
        (wants("i", 1, 3, 8, 6, dtype=np.float16), [1, np.float16(128 / 255), 0]),
    ],
)
def test_the_input_decides_on_type_and_channels(tmp_path: Path, wanted: Input, pixel: list[float]) -> None:
    picture(tmp_path / "calib" / "a.png")

    feed = read(tmp_path / "calib", [wanted])[0]["i"]

    assert feed.dtype == wanted.dtype
    assert feed[0, :, 0, 0].tolist() == pixel


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "bmp"), ("P", "png"), ("CMYK", "jpeg"), ("LA", "png"), ("RGBA", "webp")],
)
def test_every_kind_of_image_can_be_read(tmp_path: Path, mode: str, suffix: str) -> None:
    (tmp_path / "calib").mkdir()
    Image.new("L", (6, 8), 255).convert(mode).save(tmp_path / "calib" / f"a.{suffix}")

    assert np.allclose(read(tmp_path / "calib", [PICTURE])[0]["image"], 1, atol=0.02)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "calib").mkdir()
    image = Image.new("P", (6, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "calib" / "a.png", transparency=bytes([0, 128]))

    assert (read(tmp_path / "calib", [PICTURE])[0]["image"] == 1).all()


def test_calib_toml_prepares_the_images_and_arguments_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "calib"
    picture(path / "a.png")
    (path / "calib.toml").write_text('mean = 10\nstd = [1, 2, 4]\nscale = 1\norder = "bgr"\nsize = [4, 2]\n')
    wanted = [wants("image", 1, 3, "h", "w")]

    feed, won = read(path, wanted)[0]["image"], read(path, wanted, mean=0)[0]["image"]

    assert feed.shape == (1, 3, 4, 2)
    assert feed[0, :, 0, 0].tolist() == [-10, 59, 61.25]
    assert won[0, :, 0, 0].tolist() == [0, 64, 63.75]


def test_layout_in_calib_toml_settles_an_open_shape(tmp_path: Path) -> None:
    path = tmp_path / "calib"
    picture(path / "a.png", 70, 40)
    (path / "calib.toml").write_text('layout = "nhwc"')

    assert read(path, [wants("i", None, None, None, None)])[0]["i"].shape == (1, 32, 64, 3)
    assert read(path, [Input("i", np.dtype(np.float32), None)])[0]["i"].shape == (1, 32, 64, 3)


@pytest.mark.parametrize(
    ("sides", "size"),
    [(("h", "w"), (96, 192)), ((48, "w"), (48, 96)), (("h", 64), (32, 64)), ((5, 7), (5, 7)), ((2, "w"), (2, 32))],
)
def test_an_open_side_follows_the_image_in_steps_of_32(
    tmp_path: Path, sides: tuple[int | str, int | str], size: tuple[int, int]
) -> None:
    picture(tmp_path / "calib" / "a.png", width=200, height=100)

    assert read(tmp_path / "calib", [wants("i", 1, 3, *sides)])[0]["i"].shape[2:] == size


def test_crop_keeps_the_proportions_and_stretch_does_not(tmp_path: Path) -> None:
    path = tmp_path / "calib"
    path.mkdir()
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 8:16] = 255
    Image.fromarray(stripes).save(path / "a.png")
    wanted = [wants("i", 1, 3, 8, 8)]

    stretched = read(path, wanted)[0]["i"]
    (path / "calib.toml").write_text('resize = "crop"')
    cropped = read(path, wanted)[0]["i"]

    assert 0.2 < stretched.mean() < 0.45
    assert cropped.min() == 1


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "calib").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "calib" / "a.jpg", exif=exif)

    assert read(tmp_path / "calib", [wants("i", 1, 3, "h", "w")])[0]["i"].shape == (1, 3, 64, 32)


def test_a_fixed_batch_takes_several_images_and_says_what_is_left_over(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / "calib" / f"{index}.png", color=(index, 0, 0))

    data = read(tmp_path / "calib", [wants("i", 2, 3, 8, 6)], scale=1)

    assert [feed["i"][:, 0, 0, 0].tolist() for feed in data] == [[0, 1], [2, 3]]
    assert data.source == "4 images from calib/ (1 left over: the model takes 2 at a time)"


# Sequence.


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_a_split_is_disjoint_complete_evenly_spread_and_deterministic(count: int) -> None:
    data = Feeds("s", (X,), lambda index: ("", {"x": np.full((1, 3), index, np.float32)}), range(count))
    calibration, held = data.split()
    if count == 1:
        assert held.shared
        assert not calibration.shared
        assert list(calibration.order) == list(held.order) == [0]
        return

    assert sorted([*calibration.order, *held.order]) == list(range(count))
    assert list(calibration.order) == sorted(calibration.order)
    assert 1 <= len(held) <= 64
    assert len(held) in (1, 64) or abs(len(held) - count / 8) <= 0.5
    step = count / len(held)
    assert all(part * step - 1 <= index < (part + 1) * step for part, index in enumerate(held.order))
    assert not held.shared
    assert [list(half.order) for half in data.split()] == [list(calibration.order), list(held.order)]


def test_the_parts_of_a_split_and_slices_read_the_feeds_they_name(tmp_path: Path) -> None:
    data = read(folder(tmp_path / "calib", 16), [X])

    calibration, held = data.split()

    assert [int(feed["x"][0, 0]) for feed in held] == [4, 12]
    assert [int(feed["x"][0, 0]) for feed in calibration] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15]
    assert [int(feed["x"][0, 0]) for feed in data[1:4]] == [1, 2, 3]
    assert int(data[-1]["x"][0, 0]) == 15
    assert held.source == data.source
    with pytest.raises(IndexError):
        data[16]


def test_a_feed_touches_its_own_file_only(tmp_path: Path) -> None:
    source = folder(tmp_path / "calib")
    for index in (1, 2):
        (source / f"{index:03}.npz").write_bytes(b"damaged")

    data = read(source, [X])

    assert data[0]["x"].tolist() == [[0, 0, 0]]
    with pytest.raises(FeedError, match=r"001\.npz cannot be read"):
        data[1]
    (source / "000.npz").unlink()
    folder(source)
    assert data[1]["x"].tolist() == [[1, 1, 1]]


def test_an_image_is_opened_only_when_its_feed_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "calib" / "a.png")
    (tmp_path / "calib" / "b.png").write_bytes(b"damaged")

    data = read(tmp_path / "calib", [PICTURE])

    assert data[0]["image"].shape == (1, 3, 8, 6)
    with pytest.raises(FeedError, match=r"b\.png cannot be read"):
        data[1]


def test_every_feed_is_checked_on_access_and_an_error_does_not_end_the_iteration() -> None:
    def load(index: int) -> tuple[str, dict[str, Array]]:
        raise IndexError("a defect")

    data = read([{"x": ramp(1, 3)}, {"x": ramp(1, 4)}], [X])
    assert data[0]["x"].shape == (1, 3)
    with pytest.raises(FeedError, match="feed 1: 'x' takes"):
        data[1]
    with pytest.raises(IndexError, match="a defect"):
        list(Feeds("s", (X,), load, range(1)))


def test_memory_holds_one_feed_of_a_big_compressed_npz(tmp_path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((64, 1 << 18), np.float32))
    tracemalloc.start()
    total = sum(feed["x"].size for feed in read(tmp_path / "d.npz", [wants("x", 1, "width")]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert total == 64 << 18
    assert peak < 16 << 20


# Errors.


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({}, r"feed 0: no array for the input 'x', float32\[batch, 3\]; add one"),
        ({"xx": ramp(1, 3)}, "feed 0: the model has no input 'xx'; did you mean 'x'"),
        ({"x": ramp(1, 3), "labels": ramp(1)}, "no input 'labels'; the model has 'x'"),
        ({"x": ramp(3)}, r"'x' takes float32\[batch, 3\], found shape \[3\]; add a leading axis"),
        ({"x": ramp(1, 3, 1)}, r"found shape \[1, 3, 1\]; resize or reshape"),
        ({"x": ramp(1, 4)}, r"'x' takes float32\[batch, 3\], found shape \[1, 4\]; resize or reshape"),
        ({"x": np.ones((1, 3), np.uint8)}, r"takes float32\[batch, 3\], found uint8; convert"),
        ({"x": np.array([["a", "b", "c"]])}, "found str32; convert"),
        ({"x": np.array([[1, 2, None]])}, "found object; convert"),
        ({"x": [[1, 2], [3]]}, "feed 0: 'x' is no array"),
        ({"x": np.array([[0, 1, 2], [3, np.nan, 5]], np.float32)}, r"feed 0: 'x' is NaN at \[1, 1\]; repair"),
        ({"x": np.array([[1e39, 1, 1]])}, "has values too large for float32"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(feed: dict[str, Any], words: str) -> None:
    with pytest.raises(FeedError, match=words):
        read(feed, [X])


@pytest.mark.parametrize(
    ("found", "wanted"), [(np.int64, np.int32), (np.int64, np.float32), (np.float32, np.int64), (np.int64, np.bool_)]
)
def test_a_change_of_type_that_may_lose_something_is_refused(found: Any, wanted: Any) -> None:
    with pytest.raises(FeedError, match=f"found {np.dtype(found)}; convert"):
        read({"x": np.ones(3, found)}, [wants("x", 3, dtype=wanted)])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "calibration data is of type int; give dicts"),
        ([ramp(1, 3)], "feed 0 is of type ndarray; give a dict"),
        ([], "0 feeds: calibration needs at least one"),
        (ramp(0, 3), "an array has 0 samples"),
        (np.array(1, np.float32), "found shape"),
    ],
)
def test_python_data_of_the_wrong_kind_is_refused(source: Any, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        read(source, [X])


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _text(path: Path, text: str = "text") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def _objects(path: Path) -> Path:
    return npz(path, x=np.array([{"a": 1}], object))


def _structured(path: Path) -> Path:
    with pytest.warns(UserWarning, match="format 3.0"):
        return npz(path, x=np.zeros(3, [("\u5b57", "f4")]))


def _truncated(path: Path) -> Path:
    np.savez(path, x=np.zeros((1000, 3), np.float32))
    path.write_bytes(path.read_bytes()[:-300])
    return path


def _claim(path: Path, shape: tuple[int, ...], by_column: bool = False) -> Path:
    """Write an npz that is nothing but a header."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": by_column, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    return path


def _mixed(path: Path) -> Path:
    picture(folder(path) / "a.png")
    return path


def _proto(path: Path, name: str = "x", number: int = 0, twice: bool = False, external: bool = False) -> Path:
    path.mkdir()
    tensor = numpy_helper.from_array(ramp(1, 3), name)
    if external:
        tensor.data_location = onnx.TensorProto.EXTERNAL
    for index in (number, number + 1)[: 1 + twice]:
        (path / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none", "none: no such file or folder; give a folder of"),
        (lambda p: _empty(p / "calib"), "calib holds no calibration data; looked for .npz files, images and test"),
        (lambda p: _mixed(p / "calib"), "calib holds .npz files and images; keep one kind"),
        (lambda p: _text(p / "a.csv"), "a.csv is no calibration data; give"),
        (lambda p: _text(p / "a.npz"), "a.npz cannot be read: File is not a zip file"),
        (lambda p: _text(p / "a.npy"), "a.npy cannot be read"),
        (lambda p: _truncated(p / "a.npz"), "a.npz cannot be read"),
        (lambda p: _objects(p / "a.npz"), "a.npz: 'x' holds Python objects"),
        (lambda p: _objects(folder(p / "calib") / "000.npz").parent, "000.npz: 'x' holds Python objects"),
        (lambda p: npz(p / "a.npz", x=ramp(0, 3)), "a.npz has 0 samples"),
        (lambda p: npz(p / "a.npz", z=ramp(2, 3)), "a.npz: the model has no input 'z'"),
        (lambda p: npz(p / "a.npz"), "a.npz: no array for the input 'x'"),
        (lambda p: npz(p / "a.npz", x=np.full((9, 3), np.nan)), r"a.npz, samples 0 to 0: 'x' is NaN at \[0, 0\]"),
        (lambda p: _structured(p / "a.npz"), "a.npz: 'x' is in npy format 3.0; save plain numbers"),
        (lambda p: _claim(p / "a.npz", (1, 1 << 40)), r"a.npz needs 4096.0 GiB at once, more than 2; use a folder"),
        (lambda p: _claim(_empty(p / "c") / "a.npz", (1 << 40, 3)).parent, "a.npz needs 12288.0 GiB at once"),
        (lambda p: _claim(p / "a.npz", (3, 1 << 40), by_column=True), "a.npz needs 12288.0 GiB at once"),
        (lambda p: _claim(p / "a.npz", (1 << 40, 3)), "a.npz cannot be read: buffer is too small"),
        (lambda p: _claim(p / "a.npz", (-1, 3)), r"'x' has the shape \[-1, 3\]"),
        (lambda p: _proto(p / "c", "y", 1), "input_1.pb: the model has no input 1 and none called 'y'"),
        (lambda p: _proto(p / "c", twice=True), "c has two tensors for the input 'x'"),
        (lambda p: _proto(p / "c", external=True), "input_0.pb keeps its values in another file"),
        (lambda p: _text(_empty(p / "c") / "input_0.pb").parent, "input_0.pb cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_sentence(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(FeedError, match=words) as caught:
        read(make(tmp_path), [X])

    assert "\n" not in str(caught.value)
    assert ("cannot be read" in str(caught.value)) == ("cannot be read" in words)


def test_one_full_batch_and_a_test_data_file_are_held_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FeedError, match=r"a\.npz needs 16384\.0 GiB at once"):
        read(_claim(tmp_path / "a.npz", (4, 1 << 40)), [X4])
    monkeypatch.setattr("onnxsqueeze.feeds.files.LIMIT", 8)
    with pytest.raises(FeedError, match=r"input_0\.pb needs"):
        read(_proto(tmp_path / "c"), [X])


def test_an_error_names_the_samples_of_a_feed(tmp_path: Path) -> None:
    samples = ramp(68, 3)
    samples[-1, 2] = np.nan
    data = read(npz(tmp_path / "a.npz", x=samples), [X])

    with pytest.raises(FeedError, match=r"a\.npz, samples 64 to 67: 'x' is NaN at \[3, 2\]"):
        data[-1]


@pytest.mark.parametrize(
    ("arrays", "inputs", "words"),
    [
        ({"x": ramp(9, 3), "ids": np.ones((8, 2), int)}, [X, IDS], "'ids' has 8 samples, but 'x' has 9; make them eq"),
        ({"x": ramp(3, 3)}, [X4], "has 3 samples, but the model takes 4 at a time"),
        ({"x": ramp(9, 3), "y": ramp(9, 3)}, [X4, wants("y", 2, 3)], "different batch sizes, 2 and 4"),
    ],
)
def test_samples_that_do_not_go_together_are_refused(
    tmp_path: Path, arrays: dict[str, Array], inputs: list[Input], words: str
) -> None:
    with pytest.raises(FeedError, match=words):
        read(npz(tmp_path / "a.npz", **arrays), inputs)


def test_a_lone_array_needs_a_model_with_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(2, 3))

    for source in (ramp(2, 3), tmp_path / "a.npy"):
        with pytest.raises(FeedError, match=r"feeds one input, but the model has 2 \('x', 'ids'\); use a folder"):
            read(source, [X, IDS])


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("meen = 1", "calib.toml: no key 'meen'; did you mean 'mean'?"),
        ("z = 1", "calib.toml: no key 'z'; it has mean, std"),
        ("mean = ", "calib.toml cannot be read"),
        ("mean = 'a'", "calib.toml: mean = 'a'; expected a number, or one for each channel"),
        ("mean = [[1], [1, 2]]", "expected a number, or one for each channel"),
        ("mean = [1, 2]", "mean has 2 numbers, but 'image' has 3 channels"),
        ("mean = []", "expected a number, or"),
        ("mean = nan", "expected a number, or"),
        ("std = [1, 0, 1]", r"std = \[1, 0, 1\]; expected a number other than 0"),
        ("scale = [1]", r"scale = \[1\]; expected a number"),
        ("order = 'gbr'", 'order = \'gbr\'; expected "rgb" or "bgr"'),
        ("size = [0, 8]", r"size = \[0, 8\]; expected \[height, width\]"),
        ("size = [16, 16]", r"size = \[16, 16\] does not fit 'image', which is float32\[n, 3, 8, 6\]; leave it out"),
        ("layout = 'nhwc'", "has 6 channels as nhwc"),
    ],
)
def test_a_bad_calib_toml_is_refused(tmp_path: Path, toml: str, words: str) -> None:
    picture(tmp_path / "calib" / "a.png")
    (tmp_path / "calib" / "calib.toml").write_text(toml)

    with pytest.raises(FeedError, match=words):
        read(tmp_path / "calib", [PICTURE])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([PICTURE, X], r"calib holds images, but the model has 2 inputs \('image', 'x'\); use .npz"),
        ([X], r"calib holds images, but 'x' is float32\[batch, 3\], no image"),
        ([wants("x", 1, 16, 8, 8)], "no image"),
        ([wants("x", 1, "a", "b", "c")], "where are its channels? set layout in"),
        ([wants("x", 1, 3, 8, 4)], "where are its channels? set layout in"),
        ([wants("x", 1, 3, 8, 8, dtype=np.int64)], "neither float nor uint8"),
        ([wants("x", 4, 3, 8, 8)], "calib has 2 images, but the model takes 4 at a time"),
        ([wants("x", 2, 3, "h", "w")], "and the next 1 differ in size; set size"),
    ],
)
def test_images_need_a_model_that_takes_them(tmp_path: Path, inputs: list[Input], words: str) -> None:
    picture(tmp_path / "calib" / "a.png", 40, 40)
    picture(tmp_path / "calib" / "b.png", 80, 80)

    with pytest.raises(FeedError, match=words.replace("?", r"\?")):
        read(tmp_path / "calib", inputs)


def test_images_that_would_lose_bits_or_explode_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep, big = tmp_path / "deep", tmp_path / "big"
    picture(deep / "a.png", color=40000, mode="I;16")
    picture(big / "a.png", 20, 20)
    with pytest.raises(FeedError, match="more than 8 bits"):
        read(deep, [PICTURE])

    picture(tmp_path / "thin" / "a.png", 5000, 1)
    with pytest.raises(FeedError, match=r"a\.png needs .* GiB at once"):
        read(tmp_path / "thin", [wants("i", 1, 3, 1 << 15, "w")])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(FeedError, match=r"a\.png cannot be read: Image size"):
        read(big, [PICTURE])


def test_without_pillow_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "calib" / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)

    with pytest.raises(FeedError, match=r"need Pillow: pip install onnxsqueeze\[images\]"):
        read(tmp_path / "calib", [PICTURE])


def test_pixel_arguments_are_refused_where_they_would_be_ignored(tmp_path: Path) -> None:
    picture(tmp_path / "raw" / "a.png")

    for source in (folder(tmp_path / "calib"), npz(tmp_path / "a.npz", x=ramp(2, 3)), "random", ramp(2, 3)):
        with pytest.raises(FeedError, match="only a folder of images takes mean, scale"):
            read(source, [X], mean=0, scale=1)
    with pytest.raises(FeedError, match="gets raw pixels; leave out mean"):
        read(tmp_path / "raw", [wants("i", 1, 3, 8, 6, dtype=np.uint8)], scale=1)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (wants("x", 1, dtype=object), r"'x' is string\[1\], which cannot be drawn"),
        (Input("x", np.dtype(np.float32), None), r"'x' is float32\[...\], which cannot be drawn"),
        (wants("x", 1 << 20, 1 << 20), "'x' needs 4096.0 GiB"),
    ],
)
def test_random_refuses_what_it_cannot_draw(wanted: Input, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        read("random", [wanted])
    with pytest.raises(FeedError, match="seed -1 is negative"):
        read("random", [X], seed=-1)


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_npz_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(path, x=ramp(9, 3))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)

    try:
        assert all(feed["x"].shape == (1, 3) for feed in read(path, [X1]))
    except FeedError as error:
        assert "damaged.npz" in str(error)
