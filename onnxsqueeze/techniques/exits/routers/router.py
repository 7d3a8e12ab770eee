"""Runs a model with an early exit: inputs that the stem is sure of get its answer, the others go through the rest.

Needs NumPy and ONNX Runtime, and the files beside it. python router.py feeds.npz prints the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


class Router:
    """``router(feed)`` returns the answers; ``router.left`` is the share of inputs that have left early so far."""

    def __init__(self, folder: Path = Path(__file__).parent, threshold: float | None = None, **options: Any) -> None:
        about = json.loads(Path(folder, "exits.json").read_text(encoding="utf-8"))
        options.setdefault("providers", ["CPUExecutionProvider"])
        self.stem, self.rest = (
            ort.InferenceSession(str(Path(folder, name)), **options) for name in ("stem.onnx", "rest.onnx")
        )
        self.names = [about["outputs"][name] for name in ("answer", "confidence", "crossing")]
        self.threshold = np.float32(about["threshold"] if threshold is None else threshold)
        self.count = self.early = 0

    def __call__(self, feed: dict[str, Any]) -> Any:
        answer, confidence, crossing = self.stem.run(self.names, feed)
        unsure = np.flatnonzero(~(confidence >= self.threshold))
        if unsure.size:
            behind = crossing if unsure.size == len(crossing) else crossing[unsure]
            late = self.rest.run(None, {self.names[2]: behind})[0]
            answer = late if unsure.size == len(answer) else answer
            answer[unsure] = late
        self.count, self.early = self.count + len(answer), self.early + len(answer) - unsure.size
        return answer

    @property
    def left(self) -> float:
        return self.early / max(self.count, 1)


if __name__ == "__main__":
    router = Router()
    print(router(dict(np.load(sys.argv[1]))), f"{router.left:.0%} left early", sep="\n")
