"""How precisely weights are stored: no more bits than max-drop needs, wherever the weight stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.emit import weights
from onnxsqueeze.techniques.quantization.precision import Precision


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.contract.bench.Bench.latency", lambda *given: 1.0)


def _lookups(readers: int) -> onnx.ModelProto:
    body = "".join(f"t{i} = Gather(T, {'xz'[i]}) " for i in range(readers))
    body += "t = Add(t0, t1) " if readers == 2 else "t = Identity(t0) "
    head = '<ir_version: 8, opset_import: ["": 17]> g (int64[N] x, int64[N] z) => (float[N, 48] y)'
    text = f"{head} {{ {body} y = MatMul(t, W) }}"
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("T", (60, 64)), ("W", (64, 48))):
        values = rng.standard_normal(shape) * np.geomspace(0.1, 1, shape[0])[:, None]
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("held", [weights.HELD, 1000])
def test_a_table_gets_16_bits_where_8_cost_too_much(readers: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("emit.weights", "emit.stored"):
        monkeypatch.setattr(f"onnxsqueeze.techniques.quantization.{module}.HELD", held)
    rng = np.random.default_rng(1)
    feeds: list[dict[str, Any]] = [{"x": rng.integers(0, 60, 40), "z": rng.integers(0, 60, 40)} for _ in range(8)]
    result = squeeze(_lookups(readers), "int8{max-drop=0.0005}", feeds)
    kinds = {t.name: t.data_type for t in result.model.graph.initializer if np.prod(t.dims) > 1000}

    assert set(kinds.values()) == {onnx.TensorProto.INT16}
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 66


class _Trials:
    """A bench on which each weight's error is known: so much with 8 bits, a hundredth with 16, none in float."""

    def __init__(self, errors: dict[str, float]) -> None:
        self.errors: dict[str, float] = errors

    def variant(self, apply: Any, sites: list[Site[Quantized]]) -> float:
        return sum(self.errors[site.key] * (0.01 if site.work.wide else 1.0) for site in sites)

    def error(self, graph: float) -> float:
        return graph


def test_where_16_bits_do_not_do_for_one_weight_the_others_get_no_more_than_they_need() -> None:
    errors = {f"w{i}": 1e-4 * (i + 1) for i in range(8)} | {"loud": 10.0}
    plan: list[Site[Quantized] | Skip] = [Site(key, "stored", {}, work=Quantized("stored")) for key in errors]
    view = View(load(_lookups(1)))
    precision = Precision(view, _Trials(errors), {})  # type: ignore[arg-type]
    precision.nodes = {key: SimpleNamespace(op="MatMul", domain="", inputs=[]) for key in errors}
    precision._effects = lambda plan: [(error, 1000, [key]) for key, error in errors.items()]  # type: ignore[method-assign]

    assert precision.bound(plan, 2.5e-3) <= 2.5e-3
    assert precision.spared == {"loud"}
    assert precision.wide - {"loud"} == {"w7", "w6"}


def test_what_is_stored_is_not_said_to_be_left_in_float() -> None:
    rng = np.random.default_rng(1)
    feeds: list[dict[str, Any]] = [{"x": rng.integers(0, 60, 40), "z": rng.integers(0, 60, 40)} for _ in range(8)]
    step = squeeze(_lookups(1), "int8{max-drop=0.0005}", feeds).report.steps[-1]
    notes = " ".join(step.notes)

    assert "in 16 bits, since 8 would cost" in notes
    assert not any(site.key in notes.partition("left in float")[2] for site in step.done)
