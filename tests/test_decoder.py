"""The decoder that ships: it goes on with text, also byte by byte, and does so as well in four bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnxsqueeze import squeeze
from onnxsqueeze.runtime.session import Session

FOLDER = Path(__file__).parents[1] / "models"
LENGTH = 128
Feed = dict[str, NDArray[np.generic]]
PAST: Feed = {
    f"past_{what}.{i}": np.zeros((1, 2, 0, 64), np.float32) for i in range(3) for what in ("key", "value")
}  # fmt: skip


@pytest.fixture(scope="module")
def text() -> dict[str, NDArray[np.int64]]:
    with np.load(FOLDER / "text.npz", allow_pickle=False) as data:
        return {name: data[name].astype(np.int64) for name in data.files}


def perplexity(session: Session, text: NDArray[np.int64], windows: int = 8) -> float:
    lost = []
    for start in range(0, windows * (LENGTH + 1), LENGTH + 1):
        row = text[start : start + LENGTH + 1]
        logits = np.asarray(session.run({"tokens": row[None, :-1], **PAST}, ["logits"])["logits"], np.float64)[0]
        top = logits.max(1)
        lost.append(np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(LENGTH), row[1:]])
    return float(np.exp(np.mean(lost)))


def test_it_goes_on_with_text_and_byte_by_byte_as_at_once(text: dict[str, NDArray[np.int64]]) -> None:
    session = Session(FOLDER / "decoder.onnx")
    row, past, steps = text["test"][:32], dict(PAST), []
    for byte in row:
        answers = session.run({"tokens": np.array([[byte]]), **past})
        steps.append(np.asarray(answers["logits"])[0, 0])
        past = {name: np.asarray(answers[name.replace("past", "present")]) for name in PAST}
    whole = np.asarray(session.run({"tokens": row[None], **PAST}, ["logits"])["logits"])[0]

    np.testing.assert_allclose(steps, whole, atol=1e-4)
    assert perplexity(session, text["test"]) < 3.6


def test_four_bits_cost_under_a_percent_of_perplexity(text: dict[str, NDArray[np.int64]], tmp_path: Path) -> None:
    feeds = [{"tokens": row[None], **PAST} for row in text["calibration"][:24]]
    found = squeeze(FOLDER / "decoder.onnx", "bits{4 rows=1}", feeds)
    session = Session(found.model, optimized=tmp_path / "optimized.onnx")
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert perplexity(session, text["test"]) < 1.01 * perplexity(Session(FOLDER / "decoder.onnx"), text["test"])
    assert ops["MatMulNBits"] >= 16  # all but the projections to keys and values, which are small
    assert len(found.model.SerializeToString()) < 0.165 * 4 * 1836800
    assert [site.action for site in found.report.steps[-2].done].count("multiplied in 4 bits") >= 15


def test_its_weights_are_in_16_bits_in_the_file() -> None:
    stored = onnx.load(FOLDER / "decoder.onnx")
    kinds = {tensor.data_type for tensor in stored.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 64}

    assert kinds == {onnx.TensorProto.FLOAT16}
    assert (FOLDER / "decoder.onnx").stat().st_size < 0.55 * 4 * 1836800
