"""What pipelines make of a folder of real models, beside ONNX Runtime's static quantizer: one line for each pair.

``real_models.py FOLDER`` takes each ``NAME.onnx`` of the folder, with the feeds of ``NAME/`` to calibrate (one ``.npz``
each, arrays by input name) and those of ``NAME.unseen/`` to judge; random feeds where there are none. For each pipeline
it runs the command in a process of its own, under a limit, and prints

* ``size``: the file over the float file; ``dB``: the SQNR of the answers on the unseen feeds, by the project's ruler
  at the outputs, and ``held``: the one that the report tells, at the taps as well;
* ``latency``: processor time of a run over the float model's, one thread, in turn;
* ``cpu``, ``wall`` and ``MB``: processor and wall seconds, and peak memory, of the command;
* ``nodes``: nodes done and skipped by the last pass, and how many have weights; ``rc``: the exit code;
* ``wrong``: what must not be: an exit with 2 or 4 or by a signal, a larger file, more than 2 % slower for sure, under
  the budget that the pipeline asks for, or a node with a weight that has no entry.

``ort_static`` is ``quantize_static`` as its documentation advises: pre-processed, Q/DQ, weights per channel, MinMax.
``--json`` appends the rows to a file. It reads rusage, so it runs where there is ``os.wait4``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx

from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.weighted import weighted
from onnxsqueeze.measure.answers import Ruler, answer, decibels
from onnxsqueeze.measure.random_nodes import Recorded, find
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.timing import latency

PIPELINES = ("int8", "lowrank,int8", "prune{ratio=0.8},int8")
STATIC = "ort_static"
BUDGET = {"int8": 21.9, "lowrank,int8": 21.9}
"""The SQNR in dB that the defaults of a pipeline promise: ``max-drop`` of int8 is 0.08."""
SLOWER = 1.02
LARGER = 1.001
SCRIPT = str(Path(__file__).resolve())
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(each).resolve()) for each in sys.path if each)}
"""Commands run in a folder of their own, since some leave files behind, and import what this one does."""
UNSEEN = 4
"""Random feeds on which a result is judged."""


@dataclass
class Row:
    """What one pipeline has made of one model."""

    model: str
    pipeline: str
    rc: int
    cpu: float
    wall: float
    mb: float
    size: float = math.nan
    db: float = math.nan
    held: float = math.nan
    latency: float = math.nan
    between: tuple[float, float] = (math.nan, math.nan)
    nodes: str = ""
    note: str = ""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.model:22} {self.pipeline:22} {self.size:5.2f} {self.db:6.1f} {self.held:6.1f} {self.latency:5.2f} "
            f"{self.cpu:6.1f} {self.wall:6.1f} {self.mb:5.0f} {self.nodes:>12} {self.rc:3} {'; '.join(self.wrong)}"
        )


def run(command: Sequence[str], limit: float, log: Path) -> tuple[int, float, float, float]:
    """Run a command; return its exit code (−9 over the limit), processor and wall seconds, and peak memory in MB."""
    begin = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=log.parent, env=ENVIRONMENT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - begin > limit:
                process.kill()
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    return process.returncode, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024


def feeds_of(model: Path, folder: Path, name: str, count: int | None, seed: int) -> Path:
    """Return a folder of feeds: the one beside the model, or one with random feeds."""
    beside = model.with_name(f"{model.stem}{name}")
    if beside.is_dir():
        return beside
    made = folder / f"{model.stem}{name or '.calib'}"
    made.mkdir()
    for i, feed in enumerate(read("random", inputs_of(onnx.load(model, load_external_data=False)), seed=seed)):
        if count is None or i < count:
            np.savez(made / f"{i:03}.npz", **feed)  # type: ignore[arg-type]
    return made


def arrays(folder: Path) -> list[dict[str, np.ndarray]]:
    """Return the feeds of a folder."""
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def static(model: Path, calibration: Path, output: Path) -> None:
    """Quantize with ONNX Runtime's own tool, in this process."""
    from int8 import static as quantize

    quantize(model, arrays(calibration), output)


def tool(pipeline: str, model: Path, calibration: Path, output: Path, report: Path) -> list[str]:
    """Return the command that a pipeline, or ONNX Runtime's tool, is."""
    if pipeline == STATIC:
        return [sys.executable, SCRIPT, "--static", str(model), str(calibration), str(output)]
    command = [sys.executable, "-m", "onnxsqueeze", str(model), "-p", pipeline, "--calib", str(calibration)]
    return [*command, "-o", str(output), "--report", str(report)]


def measured(pipeline: str, model: Path, calibration: Path, unseen: Path, folder: Path, limit: float) -> Row:
    """Run one pipeline on one model, and judge what comes out."""
    output, report, log = folder / "out.onnx", folder / "out.json", folder / "log.txt"
    for path in (output, report):
        path.unlink(missing_ok=True)
    row = Row(model.stem, pipeline, *run(tool(pipeline, model, calibration, output, report), limit, log))
    if not output.exists():
        row.note = (log.read_text().strip().splitlines() or ["nothing was said"])[-1][:160]
    else:
        judge(row, model, output, unseen, limit)
    if report.exists():
        count(row, model, json.loads(report.read_text()))
    row.wrong = row.wrong + wrong(row) if pipeline != STATIC else []
    return row


def judge(row: Row, model: Path, output: Path, unseen: Path, limit: float) -> None:
    """Fill in size, error and speed of a result, from a process of its own: some results crash the runtime."""
    row.size = output.stat().st_size / model.stat().st_size
    log = output.with_suffix(".judged")
    rc, *_ = run([sys.executable, SCRIPT, "--judge", str(model), str(output), str(unseen)], limit, log)
    if rc:
        row.note = f"the result does not run ({rc}): {(log.read_text().strip().splitlines() or ['a crash'])[-1][:120]}"
        row.wrong.append("does not run")
        return
    row.db, row.latency, low, high = json.loads(log.read_text().strip().splitlines()[-1])
    row.between = (low, high)


def judged(model: Path, output: Path, folder: Path) -> tuple[float, float, float, float]:
    """Return the SQNR in dB of a result on feeds, its run time over the float model's, and the interval of that."""
    unseen = arrays(folder)
    draws = find(load(model))  # what is random, and lengths that are rounded, is the same for both
    fed = Recorded(unseen, draws, 0) if draws.nodes else unseen
    pair = [draws.as_inputs(load(each)) if draws.nodes else load(each) for each in (model, output)]
    error = Ruler.of(pair[0]).error(*(answer(each, None, fed) for each in pair))
    times = latency([Session(each, threads=1) for each in (model, output)], unseen[:2], 1.0)
    return decibels(error), times.ratio, times.low, times.high


def count(row: Row, model: Path, report: dict[str, object]) -> None:
    """Fill in what the report tells: its SQNR, and how many nodes with weights have an entry in its first own step."""
    held = report["sqnr_db"]
    row.held = math.inf if held is None else float(held)  # type: ignore[arg-type]
    steps = [step for step in report["steps"] if not step["implicit"]]  # type: ignore[attr-defined]
    entries = {entry["key"] for step in steps for entry in (*step["done"], *step["skipped"])}
    before = {key_of(each.node) for each in weighted(View(load(model)))}
    after = {key_of(each.node) for each in weighted(View(load(str(report["output"]))))} if report["output"] else before
    missing = (before & after) - entries
    row.nodes = f"{len(entries)}/{len(before)}"
    if missing:
        row.wrong.append(f"no entry: {sorted(missing)[0]} and {len(missing) - 1} more")


def wrong(row: Row) -> list[str]:
    """Return what must not be."""
    found = []
    if row.rc < 0 or row.rc in (2, 4):
        found.append(f"exit {row.rc}")
    if row.size > LARGER:
        found.append("larger")
    if row.between[0] > SLOWER:
        found.append("slower")
    if row.db < BUDGET.get(row.pipeline, 3.0):
        found.append("under its budget")
    return found


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", default="*", help="a glob on names of models")
    parser.add_argument("--pipeline", action="append", help=f"in the place of {', '.join(PIPELINES)} and {STATIC}")
    parser.add_argument("--limit", type=float, default=300, help="wall seconds that a command may take")
    parser.add_argument("--json", type=Path, help="a file to which rows are appended")
    parser.add_argument("--static", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--judge", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge:
        print(json.dumps(judged(*given.judge)))
        return
    if given.static:
        static(*given.static)
        return
    print(f"{'model':22} {'pipeline':22} {'size':>5} {'dB':>6} {'held':>6} {'lat':>5} {'cpu':>6} {'wall':>6} {'MB':>5}"
          f" {'nodes':>12} {'rc':>3} wrong")  # fmt: skip
    for model in sorted(given.folder.resolve().glob("*.onnx")):
        if not fnmatch.fnmatch(model.stem, given.only):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            calibration = feeds_of(model, folder, "", None, 0)
            unseen = feeds_of(model, folder, ".unseen", UNSEEN, 1)
            for pipeline in given.pipeline or (*PIPELINES, STATIC):
                row = measured(pipeline, model, calibration, unseen, folder, given.limit)
                print(row, row.note, flush=True)
                if given.json:
                    with given.json.open("a") as stream:
                        stream.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
