from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import constant, conv_model, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsqueeze import Bits, inspect_model, squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.plugin import Site
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import Latency
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.techniques.quantization.lowbits import chosen_bits, plain_bits, weights

DIGITS = Path(__file__).parents[2] / "models"
Feeds = list[dict[str, NDArray[np.generic]]]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.engine.latencies.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.setattr("onnxsqueeze.contract.bench.latency", lambda *_: Latency((0.5, 0.5), 0.5, 0.5))


def squeezed(name: str, pipeline: str) -> Result:
    return squeeze(DIGITS / f"{name}.onnx", pipeline, DIGITS / f"{name}.calib.npz")


def size(model: onnx.ModelProto) -> int:
    return len(model.SerializeToString())


def bits_of(result: Result) -> dict[str, object]:
    return {site.key: site.detail["bits"] for site in result.report.steps[-1].done if "bits" in site.detail}


def accuracy(result: Result) -> float:
    with np.load(DIGITS / "digits.npz") as digits:
        x, y = digits["x"][:400, None].astype(np.float32) / np.float32(255), digits["y"][:400]
    answers = np.asarray(next(iter(Session(result.model).run({"input": x}).values())))
    return float((answers.argmax(1) == y).mean())


@pytest.mark.parametrize(
    ("pipeline", "share", "db"), [("bits{4}", 0.19, 36), ("bits{3}", 0.16, 28), ("bits{2}", 0.13, 17)]
)
def test_a_network_still_reads_digits_with_few_bits(pipeline: str, share: float, db: float) -> None:
    found = squeezed("resnet", pipeline)

    assert size(found.model) < share * (DIGITS / "resnet.onnx").stat().st_size
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > db
    assert accuracy(found) > 0.985


def test_with_activations_in_8_bits_it_computes_what_int8_computes_in_two_thirds_of_its_file() -> None:
    whole, few = squeezed("cnn", "int8"), squeezed("cnn", "bits{weights=4 activations=8}")
    plain = {op: [n.op_type for n in found.model.graph.node].count(op) for op, found in (("Conv", few),)}

    assert size(few.model) < 0.6 * size(whole.model)
    assert accuracy(few) > 0.985
    counts = [[n.op_type for n in f.model.graph.node].count("QuantizeLinear") for f in (whole, few)]
    assert counts[0] == counts[1] > 0
    assert plain["Conv"] > 0


def test_without_data_the_first_and_last_and_depthwise_layers_keep_8_bits() -> None:
    found = bits_of(squeeze(onnx.load(DIGITS / "dwcnn.onnx"), "bits{4}", validate="none"))

    assert set(found.values()) == {4, 8}
    graph = load(squeeze(onnx.load(DIGITS / "dwcnn.onnx"), "clean,canonical", validate="none").model)
    depthwise = {n.outputs[0].name for n in graph.nodes if n.op == "Conv" and n.inputs[1].shape[1] == 1}
    assert {found[key] for key in depthwise & found.keys()} == {8}


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2])
def test_auto_keeps_the_size_and_is_better_with_more(share: float) -> None:
    graph = load(DIGITS / "resnet.onnx")
    found = [w for w in weights(View(graph), Statistics(), lambda node: True) if isinstance(w, list)]
    whole = sum(4 * weight.size for group in found for weight in group)
    chosen = chosen_bits(found, 2, share * whole, {})
    taken = sum(weight.bytes(b) for group, b in zip(found, chosen, strict=True) for weight in group)

    assert taken <= share * whole
    assert len(set(chosen)) > 1
    error = sum(max(w.error(b) for w in group) for group, b in zip(found, chosen, strict=True))
    more = chosen_bits(found, 2, 1.3 * share * whole, {})
    assert sum(max(w.error(b) for w in group) for group, b in zip(found, more, strict=True)) < error


def test_a_layer_that_matters_more_gets_more_bits() -> None:
    graph = load(DIGITS / "resnet.onnx")
    found = [w for w in weights(View(graph), Statistics(), lambda node: True) if isinstance(w, list)]
    budget = sum(weight.bytes(b) for group, b in zip(found, plain_bits(found, 4), strict=True) for weight in group)
    plain = chosen_bits(found, 4, budget, {})
    i = next(i for i, bits in enumerate(plain) if bits == min(plain))

    assert chosen_bits(found, 4, budget, {found[i][0].key: 1e4})[i] > plain[i]


def test_the_mean_error_is_taken_off_the_bias() -> None:
    rng = np.random.default_rng(0)
    made = conv_model(rng.normal(size=(16, 8, 3, 3)), (9, 9), rng.normal(size=16), pads=[0, 0, 0, 0])
    feeds: Feeds = [{"x": rng.normal(3, 1, size=(1, 8, 9, 9)).astype(np.float32)} for _ in range(48)]
    found = squeeze(made, "bits{3}", feeds)

    one, other = ([np.asarray(session.run(f)["y"]) for f in feeds] for session in map(Session, (made, found.model)))
    error = np.subtract(one, other)
    each = np.mean(error, axis=(0, 1, 3, 4))
    assert np.abs(each).max() < 0.05 * float(np.std(error))


def test_a_shared_weight_is_stored_once() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    made = model(nodes, [constant("w", rng.normal(size=(64, 64)))], {"x": [4, 64]}, {"y": [4, 64]})
    found = squeeze(made, "bits{4}")

    assert size(found.model) < 0.4 * size(made)
    assert len(found.report.steps[-1].done) == 1
    assert "stored with that of" in found.report.steps[-1].skipped[0].reason


def test_a_table_is_gathered_in_few_bits_and_a_recurrent_layer_stored() -> None:
    rng = np.random.default_rng(0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [5, 1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["e"]),
        helper.make_node("LSTM", ["e", "w", "r"], ["y"], hidden_size=32),
    ]
    held = {"t": (200, 64), "w": (1, 128, 64), "r": (1, 128, 32)}
    constants = [constant(name, 0.3 * rng.normal(size=shape)) for name, shape in held.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = squeeze(made, "bits{4}", [{"x": rng.integers(0, 200, (5, 1))} for _ in range(8)])

    assert size(found.model) < 0.25 * size(made)
    assert [n.op_type for n in found.model.graph.node].count("Gather") == 2
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 12


def products(length: int | str) -> onnx.ModelProto:
    """Return a model of two layers, with a gate between them, on rows of 512 channels."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    held = [constant(name, rng.normal(size=(512, 512)) / 20) for name in ("w", "v")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, length, 512])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, length, 512])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("length", "rows", "fed", "few"),
    [(1, 0, 1, True), (64, 1, 64, False), ("n", 0, 1, True), ("n", 0, 64, False), ("n", 1, 64, True)],
)
def test_layers_of_few_rows_multiply_in_few_bits(
    length: int | str, rows: int, fed: int, few: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    feeds: Feeds = [{"x": rng.standard_normal((1, fed, 512)).astype(np.float32)} for _ in range(16)]
    found = squeeze(products(length), f"bits{{4 rows={rows}}}", feeds)
    Session(found.model, optimized=tmp_path / "optimized.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    assert {site.action for site in found.report.steps[-1].done} == {f"{'multiplied' if few else 'stored'} in 4 bits"}
    assert ops.count("MatMulNBits") == (2 if few else 0)
    assert "DequantizeLinear" not in ops
    assert {node.op_type for node in found.model.graph.node if node.domain} == set()
    assert size(found.model) < 0.145 * size(products(1))
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 18


def test_inspect_says_how_many_bits_a_weight_in_blocks_takes() -> None:
    found = squeeze(products(1), "bits{4}", target="ort-x64").model
    assert {layer.quantization for layer in inspect_model(found).layers if layer.op == "MatMul"} <= {
        "weight of 4.3 bits", "weight stored in 4.3 bits",
    }  # fmt: skip
    few = squeeze(products(1), "bits{2}").model
    products_ = [layer for layer in inspect_model(few).layers if layer.op == "com.microsoft::MatMulNBits"]
    assert {layer.quantization for layer in products_} == {"weight of 2.3 bits in blocks of 32"}


def test_a_target_without_kernels_of_few_bits_gets_stored_weights() -> None:
    found = squeeze(products(1), "bits{4}", target="ort-web")

    assert {site.action for site in found.report.steps[-1].done} == {"stored in 4 bits"}


@pytest.mark.parametrize("pipeline", ["bits{5}", "bits{activations=4}", "bits{auto size=2}", "bits{4 weights=3}"])
def test_what_is_not_possible_is_refused(pipeline: str) -> None:
    with pytest.raises(UsageError, match="bits"):
        squeeze(DIGITS / "mlp.onnx", pipeline)


def test_a_number_alone_is_the_first_option() -> None:
    entries = Bits(weights=3).plan(View(load(DIGITS / "mlp.onnx")), Statistics())

    assert {e.work.bits for e in entries if isinstance(e, Site)} <= {3, 8}
    assert squeeze(DIGITS / "mlp.onnx", "bits{3}", validate="none").report.steps[-1].spec == "bits{weights=3}"


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("bits{4}", "weight stored in 4.3 bits"),
        ("bits{3 activations=8}", "quantized input, weight of 3.1 bits"),
        ("half", "weight stored in 16.0 bits"),
    ],
)
def test_inspect_says_how_many_bits_a_weight_takes(pipeline: str, words: str) -> None:
    layers = inspect_model(squeezed("cnn", pipeline).model).layers

    assert {layer.quantization for layer in layers if layer.op in ("Mul", "Cast", "Reshape")} <= {""}
    assert words in [layer.quantization for layer in layers if layer.op == "Conv"]


def test_what_is_quantized_in_blocks_is_refused_by_its_operator() -> None:
    rng = np.random.default_rng(0)
    held = [constant("w", rng.normal(size=(64, 64)))]
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], held, {"x": [4, 64]}, {"y": [4, 64]})
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    attrs = {"K": 64, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", **attrs)  # type: ignore[arg-type]
    made.graph.node[0].CopyFrom(node)
    del made.graph.initializer[:]
    codes = rng.integers(0, 256, (64, 2, 16)).astype(np.uint8)
    made.graph.initializer.extend([onnx.numpy_helper.from_array(codes, "q"), constant("s", np.ones((64, 2)))])

    assert squeeze(made, "clean").model == made
    assert inspect_model(made).layers[0].op == "com.microsoft::MatMulNBits"
    for name in ("int8", "lowrank", "bits{4}", "prune{ratio=0.5}"):
        with pytest.raises(UsageError, match="nodes such as MatMulNBits"):
            squeeze(made, name)
