from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from linear_models import constant, model
from onnx import TensorProto, helper

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UsageError
from onnxsqueeze.runtime.session import Session

DIGITS = Path(__file__).parents[2] / "models"


def steps(pipeline: str, made: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    result = squeeze(made, pipeline)
    return result.model, {step.spec: len(step.done) for step in result.report.steps}


def mlp(dtype: type = np.float16, scale: float = 1.0) -> onnx.ModelProto:
    """Return two layers whose weights are float32 with values of a 16-bit type."""
    rng = np.random.default_rng(0)
    held = [constant(n, (scale * rng.standard_normal((64, 64))).astype(dtype).astype(np.float32)) for n in "vw"]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    return model(nodes, held, {"x": [3, 64]}, {"y": [3, 64]})


def answers(made: onnx.ModelProto) -> np.ndarray:
    return np.asarray(Session(made).run({"x": np.random.default_rng(1).standard_normal((3, 64)).astype("f")})["y"])


@pytest.mark.parametrize(("dtype", "scale"), [(np.float16, 1), (ml_dtypes.bfloat16, 1), (ml_dtypes.bfloat16, 1e20)])
def test_weights_that_are_16_bit_floats_already_take_half_the_file_and_answer_alike(dtype: type, scale: float) -> None:
    made = mlp(dtype, scale)
    found, done = steps("clean", made)

    assert done == {"clean": 0, "half{exact}": 2}
    assert len(found.SerializeToString()) < 0.53 * len(made.SerializeToString())
    np.testing.assert_array_equal(answers(found), answers(made))


def test_the_runtime_folds_what_restores_them(tmp_path: Path) -> None:
    found, _ = steps("clean", mlp())
    Session(found, optimized=tmp_path / "o.onnx")

    assert "Cast" not in {node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node}


def test_other_weights_stay_as_they_are() -> None:
    made = mlp(np.float32)
    found, done = steps("clean", made)

    assert done == {"clean": 0}
    assert found == made


def test_passes_see_the_values_of_weights_that_are_stored_in_16_bits() -> None:
    half, _ = steps("clean", mlp())
    plain = {"int8": steps("int8", mlp()), "lowrank": steps("lowrank{ratio=0.5}", mlp())}
    again = {"int8": steps("int8", half), "lowrank": steps("lowrank{ratio=0.5}", half)}

    for name, (expected, _) in plain.items():
        ops = [Counter(node.op_type for node in each.graph.node) for each in (expected, again[name][0])]
        assert ops[0] == ops[1]
        np.testing.assert_array_equal(answers(again[name][0]), answers(expected))


def test_a_shared_weight_is_halved_once() -> None:
    made = mlp()
    made.graph.node[2].input[1] = "v"
    del made.graph.initializer[1]
    found, done = steps("clean", made)

    assert done == {"clean": 0, "half{exact}": 1}
    assert [node.op_type for node in found.graph.node].count("Cast") == 1
    np.testing.assert_array_equal(answers(found), answers(made))


def test_half_rounds_all_weights() -> None:
    before = DIGITS / "resnet.onnx"
    result = squeeze(before, "half", DIGITS / "resnet.calib.npz")

    assert len(result.model.SerializeToString()) < 0.52 * before.stat().st_size
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 55


def test_what_float16_cannot_hold_stays_unless_it_is_bfloat16() -> None:
    made = mlp(np.float32, 1e5)
    result = squeeze(made, "half")

    assert not result.report.steps[-1].done
    assert "use type=bfloat16" in result.report.steps[-1].skipped[0].reason
    assert len(squeeze(made, "half{type=bfloat16}").report.steps[-1].done) == 2


def test_other_types_are_refused_and_nothing_may_follow() -> None:
    with pytest.raises(UsageError, match="type is float16 or bfloat16"):
        squeeze(mlp(), "half{type=float8}")
    with pytest.raises(UsageError, match="write int8,half"):
        squeeze(mlp(), "half,int8")


def test_a_weight_that_the_caller_may_override_stays() -> None:
    made = mlp()
    made.ir_version = 8
    made.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [64, 64]))
    _, done = steps("clean", made)

    assert done == {"clean": 0, "half{exact}": 1}


def gated(scale: float = 1.0, eps: float = 1e-3) -> onnx.ModelProto:
    """Return a normalisation and two layers of which the last may overflow float16."""
    rng = np.random.default_rng(0)
    held = [constant(n, rng.standard_normal((64, 64)) / 8) for n in "vw"]
    held += [constant("e", np.float32(eps)), constant("k", np.float32(scale))]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["q"]),
        helper.make_node("Add", ["q", "e"], ["d"]),
        helper.make_node("Div", ["h", "d"], ["n"]),
        helper.make_node("MatMul", ["h", "w"], ["g"]),
        helper.make_node("Mul", ["g", "k"], ["l"]),
        helper.make_node("Add", ["l", "h"], ["y"]),
    ]
    proto = model(nodes, held, {"x": [3, 64]}, {"y": [3, 64]})
    proto.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, [3, 64]))
    return proto


def fed(count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": 1 + rng.random((3, 64)).astype(np.float32)} for _ in range(count)]


def types_of(found: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(found)
    return {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}


def test_a_model_computes_in_float16_and_keeps_its_interface() -> None:
    made = gated()
    found = squeeze(made, "half{compute}", fed())
    ops = Counter(node.op_type for node in found.model.graph.node)

    assert [s.name for s in (*found.model.graph.input, *found.model.graph.output)] == ["x", "y", "n"]
    assert {v.type.tensor_type.elem_type for v in (*found.model.graph.input, *found.model.graph.output)} == {1}
    assert ops == {"MatMul": 2, "Mul": 2, "Add": 2, "Div": 1, "Cast": 3}
    assert len(found.model.SerializeToString()) < 0.55 * len(made.SerializeToString())
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 45
    assert sum(kind == TensorProto.FLOAT16 for kind in types_of(found.model).values()) == 8


@pytest.mark.parametrize(
    ("scale", "eps", "left", "words"),
    [(1e5, 1e-3, {"l", "y"}, "ends at 65504"), (1.0, 1e-12, {"d"}, "holds 1e-12"), (1e-9, 1e-3, {"l"}, "holds 1e-09")],
)
def test_what_overflows_or_underflows_stays_in_float32(scale: float, eps: float, left: set[str], words: str) -> None:
    found = squeeze(gated(scale, eps), "half{compute}", fed())
    step = next(each for each in found.report.steps if each.spec.startswith("half"))
    reasons = {each.key: each.reason for each in step.skipped}

    assert left <= reasons.keys()
    assert words in " ".join(reasons.values())
    assert {"h", "g"} <= {site.key for site in step.done}
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 30


def test_exact_weights_and_rounded_arithmetic_are_not_both_asked_for() -> None:
    with pytest.raises(UsageError, match="write one of them"):
        squeeze(gated(), "half{compute exact}")


@pytest.mark.parametrize("spec", ["half{compute io=half}", "half{io=half}"])
def test_inputs_and_outputs_are_float16_where_that_is_asked_for(spec: str) -> None:
    found = squeeze(gated(), spec, fed())
    borders = (*found.model.graph.input, *found.model.graph.output)
    ops = Counter(node.op_type for node in found.model.graph.node)
    feed = {"x": fed()[0]["x"].astype(np.float16)}
    found_answers, expected = Session(found.model).run(feed), Session(gated()).run(fed()[0])

    assert {v.type.tensor_type.elem_type for v in borders} == {TensorProto.FLOAT16}
    assert ops["Cast"] == (0 if "compute" in spec else 5)  # one for each weight, input and output otherwise
    assert found.report.sqnr_db is not None
    assert found.report.sqnr_db > 40  # the input is rounded, too
    for name, other in expected.items():
        one = np.asarray(found_answers[name])
        assert one.dtype == np.float16
        assert np.linalg.norm(one - other) < 2e-2 * np.linalg.norm(np.asarray(other))


def test_float16_at_the_border_does_not_go_with_other_types() -> None:
    with pytest.raises(UsageError, match="io is same or half"):
        squeeze(gated(), "half{io=float16}")
    with pytest.raises(UsageError, match="neither with exact nor with bfloat16"):
        squeeze(gated(), "half{io=half type=bfloat16}")
