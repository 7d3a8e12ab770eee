"""What few bits make of a decoder: bytes, perplexity, and the time of one token after the other.

    python benchmarks/decoder.py [MODEL.onnx ...]

Squeezes ``models/decoder.onnx`` with 8, 4, 3 and 2 bits and by ``int8``, and compares what comes out, and further
models with the same inputs, on ``models/text.npz``. Perplexity is that of 48 windows of 128 bytes. Times are medians of
seven rounds in turn, of 100 tokens each on one thread, in processor time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

from onnxsqueeze import squeeze

MODELS = Path(__file__).parents[1] / "models"
PIPELINES = (
    "bits{8 rows=1}",
    "bits{4 rows=1}",
    "bits{3 rows=1}",
    "bits{2 rows=1}",
    "bits{weights=4 activations=8}",
    "int8",
)
LENGTH, WINDOWS, TOKENS, ROUNDS = 128, 48, 100, 7


def opened(path: Path) -> ort.InferenceSession:
    """Return a session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def nothing(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    """Return keys and values of no bytes."""
    return {
        value.name: np.zeros([0 if isinstance(size, str) else size for size in value.shape], np.float32)
        for value in session.get_inputs()[1:]
    }


def perplexity(session: ort.InferenceSession, text: np.ndarray) -> float:
    """Return exp of the mean −log p of each byte after the first of its window."""
    past, lost = nothing(session), []
    for start in range(0, WINDOWS * (LENGTH + 1), LENGTH + 1):
        row = text[start : start + LENGTH + 1]
        logits = session.run(["logits"], {"tokens": row[None, :-1], **past})[0][0].astype(np.float64)
        top = logits.max(1)
        lost.append(np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(LENGTH), row[1:]])
    return float(np.exp(np.mean(lost)))


def token(session: ort.InferenceSession, text: np.ndarray) -> float:
    """Return the seconds of one token after the other."""
    past, start = nothing(session), time.thread_time()
    for byte in text[:TOKENS]:
        answers = session.run(None, {"tokens": np.array([[byte]]), **past})
        past = dict(zip(past, answers[1:], strict=True))
    return (time.thread_time() - start) / TOKENS


def main() -> None:
    """Print a row for each model."""
    with np.load(MODELS / "text.npz") as data:
        calibration, text = (data[name].astype(np.int64) for name in ("calibration", "test"))
    with tempfile.TemporaryDirectory() as folder:
        files = {"float": MODELS / "decoder.onnx", **{path: Path(path) for path in sys.argv[1:]}}
        past = nothing(opened(files["float"]))
        feeds = [{"tokens": row[None], **past} for row in calibration[:32]]
        for pipeline in PIPELINES:
            files[pipeline] = Path(folder) / f"{len(files)}.onnx"
            squeeze(files["float"], pipeline, feeds, output=files[pipeline])
        sessions = {name: opened(path) for name, path in files.items()}
        times = {name: [] for name in files}  # type: dict[str, list[float]]
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                times[name].append(token(session, text))
        whole = median(times["float"])
        for name, path in files.items():
            each = median(times[name])
            figures = f"{path.stat().st_size / 1e6:6.2f} MB  {perplexity(sessions[name], text):.4f}"
            print(f"{name:32}{figures}  {1e6 * each:6.0f} us a token  {each / whole:.2f}")


if __name__ == "__main__":
    main()
