"""What each pass makes of each model that ships: dB, bytes and nodes.

``python tests/models/golden.py`` writes the figures of all passes anew, with names of passes those of these.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from onnxsqueeze import squeeze
from onnxsqueeze.contract.bench import Bench
from onnxsqueeze.engine import registry

__all__ = ["FILE", "MODELS", "Figures", "built_in", "figures"]

FILE = Path(__file__).with_suffix(".json")
FOLDER = Path(__file__).parents[2] / "models"
MODELS = ("cnn", "dwcnn", "mlp", "resnet")
SAMPLES = 64

Figures = dict[str, float | int | None]


def built_in() -> list[str]:
    """Return the passes that come with the project."""
    return [each.name for each in registry.listing() if each.origin == "built-in"]


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
    old = json.loads(FILE.read_text(encoding="utf-8")) if len(sys.argv) > 1 else {}
    for model in MODELS:
        old.setdefault(model, {}).update({pass_: figures(model, pass_) for pass_ in sys.argv[1:] or built_in()})
    FILE.write_text(json.dumps(old, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
