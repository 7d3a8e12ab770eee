from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze.errors import ModelError, PassError
from onnxsqueeze.ir.dtypes import bits, element_type, numpy_type, pack, unpack
from onnxsqueeze.ir.external import DataFolder
from onnxsqueeze.ir.weights import Derived, Sparse, Stored, peek

KINDS = {name: kind for name, kind in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")}


def sample(kind: int, count: int = 5) -> np.ndarray[Any, Any]:
    values = np.arange(count) % 2
    return values.astype(helper.tensor_dtype_to_np_dtype(kind))


def external(folder: Path, *, dims: tuple[int, ...] = (2,), **entries: object) -> Stored:
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    return Stored(proto, DataFolder(folder))


@pytest.mark.parametrize("name", KINDS)
def test_raw_and_typed_values_of_every_element_type_are_read(name: str) -> None:
    kind = KINDS[name]
    expected = sample(kind)
    raw = Stored(numpy_helper.from_array(expected, "w"))
    typed = Stored(helper.make_tensor("w", kind, [5], expected.tolist()))

    for stored in (raw, typed):
        assert stored.dtype == expected.dtype == stored.load().dtype
        assert repr(stored.load().tolist()) == repr(expected.tolist())
        assert bytes(stored.data()) == raw.proto.raw_data
        assert stored.nbytes == len(raw.proto.raw_data)


@pytest.mark.parametrize("name", KINDS)
def test_packing_and_numbering_agree_with_onnx(name: str) -> None:
    kind = KINDS[name]
    dtype = numpy_type(kind)

    assert dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert element_type(dtype) == element_type(kind) == kind
    assert bytes(pack(sample(kind, 7))) == numpy_helper.from_array(sample(kind, 7)).raw_data


@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 8), max_size=3), st.randoms(use_true_random=False))
def test_unpacking_undoes_packing(name: str, shape: list[int], random: Any) -> None:
    dtype = numpy_type(KINDS[name])
    assert dtype is not None
    count = int(np.prod(shape))
    width = min(bits(dtype), 8)
    codes = [random.getrandbits(width) for _ in range(count * max(1, bits(dtype) // 8))]
    if dtype == np.bool_:
        codes = [code & 1 for code in codes]
    array = np.array(codes, np.uint8).view(dtype).reshape(shape)
    data = pack(array)

    assert len(data) == -(-count * bits(dtype) // 8)
    assert bytes(pack(unpack(data, dtype, shape))) == bytes(data)
    assert unpack(data, dtype, shape).shape == tuple(shape)


def test_big_endian_and_strided_arrays_are_packed_in_c_order_and_little_endian() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T

    assert bytes(pack(array)) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()
    assert element_type(array.dtype) == TensorProto.INT32


def test_a_numpy_type_that_onnx_lacks_is_named() -> None:
    with pytest.raises(ModelError, match="datetime64"):
        element_type(np.dtype("datetime64[s]"))


def test_strings_are_text_where_they_can_be() -> None:
    stored = Stored(TensorProto(name="w", data_type=8, dims=[1, 2], string_data=["ü".encode(), b"\xff"]))

    assert stored.load().tolist() == [["ü", b"\xff"]]
    assert list(stored.tensor.string_data) == ["ü".encode(), b"\xff"]


def test_peek_neither_pins_nor_lets_write_and_values_pins() -> None:
    constant = gs.Constant("w", Stored(numpy_helper.from_array(np.arange(3.0), "w")))
    view = peek(constant)

    assert isinstance(constant._values, Stored)
    assert not view.flags.writeable
    constant.values[0] = 7
    assert constant._values.tolist() == [7, 1, 2]
    assert not peek(constant).flags.writeable
    assert peek(constant).tolist() == [7, 1, 2]
    assert view.tolist() == [0, 1, 2]


def test_peek_at_external_data_is_a_view_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"xxx" + np.array([1.5, 2.5], "<f4").tobytes())
    stored = external(tmp_path, location="d", offset=3)
    view = stored.peek()

    assert view.tolist() == [1.5, 2.5]
    assert not view.flags.owndata
    assert stored.load().flags.writeable


def test_a_derived_weight_is_computed_each_time_and_never_handed_out_for_writing_to_the_source() -> None:
    calls = []
    source = np.arange(4, dtype=np.int8)
    weight = Derived([4], "int8", lambda: calls.append(1) or source)  # type: ignore[func-returns-value]

    assert not calls
    weight.load()[0] = 9
    assert source[0] == 0
    assert not weight.peek().flags.writeable
    assert source.flags.writeable
    assert len(calls) == 2
    assert (weight.shape, weight.dtype, weight.nbytes) == ((4,), np.dtype("int8"), 4)


def test_a_derived_int4_weight_counts_half_a_byte_each() -> None:
    weight = Derived((3,), numpy_type(TensorProto.INT4), lambda: sample(TensorProto.INT4, 3))

    assert weight.nbytes == len(weight.data()) == 2


@pytest.mark.parametrize("array", [np.zeros(3, np.float64), np.zeros((3, 1), np.float32)])
def test_a_derived_weight_that_breaks_its_promise_is_our_bug(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(PassError, match=r"promised float32\[3\]"):
        Derived((3,), np.float32, lambda: array).load()


@pytest.mark.parametrize(
    "proto",
    [
        TensorProto(name="w", data_type=1, dims=[2**31, 2**31], raw_data=b"\0" * 8),
        TensorProto(name="w", data_type=1, dims=[2**40]),
        TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2]),
        TensorProto(name="w", data_type=1, dims=[3], raw_data=b"\0" * 16),
        TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"a"]),
        TensorProto(name="w", data_type=TensorProto.INT4, dims=[3], int32_data=[1]),
        TensorProto(name="w", data_type=TensorProto.COMPLEX64, dims=[2], float_data=[1, 2, 3]),
        TensorProto(name="w", data_type=1, dims=[-1]),
    ],
)
def test_a_shape_that_the_data_does_not_fill_is_refused_before_it_is_allocated(proto: TensorProto) -> None:
    with pytest.raises(ModelError, match="tensor 'w'"):
        Stored(proto)


@pytest.mark.parametrize(
    "proto",
    [
        TensorProto(name="w", data_type=99, dims=[2], raw_data=b"ab"),
        TensorProto(name="w", data_type=0, dims=[2]),
        TensorProto(name="w", data_type=1, dims=[4], segment=TensorProto.Segment(begin=0, end=1), raw_data=b"abcd"),
    ],
)
def test_a_tensor_that_cannot_be_read_says_so_only_when_read(proto: TensorProto) -> None:
    stored = Stored(proto)

    with pytest.raises(ModelError, match=r"'w' .* cannot be read"):
        stored.load()


def test_external_data_must_fit_the_file_and_the_shape(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(12))

    with pytest.raises(ModelError, match=r"'d' is too short for tensor 'w': it ends at byte 12, but 16 are needed"):
        external(tmp_path, location="d", offset=8).load()
    with pytest.raises(ModelError, match=r"too short for tensor 'w'"):
        external(tmp_path, location="d", dims=(2**40,)).load()
    with pytest.raises(ModelError, match=r"needs 8 bytes, but its external data entry says 12"):
        external(tmp_path, location="d", length=12).load()
    with pytest.raises(ModelError, match=r"needs 8 bytes.* at offset -4"):
        external(tmp_path, location="d", offset=-4).load()
    with pytest.raises(ModelError, match="not a number"):
        external(tmp_path, location="d", offset="0x10").load()
    with pytest.raises(ModelError, match="'e' of tensor 'w' is missing"):
        external(tmp_path, location="e").load()
    with pytest.raises(ModelError, match="folder is not known"):
        Stored(external(tmp_path, location="d").proto).load()


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../d", "a/../../d", "sub/../e", "..\\d", "C:\\d", "C:d", "", "d\0", "."]
)
def test_external_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "d").write_bytes(bytes(8))
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "e").write_bytes(bytes(8))
    stored = external(tmp_path / "m", location=location)

    with pytest.raises(ModelError, match="tensor 'w'"):
        stored.load()


def test_a_link_may_point_within_the_folder_but_not_out_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "sub" / "data").write_bytes(np.ones(2, "<f4").tobytes())
    (folder / "inside").symlink_to("sub/data")
    (folder / "outside").symlink_to("../secret")
    (folder / "up").symlink_to("..")

    assert external(folder, location="inside").load().tolist() == [1, 1]
    assert external(folder, location="sub/data").load().tolist() == [1, 1]
    for location in ("outside", "up/secret"):
        with pytest.raises(ModelError, match="a link that leaves the model's folder"):
            external(folder, location=location).load()


def test_a_pipe_is_not_opened_as_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d")

    with pytest.raises(ModelError, match="'d' of tensor 'w'"):
        external(tmp_path, location="d").load()


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "d").write_bytes(np.ones(2, "<f4").tobytes())
    (tmp_path / "link").symlink_to("m")

    assert external(tmp_path / "link", location="d").load().tolist() == [1, 1]


def test_sparse_values_become_dense_in_their_own_type() -> None:
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float16), "w")
    linear = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]), [2, 3])
    pairs = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2]), [2, 3])

    for proto in (linear, pairs):
        assert Sparse(proto).load().tolist() == [[0, 1.5, 0], [0, 0, 2.5]]
        assert Sparse(proto).load().dtype == np.float16


def test_sparse_values_out_of_range_or_without_bound_are_refused() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    outside = onnx.SparseTensorProto(values=values, dims=[2])
    outside.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [9]))
    huge = onnx.SparseTensorProto(values=values, dims=[2**20, 2**20])
    huge.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [9]))

    with pytest.raises(ModelError, match="indices outside"):
        Sparse(outside).load()
    with pytest.raises(ModelError, match="too big to be made dense"):
        Sparse(huge).load()
