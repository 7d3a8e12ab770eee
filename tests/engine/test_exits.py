"""Models that answer early: the answers of the parts, the bound on unseen inputs, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxsqueeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine.exits import exits
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.files import load
from onnxsqueeze.measure.cost import macs
from onnxsqueeze.techniques.exits.cuts import cuts

Array = np.ndarray[Any, Any]
WIDTH = 16


def model(path: Path, blocks: int = 6, end: str = "", two: bool = False) -> Path:
    """A network on 8 × 8 maps: a convolution, then blocks that change its maps little."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 0.4, (WIDTH, 1, 3, 3)), "g": rng.normal(0, 0.3, (WIDTH, 4))}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["r0"])]
    for i in range(blocks):
        weights[f"w{i}"] = rng.normal(0, 0.02, (WIDTH, WIDTH, 3, 3))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Add", [f"r{i}", f"c{i}"], [f"a{i}"]))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"r{i + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"r{blocks}"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["f", "g"], ["y" if not end else "z"]))
    nodes += [helper.make_node(end, ["z"], ["y"])] if end else []
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    if two:
        outputs.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["n", WIDTH]))
    graph = helper.make_graph(
        nodes, "exits", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])], outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def inputs(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.2, 2, (count, 1, 1, 1)) * np.sign(rng.normal(0, 1, (count, 1, 1, 1)))
    return (size + rng.normal(0, 0.5, (count, 1, 8, 8))).astype(np.float32)


def router(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("router", folder / "router.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Router()


def answers(path: Path, x: Array) -> Array:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times by arithmetic, so that a busy machine decides nothing."""

    def times(graph: Any, parts: Any, behind: Any, data: Any) -> tuple[float, float]:
        whole, front = (sum(macs(each, data[0]).values()) for each in (graph, parts[0]))
        return front / whole, 1 - front / whole

    monkeypatch.setattr("onnxsqueeze.engine.exits.times", times)


@pytest.mark.parametrize("end", ["", "Softmax", "Tanh"])
def test_unseen_inputs_disagree_no_more_than_promised_and_the_parts_are_the_model(
    tmp_path: Path, quick: None, end: str
) -> None:
    whole = model(tmp_path / "m.onnx", end=end)
    found = exits(whole, inputs(4000, 0), output=tmp_path / "out", max_disagreement=0.03, one_file=True)
    run, x = router(tmp_path / "out"), inputs(3000, 1)
    early, full = run({"x": x}), answers(whole, x)

    assert found.scores == (end != "Tanh")
    wrong = early.argmax(1) != full.argmax(1)
    if not found.scores:
        spread = np.square(full - full.mean(0)).sum(1).mean()
        wrong = np.square(early - full).sum(1) > 0.05 * spread
    assert wrong.mean() <= 0.03
    assert run.left == pytest.approx(found.rate, abs=0.05) and found.rate >= 0.2
    run.threshold = np.float32(np.inf)
    assert np.abs(run({"x": x}) - full).max() < 1e-5
    if end == "Softmax":
        assert np.abs(early.sum(1) - 1).max() < 1e-5
    one = ort.InferenceSession(tmp_path / "out" / "exits.onnx", providers=["CPUExecutionProvider"])
    for i in range(40):
        assert np.abs(one.run(None, {"x": x[i : i + 1]})[0] - early[i]).max() < 1e-5


def test_a_quantized_model_is_cut_at_integers(tmp_path: Path, quick: None) -> None:
    data = Path(__file__).parents[2] / "models" / "cnn.calib.npz"
    onnxsqueeze.squeeze(data.with_name("cnn.onnx"), "int8", data, output=tmp_path / "q.onnx")
    found = exits(tmp_path / "q.onnx", data, output=tmp_path / "out", max_disagreement=0.05)
    rest = onnx.load(tmp_path / "out" / "rest.onnx")

    assert rest.graph.input[0].type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.INT8)
    assert found.tensor == rest.graph.input[0].name
    x = np.load(data)["input"][:50]
    run = router(tmp_path / "out")
    run.threshold = np.float32(np.inf)
    session = ort.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    assert np.array_equal(run({"input": x}), session.run(None, {"input": x})[0])


def test_the_same_bytes_again(tmp_path: Path, quick: None) -> None:
    whole = model(tmp_path / "m.onnx")
    for name in ("a", "b"):
        exits(whole, inputs(1000, 0), output=tmp_path / name, max_disagreement=0.05)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    about = json.loads((tmp_path / "a" / "exits.json").read_text())
    assert about["bound"] <= 0.05 and about["confirmed"] == 500


def test_nothing_is_written_where_it_does_not_pay_or_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxsqueeze.engine.exits.times", lambda *given: (0.95, 1.0))
    whole, x = model(tmp_path / "m.onnx"), inputs(1000, 0)
    many, flat = model(tmp_path / "two.onnx", two=True), model(tmp_path / "flat.onnx", blocks=0)
    for path, data, words in (
        (whole, x[:100], "50 inputs cannot show .* give 498 more"),
        (many, x, "2 outputs"),
        (flat, x, "no place for an exit"),
        (whole, x, r"do not pay .* can leave, which takes \d\.\d+ of the time"),
    ):
        with pytest.raises(UsageError, match=words):
            exits(path, data, output=tmp_path / "out", at_least=0.9)
        assert not (tmp_path / "out").exists()
    with pytest.raises(FeedError, match="fitted to those of the model"):
        exits(whole, output=tmp_path / "out")


def test_cuts_are_where_one_tensor_crosses(tmp_path: Path) -> None:
    graph = load(model(tmp_path / "m.onnx", blocks=3))
    found = cuts(View(graph), macs(graph, {"x": inputs(1, 0)}))

    assert [cut.tensor for cut in found] == ["r0", "r1", "r2", "p"]
    shares = [cut.share for cut in found]
    assert shares == sorted(shares) and shares[-1] < 1


def test_the_command_line(tmp_path: Path, quick: None) -> None:
    whole = model(tmp_path / "m.onnx")
    np.savez(tmp_path / "m.calib.npz", x=inputs(2000, 0))
    run = partial(CliRunner().invoke, main)
    arguments = ["exits", str(whole), "-o", str(tmp_path / "out")]
    done = run([*arguments, "--max-disagreement", "5%"])
    assert done.exit_code == 0 and "with 95 % confidence" in " ".join(done.output.split())
    again = run([*arguments, "--max-disagreement", "5%"])
    assert again.exit_code == 2 and "not empty" in again.output
    wrong = run([*arguments[:2], "-o", str(tmp_path / "other"), "--max-disagreement", "2"])
    assert wrong.exit_code == 2 and "shares between 0 and 1" in " ".join(wrong.output.split())
