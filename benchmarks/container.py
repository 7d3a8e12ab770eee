"""What containers of models cost: ``python benchmarks/container.py MODEL…``.

For each coder: bytes, processor time of ``pack`` and ``unpack`` on one thread in millions of weights a second, and what
it takes to open a session, in a fresh process each: processor time beside that of the file, and memory above the
process with all that it imports (resident afterwards, and the peak).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import onnx

import onnxsqueeze
from onnxsqueeze.container.encoding import NAMES
from onnxsqueeze.container.unpacking import Unpacked
from onnxsqueeze.errors import UsageError

ROUNDS = 3
OPEN = """
import json, sys
from time import process_time
import onnx, onnxruntime as ort, onnxsqueeze, onnxsqueeze.runtime.session

def memory():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")]

before, start = memory(), process_time()
session = onnxsqueeze.session(sys.argv[1])
seconds, (resident, peak) = process_time() - start, memory()
print(json.dumps([seconds, resident - before[0], peak - before[0]]))
"""


def opened(path: Path) -> tuple[float, float, float]:
    """Return seconds, MiB resident and MiB at the peak, of a process that opens a session."""
    rows = [json.loads(subprocess.check_output([sys.executable, "-c", OPEN, str(path)])) for _ in range(ROUNDS)]
    seconds, resident, peak = (median(column) for column in zip(*rows, strict=True))
    return seconds, resident, peak


def main(models: list[str]) -> None:
    """Print a table per model."""
    for model in map(Path, models):
        tensors = onnx.load(model).graph.initializer
        weights = sum(int(np.prod(tensor.dims)) for tensor in tensors) / 1e6
        plain = opened(model)
        limit = (model.stat().st_size + 3 * max(tensor.ByteSize() for tensor in tensors)) / 2**20
        print(
            f"{model.name}: {model.stat().st_size / 1e6:.1f} MB, {weights:.1f} M weights, opened in {plain[0]:.2f} s,"
        )
        print(f"{plain[1]:.0f} MiB resident, {plain[2]:.0f} at the peak; model + 3 × its largest tensor {limit:.0f}")
        for coder in NAMES:
            with tempfile.TemporaryDirectory() as folder:
                packed = Path(folder, "m.osq")
                start = process_time()
                try:
                    onnxsqueeze.pack(model, packed, coder=coder)
                except UsageError:
                    continue
                packing = process_time() - start
                unpacking = []
                for _ in range(ROUNDS):
                    start = process_time()
                    for _ in Unpacked(memoryview(packed.read_bytes())).chunks():
                        pass
                    unpacking.append(process_time() - start)
                seconds, resident, peak = opened(packed)
                print(
                    f"  {coder:8} {packed.stat().st_size / 1e6:7.2f} MB, pack {weights / packing:5.1f} M/s, unpack "
                    f"{weights / min(unpacking):5.1f} M/s, opened in {seconds / plain[0]:.2f} ×, "
                    f"{resident:.0f} MiB resident, {peak:.0f} at the peak"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
