from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from onnxsqueeze import squeeze
from onnxsqueeze.analysis.diff.diff import GraphDiff, diff
from onnxsqueeze.cli.main import main
from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load

MODELS = Path(__file__).parents[3] / "models"
SHIPPED = ("cnn", "dwcnn", "mlp", "resnet")


def test_a_model_is_the_same_as_itself() -> None:
    found = diff(MODELS / "resnet.onnx", MODELS / "resnet.onnx")

    assert found.same
    assert (found.verdict, found.changes, found.renamed, found.interface) == ("The models are the same.", (), (), ())


@pytest.mark.parametrize("name", SHIPPED)
def test_renamed_and_moved_nodes_and_weights_are_only_renamed(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")

    found = diff(model, scrambled(model))

    assert not found.changes
    assert not found.interface
    assert Counter(each.kind for each in found.renamed) == {
        "node": len(model.graph.node),
        "tensor": len(model.graph.node) - len(model.graph.output),
        "initializer": len(model.graph.initializer),
    }
    assert not found.same


def test_a_moved_node_is_no_change() -> None:
    model = text("(float[4] x) => (float[4] a, float[4] b) { a = Relu(x) b = Sigmoid(x) }")
    moved = text("(float[4] x) => (float[4] a, float[4] b) { b = Sigmoid(x) a = Relu(x) }")

    assert diff(model, moved).same


def test_what_an_exporter_numbers_anew_is_recognised_behind_an_insertion() -> None:
    before = text("(float[4] x) => (float[4] y) { t1 = Relu(x) t2 = Exp(t1) t3 = Relu(t2) y = Tanh(t3) }")
    after = text("(float[4] x) => (float[4] y) { t1 = Relu(x) t2 = Neg(t1) t3 = Exp(t2) t4 = Relu(t3) y = Tanh(t4) }")

    found = diff(before, after)

    assert told(found) == [("added", [], ["Neg"])]
    assert {each.before: each.after for each in found.renamed} == {"t2": "t3", "t3": "t4"}


def test_a_removed_node_in_the_middle_is_all_that_is_told() -> None:
    before = text("(float[4] x) => (float[4] y) { a = Relu(x) b = Identity(a) c = Exp(b) d = Tanh(b) y = Add(c, d) }")
    after = text("(float[4] x) => (float[4] y) { a = Relu(x) c = Exp(a) d = Tanh(a) y = Add(c, d) }")

    assert told(diff(before, after)) == [("removed", ["Identity"], [])]


def test_one_node_for_several_is_a_replacement() -> None:
    before = text("(float[4] x) => (float[4] y) { a = Relu(x) s = Sigmoid(a) b = Mul(a, s) y = Tanh(b) }")
    after = text("(float[4] x) => (float[4] y) { a = Relu(x) b = HardSwish(a) y = Tanh(b) }")

    assert told(diff(before, after)) == [("replaced", ["Sigmoid", "Mul"], ["HardSwish"])]


def test_another_input_is_told_by_name() -> None:
    before = text("(float[4] x) => (float[4] y, float[4] z) { a = Relu(x) z = Exp(x) y = Add(x, a) }")
    after = text("(float[4] x) => (float[4] y, float[4] z) { a = Relu(x) z = Exp(x) y = Add(x, z) }")

    (change,) = (each for each in diff(before, after).changes if each.kind == "changed")
    assert change.inputs == (("a", "z"),)


def test_a_changed_attribute_is_told_and_a_default_written_out_is_not() -> None:
    before = text("(float[4] x) => (float[4] y) { a = LeakyRelu<alpha = 0.01>(x) y = Elu<alpha = 0.5>(a) }")
    after = text("(float[4] x) => (float[4] y) { a = LeakyRelu(x) y = Elu<alpha = 0.75>(a) }")

    (change,) = diff(before, after).changes
    (attribute,) = change.attributes
    assert (change.kind, attribute.name, attribute.before, attribute.after) == ("changed", "alpha", "0.5", "0.75")


def test_a_changed_weight_is_measured() -> None:
    before = dense(np.full((4, 4), 2.0))
    after = dense(np.eye(4) * 2.0)

    (change,) = diff(before, after).changes
    (weight,) = change.weights
    assert weight.name == ("w", "w")
    assert weight.relative == pytest.approx(np.sqrt(12 / 16))
    assert weight.sparsity == (0.0, 0.75)


def test_a_weight_of_another_shape_is_a_change_of_the_layer() -> None:
    (change,) = diff(dense(np.ones((4, 4))), dense(np.ones((4, 2)))).changes

    assert (change.kind, change.weights[0].shape) == ("changed", ((4, 4), (4, 2)))
    assert change.weights[0].relative is None


def test_weights_are_compared_by_bytes_not_by_how_they_are_stored() -> None:
    one, two = dense(np.ones((4, 4))), dense(np.ones((4, 4)))
    tensor = two.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 16)

    assert diff(one, two).same


def test_a_constant_node_and_an_initializer_of_one_value_mean_the_same_to_their_readers() -> None:
    before = text("(float[2] x) => (float[2] y) { c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }")
    after = encode(squeeze(before, "clean").graph)

    assert told(diff(before, after)) == [("removed", ["Constant"], [])]


def test_changes_in_bodies_say_where_they_are() -> None:
    found = diff(branching("Relu"), branching("Tanh"))

    assert told(found) == [("replaced", ["Relu"], ["Tanh"])]
    assert found.changes[0].scope == "y/then_branch"


def test_changes_in_bodies_are_told_when_the_node_around_them_makes_another_tensor() -> None:
    after = branching("Tanh")
    before = branching("Relu")
    before.graph.node[-1].output[0] = "made"
    before.graph.node.append(helper.make_node("Identity", ["made"], ["y"]))

    found = diff(before, after)

    assert sorted(told(found)) == [("removed", ["Identity"], []), ("replaced", ["Relu"], ["Tanh"])]


def test_changes_in_functions_say_where_they_are() -> None:
    found = diff(calling("Relu"), calling("Tanh"))

    assert told(found) == [("replaced", ["Relu"], ["Tanh"])]
    assert found.changes[0].scope == "custom::twice"


def test_inputs_outputs_opset_and_metadata_are_told() -> None:
    before = text("(float[4] x) => (float[4] y) { y = Relu(x) }")
    after = text("(float[N] x) => (float[N] y) { y = Relu(x) }", opset=18)
    helper.set_model_props(after, {"author": "nobody"})

    told = {(each.what, each.name): (each.before, each.after) for each in diff(before, after).interface}
    assert told == {
        ("input", "x"): ("float32[4]", "float32[N]"),
        ("output", "y"): ("float32[4]", "float32[N]"),
        ("opset", ""): ("17", "18"),
        ("metadata", "author"): (None, "nobody"),
    }


# What a pass says that it did


@pytest.mark.parametrize("name", SHIPPED)
def test_the_diff_of_clean_lists_what_clean_reports(name: str) -> None:
    result = squeeze(MODELS / f"{name}.onnx", "clean")

    found = diff(MODELS / f"{name}.onnx", result.graph)

    gone = {node.key for change in found.changes for node in change.before}
    gone -= {node.key for change in found.changes for node in change.after}
    reported = {site.key for step in result.report.steps for site in step.done}
    folded_into = {
        str(site.detail["into"]) for step in result.report.steps for site in step.done if "into" in site.detail
    }
    touched = {node.key for change in found.changes for node in change.before}
    assert reported <= touched
    assert touched - reported <= folded_into
    assert gone <= reported | folded_into
    assert not found.renamed


@pytest.mark.parametrize("name", SHIPPED)
def test_the_diff_of_lowrank_lists_what_lowrank_reports(name: str) -> None:
    cleaned = encode(squeeze(MODELS / f"{name}.onnx", "clean,canonical", validate="none").graph)
    result = squeeze(cleaned, "lowrank{ratio=0.4}", validate="none")

    found = diff(cleaned, result.graph)

    (step,) = (step for step in result.report.steps if step.spec.startswith("lowrank"))
    layers = [change for change in found.changes if any(len(w.shape[0] or ()) > 1 for w in change.weights)]
    assert {change.before[-1].key for change in layers} == {site.key for site in step.done}
    for change in layers:
        assert change.kind == "replaced"
        assert len(change.after) > len(change.before)
    assert not found.renamed


@pytest.mark.parametrize("name", SHIPPED)
def test_the_diff_of_prune_lists_what_prune_reports(name: str) -> None:
    cleaned = encode(squeeze(MODELS / f"{name}.onnx", "clean,canonical", validate="none").graph)
    result = squeeze(cleaned, "prune{ratio=0.6}", validate="none")

    found = diff(cleaned, result.graph)

    (step,) = (step for step in result.report.steps if step.spec.startswith("prune"))
    sides = ("made by", "read by", "through")
    layers = {key for site in step.done for side in sides for key in site.detail[side]}  # type: ignore[attr-defined]
    changed = {node.key for change in found.changes if change.weights for node in change.before}
    assert step.done
    assert changed == layers
    for change in found.changes:
        assert [node.op for node in change.before] == [node.op for node in change.after]
    assert not found.renamed


@pytest.mark.parametrize("name", SHIPPED)
def test_the_diff_of_int8_lists_what_int8_reports(name: str) -> None:
    cleaned = encode(squeeze(MODELS / f"{name}.onnx", "clean,canonical", validate="none").graph)
    result = squeeze(cleaned, "int8", MODELS / f"{name}.calib.npz", validate="none")

    found = diff(cleaned, result.graph)

    (step,) = (step for step in result.report.steps if step.spec.startswith("int8"))
    layers = {site.key for site in step.done if site.action != "integer"}
    nodes = {key_of(node): node for node in View(load(cleaned)).nodes}
    quantized = {
        node.key
        for change in found.changes
        for node in change.before
        if any(isinstance(t, gs.Constant) and len(t.shape) > 1 for t in nodes[node.key].inputs)
    }
    assert quantized == layers
    allowed = {"QuantizeLinear", "DequantizeLinear"}
    for change in found.changes:
        if change.kind == "added":
            assert {node.op for node in change.after} <= allowed
    assert not found.renamed


# Numbers


def test_a_planted_wrong_weight_is_where_the_error_is_born() -> None:
    model = onnx.load(MODELS / "resnet.onnx")
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    layers = [node for node in wrong.graph.node if node.op_type == "Conv"]
    planted = layers[5]
    tensor = next(each for each in wrong.graph.initializer if each.name == planted.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[3] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    found = diff(model, wrong, {"input": np.load(MODELS / "resnet.calib.npz")["input"][:16]})

    assert found.numbers is not None
    assert found.numbers.born is not None
    assert found.numbers.born.tensor == planted.output[0]
    assert found.numbers.born.inputs_db == np.inf
    assert found.numbers.outputs[0].sqnr_db < 60


def test_the_same_numbers_have_no_birth_of_an_error() -> None:
    model = onnx.load(MODELS / "mlp.onnx")

    found = diff(model, scrambled(model), "random")

    assert found.numbers is not None
    assert found.numbers.born is None
    assert len(found.numbers.along) == sum(len(node.output) for node in model.graph.node)
    assert all(fall.sqnr_db == np.inf for fall in found.numbers.along)


def test_models_with_other_inputs_cannot_be_compared_by_numbers() -> None:
    before = text("(float[4] x) => (float[4] y) { y = Relu(x) }")
    after = text("(float[4] x, float[4] z) => (float[4] y) { y = Add(x, z) }")

    with pytest.raises(FeedError, match="only one of them has the input 'z'"):
        diff(before, after, "random")


# The command line


def test_the_exit_code_tells_whether_models_differ(tmp_path: Path) -> None:
    onnx.save(dense(np.ones((4, 4))), tmp_path / "a.onnx")
    onnx.save(dense(np.zeros((4, 4))), tmp_path / "b.onnx")

    assert run("diff", tmp_path / "a.onnx", tmp_path / "a.onnx")[0] == 0
    code, out = run("diff", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert code == 1
    assert "moved by 100 %" in out
    assert run("diff", tmp_path / "a.onnx", tmp_path / "missing.onnx")[0] == ModelError.exit_code


def test_quiet_says_nothing(tmp_path: Path) -> None:
    onnx.save(dense(np.ones((4, 4))), tmp_path / "a.onnx")
    onnx.save(dense(np.zeros((4, 4))), tmp_path / "b.onnx")

    assert run("diff", "-q", tmp_path / "a.onnx", tmp_path / "b.onnx") == (1, "")


def test_json_holds_the_verdict_and_every_change(tmp_path: Path) -> None:
    onnx.save(dense(np.ones((4, 4))), tmp_path / "a.onnx")
    onnx.save(dense(np.zeros((4, 4))), tmp_path / "b.onnx")

    code, out = run("diff", "--json", "--calib", "random", tmp_path / "a.onnx", tmp_path / "b.onnx")

    found = json.loads(out)
    assert code == 1
    assert found["same"] is False
    assert found["changes"][0]["weights"][0]["relative"] == 1.0
    assert found["numbers"]["born"]["tensor"] == "y"


def test_narrow_terminals_are_respected(tmp_path: Path) -> None:
    result = squeeze(MODELS / "resnet.onnx", "int8", output=tmp_path / "small.onnx", validate="none")
    assert result.report.output

    process = subprocess.run(
        [sys.executable, "-m", "onnxsqueeze", "diff", str(MODELS / "resnet.onnx"), str(tmp_path / "small.onnx")],
        capture_output=True, text=True, env={"COLUMNS": "44", "PATH": "", "PYTHONPATH": str(MODELS.parent)},
        check=False,
    )  # fmt: skip

    assert process.returncode == 1
    assert max(len(line) for line in process.stdout.splitlines()) <= 44
    assert "\x1b" not in process.stdout


# Models


def text(graph: str, opset: int = 17) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model: onnx.ModelProto = onnx.parser.parse_model(f"{header} g {graph}")
    return model


def dense(weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    rows, columns = weight.shape
    model = text(f"(float[1, {rows}] x) => (float[1, {columns}] y) <float[{rows}, {columns}] w> {{ y = MatMul(x, w) }}")
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    del model.graph.value_info[:]
    return model


def branching(op: str) -> onnx.ModelProto:
    return text(
        "(bool c, float[4] x) => (float[4] y) { a = Exp(x) y = If (c) <"
        f"then_branch = g1 () => (float[4] t) {{ t = {op}(a) }}, "
        "else_branch = g2 () => (float[4] e) { e = Identity(a) }> }"
    )


def calling(op: str) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> g (float[4] x) => (float[4] y) { y = custom.twice(x) }'
        f'<domain: "custom", opset_import: ["" : 17]> twice (a) => (b) {{ t = {op}(a) b = Add(t, t) }}'
    )
    return model


def scrambled(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Rename all nodes, tensors and weights but inputs and outputs, and put everything in another valid order."""
    rng = random.Random(seed)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"renamed_{len(names)}")

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.value_info[:]
    for i, node in enumerate(graph.node):
        node.name = f"node_{i}"
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    made = {name for node in graph.node for name in node.output}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    there: set[str] = set()
    del graph.node[:]
    while waiting:
        ready = [i for i, node in enumerate(waiting) if all(n not in made or n in there for n in node.input)]
        node = waiting.pop(rng.choice(ready))
        there.update(node.output)
        graph.node.append(node)
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer]
    rng.shuffle(tensors)
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    return other


def told(found: GraphDiff) -> list[tuple[str, list[str], list[str]]]:
    return [(each.kind, [n.op for n in each.before], [n.op for n in each.after]) for each in found.changes]


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    return result.exit_code, result.stdout
