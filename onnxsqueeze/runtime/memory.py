"""What a model takes of memory at run time: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.errors import ModelError
from onnxsqueeze.ir.files import save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import nameable

__all__ = ["Memory", "memory"]

SECONDS = 300
"""How long loading and two runs may take."""
PROCESSES = 3
"""How many processes are asked: where the C library keeps what was freed is partly chance."""
_SCRIPT = """
import json, sys, time
import numpy as np
import onnxruntime as ort

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return 1024 * int(line.split()[1])

def reset():
    try:
        open("/proc/self/clear_refs", "w").write("5")
    except OSError:
        pass

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
bare, model, feeds = sys.argv[1:]
warm = ort.InferenceSession(bare, options, providers=["CPUExecutionProvider"])
with np.load(feeds) as data:
    feed = dict(data)
reset()
before, start = status("VmRSS"), time.process_time()
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
seconds = time.process_time() - start
loaded = status("VmHWM")
for value in session.get_inputs():
    if value.type == "tensor(float16)":
        feed[value.name] = feed[value.name].astype(np.float16)
for _ in range(2):
    session.run(None, feed)
print(json.dumps({"resident": status("VmRSS") - before, "peak": status("VmHWM") - before,
                  "loading": loaded - before, "milliseconds": 1000 * seconds}))
"""
"""Run by itself: it needs onnxruntime and numpy alone."""


@dataclass(frozen=True)
class Memory:
    """Bytes over those of a process that has loaded a model of one node, on one thread.

    ``resident`` after two runs, ``peak`` up to then, ``loading`` the peak before the first run; ``milliseconds`` of
    processor time went into loading. Each is the median of three processes.
    """

    resident: int
    peak: int
    loading: int
    milliseconds: float


def memory(model: Graph | Path, feed: Mapping[str, NDArray[np.generic]]) -> Memory | None:
    """Load and run a model in processes of its own; None where the system does not tell what a process takes (it is
    read from ``/proc``). Raises ModelError if a process fails.
    """
    if not Path("/proc/self/status").is_file():
        return None
    with TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True) as folder:
        path, bare, feeds = (Path(folder, name) for name in ("model.onnx", "bare.onnx", "feeds.npz"))
        model = nameable(model) if isinstance(model, Path) else model
        if isinstance(model, Path):
            path = model
        else:
            save(model, path)
        bare.write_bytes(_bare())
        np.savez(feeds, **feed)  # type: ignore[arg-type]
        command = [sys.executable, "-c", _SCRIPT, str(bare), str(path.resolve()), str(feeds)]
        told = [_asked(command) for _ in range(PROCESSES)]
    middle = {key: sorted(each[key] for each in told)[PROCESSES // 2] for key in told[0]}
    return Memory(int(middle["resident"]), int(middle["peak"]), int(middle["loading"]), middle["milliseconds"])


def _asked(command: list[str]) -> dict[str, float]:
    """Return what one process tells of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"the memory of the model was not measured: it ran for over {SECONDS} s") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"the memory of the model was not measured: its process failed with {reason[0][:200]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _bare() -> bytes:
    """Return the smallest model there is."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "bare", value[:1], value[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(made.SerializeToString())
