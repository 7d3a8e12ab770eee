"""What int8 brings on the models that ship, beside ONNX Runtime's own quantizer, and what the command costs.

``int8.py`` prints, for each model of ``models/``, the float model, ``quantize_static`` as its documentation advises for
CNNs (opset 13, pre-processed, Q/DQ, uint8 activations and int8 weights per channel, MinMax) and ``int8`` on the same
calibration feeds: accuracy on the test digits, SQNR in dB there, latency of one digit on one thread (interleaved) and
file size relative to the float model, and the seconds of quantizing.

Then it prints peak memory and seconds of the whole command with 8, 64 and 512 feeds, against bounds: memory against
three times the model and 300 MB, seconds against four times bare float inference over the feeds and 6 s.
``int8.py MODEL.onnx [FEEDS]`` prints that for any model; feeds of the folder FEEDS (random ones without it) are
repeated to their number. Memory is read from /proc, so this part runs on Linux alone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxsqueeze import squeeze
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency

MODELS = Path(__file__).parents[1] / "models"
SHIPPED = ("mlp", "cnn", "dwcnn", "resnet")
COUNTS = (8, 64, 512)
DIGITS = 8  # in a feed
Feed = dict[str, Any]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands feeds to ``quantize_static``."""

    def __init__(self, given: Sequence[Feed]) -> None:
        self.left = iter(given)

    def get_next(self) -> Feed | None:
        """Return the next feed, None at the end."""
        return next(self.left, None)


def static(model: Path, given: Sequence[Feed], output: Path) -> None:
    """Quantize with ONNX Runtime's own tool."""
    with tempfile.TemporaryDirectory() as folder:
        new, prepared = Path(folder, "new.onnx"), Path(folder, "prepared.onnx")
        proto = onnx.load(model)
        if next(each.version for each in proto.opset_import if not each.domain) < 13:  # scales per channel need it
            proto = onnx.version_converter.convert_version(proto, 13)
        onnx.save(proto, new)
        quant_pre_process(str(new), str(prepared))
        quantize_static(
            prepared, output, Reader(given), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def int8(model: Path, given: Sequence[Feed], output: Path) -> None:
    """Quantize with this project."""
    squeeze(model, "int8", given, output=output)


def digits() -> tuple[list[Feed], np.ndarray]:
    with np.load(MODELS / "digits.npz") as arrays:
        x, y = arrays["x"][:, None].astype(np.float32) / np.float32(255), arrays["y"]
    return [{"input": part} for part in np.split(x, 10)], y


def calibration(name: str) -> list[Feed]:
    with np.load(MODELS / f"{name}.calib.npz") as arrays:
        return [{"input": part} for part in np.split(arrays["input"], len(arrays["input"]) // DIGITS)]


def compare_tools(seconds: float) -> None:
    """Print a line for each model and tool."""
    tests, classes = digits()
    singles = [{"input": feed["input"][:1]} for feed in tests]
    print(f"{'model':8} {'tool':12} {'score':>6} {'SQNR':>6} {'latency':>8} {'size':>6} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in SHIPPED:
            path, given = MODELS / f"{name}.onnx", calibration(name)
            expected = [Session(path).run(feed) for feed in tests]
            for tool, quantize in (("float", None), ("ort_static", static), ("int8", int8)):
                output, begin = Path(folder, f"{name}.{tool}.onnx"), time.perf_counter()
                if quantize is None:
                    output = path
                else:
                    quantize(path, given, output)
                taken = time.perf_counter() - begin
                found = [Session(output).run(feed) for feed in tests]
                guesses = np.concatenate([np.asarray(answer["logits"]).argmax(1) for answer in found])
                ratio = latency([Session(each, threads=1) for each in (path, output)], singles, seconds).ratio
                score, sqnr = 100 * np.mean(guesses == classes), worst(compare(expected, found))
                size = output.stat().st_size / path.stat().st_size
                print(f"{name:8} {tool:12} {score:6.1f} {sqnr:6.1f} {ratio:8.2f} {size:6.2f} {taken:8.1f}", flush=True)


def files(model: Path, source: Path | None, folder: Path) -> Iterator[Path]:
    """Yield files of one feed each, those of ``source`` or random ones."""
    if source is not None:
        yield from sorted(source.glob("*.npz"))
        return
    given = read_feeds("random", inputs_of(onnx.load(model, load_external_data=False)))
    for i, feed in enumerate(calibration(model.stem) if model.parent == MODELS else given):
        np.savez(folder / f"{i}.npz", **feed)
        yield folder / f"{i}.npz"


def measure_command(model: Path, source: Path | None) -> None:
    """Print a line for each number of feeds."""
    data = sum(each.stat().st_size for each in model.parent.glob(f"{model.name}*")) / 1e6
    print(f"\n{model.name}, {data:.1f} MB")
    print(f"{'feeds':>6} {'peak MB':>8} {'bound':>8} {'seconds':>8} {'bound':>8} {'float inference':>16}")
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name, "feeds")
        kept.mkdir()
        given = list(files(model, source, kept))
        for count in COUNTS:
            folder = Path(name, str(count))
            folder.mkdir()
            for i in range(count):
                (folder / f"{i:04}.npz").hardlink_to(given[i % len(given)])
            bare = bare_inference(model, folder)
            peak, seconds = run_command(model, folder, Path(name, "out.onnx"))
            print(
                f"{count:6} {peak:8.0f} {3 * data + 300:8.0f} {seconds:8.1f} {4 * bare + 6:8.1f} {bare:16.1f}",
                flush=True,
            )


def bare_inference(model: Path, folder: Path) -> float:
    """Return how many seconds it takes to open the float model and to run it on each feed."""
    begin = time.perf_counter()
    session = Session(model)
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            session.run(dict(arrays))
    return time.perf_counter() - begin


def run_command(model: Path, folder: Path, output: Path) -> tuple[float, float]:
    """Run ``onnxsqueeze MODEL -p int8``; return the most memory that it held, in MB, and its seconds."""
    begin, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "onnxsqueeze", model, "-p", "int8", "--calib", folder, "-o", output]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        held = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii"))
        peak = max(peak, int(held[1]) if held else 0)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"the command failed with exit code {process.returncode}")
    return peak * 1024 / 1e6, time.perf_counter() - begin


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("feeds", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=2.0, help="for which each latency is measured")
    given = parser.parse_args()
    if given.model is None:
        compare_tools(given.seconds)
        measure_command(MODELS / "resnet.onnx", None)
    else:
        measure_command(given.model.resolve(), given.feeds)


if __name__ == "__main__":
    main()
