from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.floats.halved import HALVES, exact_half

each_type = pytest.mark.parametrize("dtype", HALVES, ids=str)


def every(dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return all 65,536 values of a 16-bit type."""
    return np.arange(65536, dtype=np.uint16).view(dtype)


@each_type
@pytest.mark.parametrize("optimize", ["none", "all"])
def test_onnx_runtime_restores_every_value_exactly(dtype: np.dtype[Any], optimize: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(dtype)
    values = every(dtype)
    held = helper.make_tensor("w", element, [65536], values.tobytes(), raw=True)
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["c", "x"], ["y"])]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy")
    outputs[0].type.tensor_type.shape.dim[0].dim_value = 65536
    graph = helper.make_graph(nodes, "g", inputs, outputs, [held])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = Session(model) if optimize == "all" else Session(model, optimize="none")
    found = session.run({"x": -np.zeros(1, np.float32)})["y"]
    expected = values.astype(np.float32)

    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.asarray(found)[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(np.asarray(found)[~numbers]).all()


@each_type
def test_every_value_of_a_16_bit_type_is_found_to_be_one_and_its_neighbours_are_not(dtype: np.dtype[Any]) -> None:
    values = every(dtype).astype(np.float32)
    numbers = values[np.isfinite(values)]

    assert exact_half(numbers) == dtype
    for wrong in np.nextafter(numbers, np.float32(np.inf))[::97]:
        if np.isfinite(wrong):
            spoilt = numbers.copy()
            spoilt[-1] = wrong
            assert exact_half(spoilt) is None


def test_nan_belongs_to_no_type() -> None:
    assert exact_half(np.array([1, np.nan], np.float32)) is None
    assert exact_half(np.array([1, np.inf, -0.0], np.float32)) == np.float16
    assert exact_half(np.array([1e30], np.float32)) is None
    assert exact_half(np.array([2.0**100], np.float32)) == ml_dtypes.bfloat16
