from __future__ import annotations

import json

import pytest
from golden import FILE, MODELS, Figures, built_in, figures

GOLDEN: dict[str, dict[str, Figures]] = json.loads(FILE.read_text(encoding="utf-8"))
EXACT = 100.0
"""SQNR in dB of what is exact but for the order of sums."""
SLACK = 0.5
"""dB by which another processor, or another version of ONNX Runtime, may move a figure."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pass_", built_in())
def test_no_pass_makes_less_of_a_model_that_ships_than_it_did(model: str, pass_: str) -> None:
    """``python tests/models/golden.py`` writes the figures of a change that is meant, or of a new pass."""
    before, now = GOLDEN[model][pass_], figures(model, pass_)
    old, new = (EXACT if each["sqnr_db"] is None else float(each["sqnr_db"]) for each in (before, now))

    assert min(new, EXACT) >= min(old, EXACT) - SLACK
    assert float(now["bytes"] or 0) <= 1.005 * float(before["bytes"] or 0)
    assert now["nodes"] == before["nodes"]
