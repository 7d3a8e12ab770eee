from __future__ import annotations

import numpy as np
import onnx

from onnxsqueeze.runtime.batches import of_batch, samples_in
from onnxsqueeze.runtime.session import Session

TEXT = '<ir_version: 8, opset_import: ["" : 13]> g (float[{0},2] x) => (float[{0},2] y) {{ y = Relu(x) }}'
FREE, FIXED = (Session(onnx.parser.parse_model(TEXT.format(axis))) for axis in "N3")
FEED = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}


def test_samples_are_cut_or_come_again() -> None:
    assert of_batch(FREE, FEED, 1)["x"].tolist() == [[0, 1]]
    assert of_batch(FREE, FEED, 4)["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert of_batch(FREE, FEED, 3)["x"] is FEED["x"]


def test_a_model_of_a_fixed_batch_keeps_its_feed() -> None:
    assert of_batch(FIXED, FEED, 1)["x"] is FEED["x"]


def test_samples_are_those_of_the_axis_that_all_inputs_share() -> None:
    assert samples_in(FEED) == 3
    assert samples_in({**FEED, "size": np.array(7)}) == 3
    assert samples_in({**FEED, "other": np.zeros((2, 2))}) == 1
    assert samples_in({"x": np.zeros((0, 2))}) == 1
