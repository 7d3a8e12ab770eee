"""What each pass makes of each model that ships: dB, bytes and nodes.

``python tests/models/golden.py`` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.contract.bench import Bench

__all__ = ["FILE", "MODELS", "PASSES", "Figures", "figures"]

FILE = Path(__file__).with_suffix(".json")
FOLDER = Path(__file__).parents[2] / "models"
MODELS = ("cnn", "dwcnn", "mlp", "resnet")
PASSES = ("clean", "canonical", "depthwise", "int8", "lowrank", "prune", "sparsify")
SAMPLES = 64

Figures = dict[str, float | int | None]


def figures(model: str, pass_: str) -> Figures:
    """Return the SQNR of the worst output on held-out samples (None: exact), the bytes and the nodes of the result."""
    with np.load(FOLDER / f"{model}.calib.npz") as data:
        feeds = [{key: data[key][i : i + 1] for key in data.files} for i in range(SAMPLES)]
    with patch.object(Bench, "latency", lambda *_: 0.5):
        report = squeeze(FOLDER / f"{model}.onnx", pass_, feeds).report
    db = report.sqnr_db
    figure = None if db is None or not np.isfinite(db) else round(float(db), 2)
    return {"sqnr_db": figure, "bytes": report.after.bytes, "nodes": report.after.nodes}


def main() -> None:
    """Write the figures of this version, to be reviewed like code."""
    found = {model: {pass_: figures(model, pass_) for pass_ in PASSES} for model in MODELS}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
