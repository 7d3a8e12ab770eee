"""Sessions of containers: tables are read where they lie, options serve more than once, and nothing crashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsqueeze
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.in_memory import in_memory

ROWS = 4100
FEED = {"i": np.array([0, 7, ROWS - 1, 2047], np.int64)}


def looking_up(folder: Path, name: str, seed: int, read_twice: bool = False) -> Path:
    """Return a container of a model that gathers rows of a table of 2^20 bytes and more, and multiplies them."""
    rng = np.random.default_rng(seed)
    table, weight = rng.normal(size=(ROWS, 64)).astype(np.float32), rng.normal(size=(64, 64)).astype(np.float32)
    nodes = [helper.make_node("Gather", [name, "i"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if read_twice:
        nodes.append(helper.make_node("ReduceSum", [name], ["s"]))
        outputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("i", TensorProto.INT64, [None])], outputs,
        [numpy_helper.from_array(table, name), numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")
    onnxsqueeze.pack(folder / f"{name}.onnx", folder / f"{name}.osq", coder="deflate")
    return folder / f"{name}.osq"


@pytest.mark.parametrize("name", ["t", "ta", "tab", "tabl"])
def test_a_table_is_read_where_it_lies_wherever_that_is(name: str, tmp_path: Path) -> None:
    packed = looking_up(tmp_path, name, 0)
    session = onnxsqueeze.session(packed)
    expected = ort.InferenceSession(packed.with_suffix(".onnx")).run(None, FEED)[0]

    held = in_memory(packed, share=True)
    assert list(held.tables) == [name]
    assert held.tables[name].flags.aligned
    for _ in range(2):
        assert np.array_equal(session.run(None, FEED)[0], expected)


def test_what_something_else_reads_is_left_to_the_runtime(tmp_path: Path) -> None:
    packed = looking_up(tmp_path, "t", 1, read_twice=True)

    assert not in_memory(packed, share=True).tables
    assert not in_memory(looking_up(tmp_path, "t", 1), share=False).tables
    found = onnxsqueeze.session(packed).run(None, FEED)
    for a, b in zip(found, ort.InferenceSession(packed.with_suffix(".onnx")).run(None, FEED), strict=True):
        assert np.array_equal(a, b)


def test_memory_that_is_given_back_is_not_that_of_tables(tmp_path: Path) -> None:
    held = in_memory(looking_up(tmp_path, "t", 2), share=True)
    before = held.tables["t"].copy()
    held.forget()

    assert np.array_equal(held.tables["t"], before)


def test_options_serve_for_several_containers(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    for name, seed in (("a", 3), ("b", 4), ("a", 5)):
        packed = looking_up(tmp_path, name, seed)
        expected = ort.InferenceSession(packed.with_suffix(".onnx")).run(None, FEED)[0]
        assert np.array_equal(onnxsqueeze.session(packed, options).run(None, FEED)[0], expected)


@pytest.mark.skipif(
    not hasattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory"), reason="it has a copy of all"
)
def test_a_session_whose_memory_is_gone_is_not_loaded_again(tmp_path: Path) -> None:
    session = onnxsqueeze.session(looking_up(tmp_path, "t", 6))

    with pytest.raises(UsageError, match="keeps its providers"):
        session.set_providers(["CPUExecutionProvider"])
    assert session.run(None, FEED)[0].shape == (4, 64)
