from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.inspection.inspect import Layer, inspect_model
from onnxsqueeze.analysis.inspection.weights import effective_rank
from onnxsqueeze.cli.main import main

MODELS = Path(__file__).parents[3] / "models"


def test_every_node_is_a_layer_and_the_sums_are_the_models() -> None:
    found = inspect_model(MODELS / "resnet.onnx")

    assert len(found.layers) == found.cost.nodes
    assert sum(layer.macs or 0 for layer in found.layers) == found.cost.macs
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)


def test_what_costs_most_comes_first() -> None:
    macs = [layer.macs or 0 for layer in inspect_model(MODELS / "dwcnn.onnx").layers]

    assert macs == sorted(macs, reverse=True)
    assert macs[0] > 0


def test_the_statistics_of_a_weight_are_those_of_its_values() -> None:
    values = np.zeros((4, 3), np.float32)
    values[:, 0], values[:, 1] = [1, 2, 3, 4], [0, 0, 0, -8]

    weight = layer_with(values).weight

    assert weight is not None
    assert weight.mean == pytest.approx(values.mean())
    assert weight.std == pytest.approx(values.std())
    assert weight.abs_mean == pytest.approx(np.abs(values).mean())
    assert weight.sparsity == pytest.approx(7 / 12)
    assert weight.filter_sparsity == pytest.approx(1 / 3)
    assert weight.channel_sparsity == 0
    assert weight.channel_range == 2
    assert weight.full_rank == 3


def test_the_effective_rank_counts_directions_of_equal_weight() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]

    assert effective_rank(basis[:, :7] @ basis[:7]) == pytest.approx(7)
    assert effective_rank(np.zeros((3, 5))) == 0
    assert effective_rank(np.outer(np.arange(1, 5), np.arange(1, 9)).astype(float)) == pytest.approx(1)


def test_quantized_layers_say_so_and_their_weights_are_looked_at_dequantized() -> None:
    before = inspect_model(MODELS / "mlp.onnx")
    after = inspect_model(squeeze(MODELS / "mlp.onnx", "int8", validate="none").graph)

    logits, quantized = (next(each for each in side.layers if each.key == "logits") for side in (before, after))
    assert quantized.quantization == "quantized input, int8 weight per channel"
    assert quantized.weight is not None
    assert logits.weight is not None
    assert quantized.weight.dtype == "int8"
    assert quantized.weight.std == pytest.approx(logits.weight.std, rel=0.01)
    assert quantized.bytes < logits.bytes
    assert any("QuantizeLinear" in each for each in after.quantization)
    assert not any("QuantizeLinear" in each for each in before.quantization)


def test_requirements_name_the_opset_the_runtime_and_foreign_operators() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.example" : 2]> '
        "g (float[N, 4] x) => (float[N, 4] y) { h = com.example.Swirl(x) y = Relu(h) }"
    )

    found = inspect_model(model)

    told = [(each.what, each.version, each.note) for each in found.requirements]
    assert told == [("opset", "17", "ONNX Runtime 1.12 or later"), ("IR", "8", ""), ("com.example", "2", "Swirl")]
    assert found.dynamic_axes == ("x[0] = N", "y[0] = N")


def test_a_profile_gives_every_costly_layer_its_time() -> None:
    found = inspect_model(MODELS / "resnet.onnx", profile=True)

    assert found.milliseconds is not None
    assert all((layer.milliseconds or 0) > 0 for layer in found.layers if layer.op in ("Conv", "Gemm"))
    assert sum(layer.milliseconds or 0 for layer in found.layers) <= 1.2 * found.milliseconds
    times = [layer.milliseconds or 0 for layer in found.layers]
    assert times == sorted(times, reverse=True)


def test_json_and_csv_hold_every_layer() -> None:
    path = str(MODELS / "mlp.onnx")

    as_json = json.loads(CliRunner().invoke(main, ["inspect", path, "--json"]).stdout)
    as_csv = list(csv.DictReader(io.StringIO(CliRunner().invoke(main, ["inspect", path, "--csv"]).stdout)))

    assert [each["key"] for each in as_json["layers"]] == [row["key"] for row in as_csv]
    assert as_csv[0]["weight_shape"] == "256 784"
    assert int(as_csv[0]["macs"]) == as_json["layers"][0]["macs"] == 256 * 784


def test_the_table_shows_facts_and_layers() -> None:
    result = CliRunner().invoke(main, ["inspect", str(MODELS / "mlp.onnx")])

    assert result.exit_code == 0
    for text in ("237 k parameters", "needs: opset 12", "dynamic axes: input[0] = batch", "85.5 %", "eff. rank"):
        assert text in result.stdout


def layer_with(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Layer:
    rows, columns = weight.shape
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, {rows}] x) => (float[1, {columns}] y) '
        f"<float[{rows}, {columns}] w> {{ y = MatMul(x, w) }}"
    )
    del model.graph.initializer[:], model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return inspect_model(model).layers[0]
