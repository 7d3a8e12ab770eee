"""Weights that stay integers in memory: what ONNX Runtime makes of them, and what a process then takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.check import breaches
from onnxsqueeze.engine.result import Result
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.runtime.memory import memory
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.quantization.emit.lean import can_be_lean

LINUX = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
Arrays = Mapping[str, NDArray[np.generic]]


def model(nodes: list[onnx.NodeProto], weights: Arrays, shape: list[int], output: str) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), (output, None))]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(*shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(sum(shape))
    return np.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), np.float32)


def feeds(shape: list[int], count: int = 8) -> list[dict[str, NDArray[np.float32]]]:
    return [{"x": np.random.default_rng(i).normal(size=shape).astype(np.float32)} for i in range(count)]


def kept(made: Result) -> int:
    return sum(site.action == "kept in 8 bits" for step in made.report.steps for site in step.done)


def optimized(made: Result, tmp_path: Path) -> onnx.GraphProto:
    Session(made.graph, optimized=tmp_path / "optimized.onnx")
    return onnx.load(tmp_path / "optimized.onnx").graph


NODE = helper.make_node
MODELS = {
    "Conv": model([NODE("Conv", ["x", "w"], ["y"])], {"w": normal(128, 64, 3, 3)}, [1, 64, 4, 4], "y"),
    "ConvTranspose": model(
        [NODE("ConvTranspose", ["x", "w"], ["y"])], {"w": normal(64, 128, 3, 3)}, [1, 64, 4, 4], "y"
    ),
    "Gemm": model([NODE("Gemm", ["x", "w"], ["y"])], {"w": normal(256, 192)}, [4, 256], "y"),
    "Gemm transposed": model([NODE("Gemm", ["x", "w"], ["y"], transB=1)], {"w": normal(192, 256)}, [4, 256], "y"),
    "MatMul": model([NODE("MatMul", ["x", "w"], ["y"])], {"w": normal(256, 192)}, [2, 4, 256], "y"),
    "LSTM": model(
        [NODE("LSTM", ["x", "w", "r"], ["y"], hidden_size=128)],
        {"w": normal(1, 512, 64), "r": normal(1, 512, 128)},
        [6, 1, 64],
        "y",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_weight_stays_in_8_bits_and_the_answers_stay(name: str, tmp_path: Path) -> None:
    shape = [d.dim_value for d in MODELS[name].graph.input[0].type.tensor_type.shape.dim]
    made = squeeze(MODELS[name], "int8{goal=memory arithmetic=false}", feeds(shape))
    graph = optimized(made, tmp_path)

    assert kept(made) == 1
    assert made.report.sqnr_db is not None and made.report.sqnr_db > 38
    assert not [t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 2000]
    assert Counter(node.op_type for node in graph.node)["DequantizeLinear"] == (2 if name == "LSTM" else 1)
    assert "Transpose" not in {node.op_type for node in graph.node}
    assert not [breach for breach in breaches(made.graph) if not breach.notice]
    given = feeds(shape)[0]
    exact, usual = (Session(made.graph, exact_sums=flag).run(given) for flag in (True, False))
    assert worst(compare([usual], [exact])) > 80


def chain(layers: int, size: int, rows: int = 4) -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(2 * layers))]
    nodes = [
        NODE(op, [names[2 * i + j], *([f"w{i}"] if j == 0 else [])], [names[2 * i + j + 1]])
        for i in range(layers)
        for j, op in enumerate(("MatMul", "Tanh"))
    ]
    return model(nodes, {f"w{i}": normal(size + i, size)[:size] for i in range(layers)}, [1, rows, size], names[-1])


def test_weights_are_restored_one_after_the_other(tmp_path: Path) -> None:
    made = squeeze(chain(4, 256), "int8{goal=memory arithmetic=false}", feeds([1, 4, 256]))
    session = Session(made.graph, threads=1, profile=tmp_path / "profile")
    session.run(feeds([1, 4, 256])[0])
    events = json.loads(Path(session.end_profile()).read_text(encoding="utf-8"))
    names = [each["args"]["op_name"] for each in events if str(each.get("name", "")).endswith("_kernel_time")]

    assert names == ["DequantizeLinear", "Reshape", "FusedMatMul", "Tanh"] * 4


@LINUX
def test_a_process_takes_half_of_what_float_takes_and_far_less_than_with_weights_restored_at_load() -> None:
    before, feed = load(chain(6, 1024)), feeds([1, 4, 1024])[0]
    lean, folded = (
        squeeze(before, f"int8{{{options}arithmetic=false}}", validate="none").graph
        for options in ("goal=memory ", "goal=time ")
    )
    one, other, third = (memory(each, feed) for each in (before, lean, folded))

    assert one is not None and other is not None and third is not None
    assert other.resident < 0.6 * one.resident and other.peak < 0.6 * one.peak
    assert third.peak > 1.2 * one.peak  # what goal=memory is for


def test_a_plan_that_would_take_more_than_float_keeps_integers_where_it_costs_next_to_no_time() -> None:
    made, small = (
        squeeze(chain(3, size, 512), "int8{arithmetic=false}", feeds([1, 512, size], 4)) for size in (1024, 64)
    )

    assert kept(made) > 0
    assert kept(small) == 0


def test_a_layer_between_integers_is_not_made_one_of_them() -> None:
    nodes = [
        NODE("QuantizeLinear", ["x", "s", "z"], ["q"]),
        NODE("DequantizeLinear", ["q", "s", "z"], ["d"]),
        NODE("Gemm", ["d", "w"], ["y"]),
    ]
    weights: Arrays = {"s": np.float32(0.1).reshape(()), "z": np.uint8(128).reshape(()), "w": normal(256, 192)}
    gemm = load(model(nodes, weights, [4, 256], "y")).nodes[-1]

    assert not can_be_lean(gemm, 1)
    assert can_be_lean(load(MODELS["Gemm"]).nodes[-1], 1)
