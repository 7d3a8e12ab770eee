"""Spellings that are slow: each is found, and ONNX Runtime does what the rule says; better ones answer the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze import inspect_model, squeeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.techniques.canonical.spellings import spellings

K = N = 64
RNG = np.random.default_rng(0)
Array = NDArray[np.generic]


def model(
    shape: list[int | str], *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, **held: Array
) -> onnx.ModelProto:
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    domain = "com.microsoft" if op in ("MatMulNBits", "GatherBlockQuantized") else ""
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attrs)  # type: ignore[arg-type]


def ints(*shape: int, kind: object = np.int8) -> Array:
    most = 8 if kind is ml_dtypes.int4 else 127
    return RNG.integers(-most + 1, most, shape).astype(kind)  # type: ignore[call-overload, no-any-return]


def sizes(*shape: int) -> Array:
    return (RNG.random(shape) * 0.01 + 0.001).astype(np.float32)


def dq(name: str = "w", **attrs: object) -> onnx.NodeProto:
    return node("DequantizeLinear", f"q{name} s{name}", name, **attrs)


MM = node("MatMul", "x w", "y")
SLOW: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "nbits-level": (lambda: nbits(8, level=0), ""),
    "nbits-block": (lambda: nbits(2, size=16), ""),
    "nbits-float-zeros": (lambda: nbits(4, zeros=True), ""),
    "table-typed": (lambda: model(
        [2, 3], node("GatherBlockQuantized", "t x s", "y", block_size=32, quantize_axis=1), kind=TensorProto.INT64,
        t=ints(50, K, kind=ml_dtypes.int4), s=sizes(50, K // 32)), ""),
    "table-restored": (lambda: model(
        [2, 3], dq(axis=0), node("Gather", "w x", "y"), kind=TensorProto.INT64, qw=ints(50, K), sw=sizes(50)),
        "DequantizeLinear"),
    "kernel-restored": (lambda: model(
        [1, 8, 6, 6], dq(axis=0), node("Conv", "x w", "y"), qw=ints(16, 8, 3, 3), sw=sizes(16)), "DequantizeLinear"),
    "recurrent-restored": (lambda: model(
        [5, 1, K], dq("w", axis=1), dq("r", axis=1), node("LSTM", "x w r", "y", hidden_size=16),
        qw=ints(1, 64, K), sw=sizes(64), qr=ints(1, 64, 16), sr=sizes(64)), "DequantizeLinear"),
    "axis-negative": (lambda: model([1, K], dq(axis=-1), MM, qw=ints(K, N), sw=sizes(N)), "DequantizeLinear"),
    "scale-vector": (lambda: model([1, K], dq(), MM, qw=ints(K, N), sw=sizes(1)), ""),
    "scale-shared": (lambda: model(
        [1, K], dq(axis=1), node("DequantizeLinear", "qv sw", "v", axis=1), node("MatMul", "x w", "h"),
        node("Tanh", "h", "t"), node("MatMul", "t v", "y"), qw=ints(K, N), qv=ints(K, N), sw=sizes(N)),
        "DequantizeLinear"),
    "weight-shared": (lambda: model(
        [1, K], dq(axis=1), node("DequantizeLinear", "qw sv", "v", axis=1), node("MatMul", "x w", "h"),
        node("Tanh", "h", "t"), node("MatMul", "t v", "y"), qw=ints(K, N), sv=sizes(N), sw=sizes(N)),
        "DequantizeLinear"),
    "weight-transposed": (lambda: model(
        [1, K], dq(axis=1, block_size=32), node("Gemm", "x w", "y", transB=1), qw=ints(N, K, kind=ml_dtypes.int4),
        sw=sizes(N, K // 32)), "DequantizeLinear"),
    "product-relu": (lambda: model(
        [1, K], dq(axis=1), node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("Neg", "r", "y"),
        qw=ints(K, N), sw=sizes(N)), "DequantizeLinear"),
    "product-sum": (lambda: model(
        [1, K], dq(axis=1), node("MatMul", "x w", "h"), node("Add", "x h", "y"), qw=ints(K, N), sw=sizes(N)),
        "DequantizeLinear"),
    "activations-wide": (lambda: model(
        [1, K], node("QuantizeLinear", "x sx zx", "xq"), node("DequantizeLinear", "xq sx zx", "xd"), dq(axis=1),
        node("MatMul", "xd w", "y"), qw=ints(K, N), sw=sizes(N), sx=np.float32(1e-4), zx=np.uint16(32768)), ""),
}  # fmt: skip
"""What is found in which model, and an operator that is left in the graph as ONNX Runtime runs it because of it."""


def nbits(bits: int, size: int = 32, level: int = 4, zeros: bool = False) -> onnx.ModelProto:
    attrs = {"K": K, "N": N, "bits": bits, "block_size": size, "accuracy_level": level}
    codes = RNG.integers(0, 256, (N, K // size, size * bits // 8)).astype(np.uint8)
    held = {"q": codes, "s": sizes(N, K // size)} | ({"z": np.full((N, K // size), 7.5, np.float32)} if zeros else {})
    return model([1, K], node("MatMulNBits", "x q s z" if zeros else "x q s", "y", **attrs), **held)  # type: ignore[arg-type]


def good() -> list[onnx.ModelProto]:
    """Models that are spelled well: what the others are without their flaw."""
    return [
        nbits(4), nbits(8), nbits(2),
        model([1, K], dq(axis=1), MM, qw=ints(K, N), sw=sizes(N)),
        model([1, K], dq(axis=0, block_size=32), MM, qw=ints(K, N, kind=ml_dtypes.int4), sw=sizes(K // 32, N)),
        model([1, K], dq(axis=1), node("MatMul", "x w", "h"), node("Relu", "h", "y"), qw=ints(K, N), sw=sizes(N)),
        model([1, 1, K], dq(axis=1), node("MatMul", "x w", "h"), node("Add", "x h", "y"), qw=ints(K, N), sw=sizes(N)),
    ]  # fmt: skip


def found(proto: onnx.ModelProto) -> set[str]:
    return {each.name for each in spellings(View(load(proto)))}


def optimized(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    Session(proto, optimized=folder / "optimized.onnx")
    return Counter(each.op_type for each in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_spelling_is_found_and_is_one(name: str, tmp_path: Path) -> None:
    make, left = SLOW[name]
    proto = make()
    counts = optimized(proto, tmp_path)

    assert found(proto) == {name}
    assert not left or counts[left]
    assert name != "activations-wide" or counts["MatMulNBits"]


def test_what_is_spelled_well_is_not_found(tmp_path: Path) -> None:
    for proto in good():
        assert found(proto) == set()
        assert not optimized(proto, tmp_path)["DequantizeLinear"]


@pytest.mark.parametrize("name", ["table-restored", "kernel-restored", "recurrent-restored"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("per", ["index", "tensor"])
def test_what_is_dequantized_in_every_run_is_said_better(name: str, zero: bool, per: str, tmp_path: Path) -> None:
    proto = SLOW[name][0]()
    for each in [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]:
        scale = next(t for t in proto.graph.initializer if t.name == each.input[1])
        if per == "tensor":
            scale.CopyFrom(numpy_helper.from_array(np.float32(0.01), scale.name))
        if zero:
            zeros = RNG.integers(-9, 9, scale.dims).astype(np.int8)
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(zeros), f"z{each.output[0]}"))
            each.input.append(f"z{each.output[0]}")
    result = squeeze(proto, "canonical")
    feed: dict[str, Array] = {"x": RNG.integers(0, 50, (2, 3))}
    if name != "table-restored":
        feed = {
            "x": RNG.standard_normal([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]).astype("f")
        }

    assert found(result.model) == set()
    assert not optimized(result.model, tmp_path)["DequantizeLinear"]
    one, two = (np.asarray(Session(each).run(feed)["y"]) for each in (proto, result.model))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_the_commands_tell_of_them(tmp_path: Path) -> None:
    onnx.save(SLOW["product-relu"][0](), tmp_path / "slow.onnx")
    (told,) = inspect_model(tmp_path / "slow.onnx").spellings
    assert (told.name, told.key) == ("product-relu", "h")
    for command in (["inspect"], ["check"]):
        outcome = CliRunner().invoke(main, [*command, str(tmp_path / "slow.onnx")])
        assert "Relu behind it keeps ONNX Runtime from fusing" in " ".join(outcome.output.split())
        assert outcome.exit_code == 0
    other = CliRunner().invoke(main, ["check", str(tmp_path / "slow.onnx"), "--target", "openvino-cpu"])
    assert "Relu" not in other.output
