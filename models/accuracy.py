"""Prints the accuracy, file size and latency of digit classifiers: `python models/accuracy.py MODEL.onnx ...`.

Accuracy is the share of the 1,000 test digits of `digits.npz` that are classified right. Latency is that of one digit
on one thread. Points and ratios compare each model with the first one named; the runs take turns, so that a busy
machine slows all of them alike, and the latency ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

FOLDER = Path(__file__).parent
SECONDS = 2.0  # of timing for each model


def open_session(path: Path) -> ort.InferenceSession:
    """Opens the model at `path` for one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(session: ort.InferenceSession, inputs: np.ndarray, classes: np.ndarray) -> float:
    """The share of `inputs`, float32 [N, 1, 28, 28], whose largest logit is that of its class, in percent."""
    name = session.get_inputs()[0].name
    guesses = np.concatenate([session.run(None, {name: part})[0].argmax(1) for part in np.array_split(inputs, 10)])
    return 100 * float((guesses == classes).mean())


def best_of_three(session: ort.InferenceSession, digit: np.ndarray) -> float:
    """The shortest of three runs on one digit, in seconds."""
    feed = {session.get_inputs()[0].name: digit}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return min(times)


def latencies(sessions: list[ort.InferenceSession], inputs: np.ndarray) -> np.ndarray:
    """Times the sessions in turn on single digits; returns seconds, float64 [turns, sessions]."""
    digits = np.split(inputs[:8], 8)
    turns = []
    end = time.perf_counter() + SECONDS * len(sessions)
    while time.perf_counter() < end:
        turns += [[best_of_three(session, digit) for session in sessions] for digit in digits]
    return np.array(turns[len(digits) :] or turns)  # the first round warms up


def main() -> None:
    """Measures the models named on the command line and prints one row for each."""
    parser = argparse.ArgumentParser(description="Compare digit classifiers with the first one named.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    paths = parser.parse_args().models
    for path in paths:
        if not path.is_file():
            parser.error(f"there is no file {path}")

    with np.load(FOLDER / "digits.npz", allow_pickle=False) as digits:
        inputs, classes = digits["x"][:, None].astype(np.float32) / np.float32(255), digits["y"]
    sessions = [open_session(path) for path in paths]
    right = [accuracy(session, inputs, classes) for session in sessions]
    sizes = [path.stat().st_size for path in paths]
    seconds = latencies(sessions, inputs)

    width = max(len(str(path)) for path in paths)
    print(f"{'model':{width}}  accuracy  points      MB  ratio      ms  ratio")
    for path, percent, size, times in zip(paths, right, sizes, seconds.T, strict=True):
        print(
            f"{path!s:{width}}  {percent:6.1f} %  {percent - right[0]:+6.1f}"
            f"  {size / 1e6:6.3f}  {size / sizes[0]:5.2f}"
            f"  {1000 * np.median(times):6.3f}  {np.median(times / seconds[:, 0]):5.2f}"
        )


if __name__ == "__main__":
    main()
