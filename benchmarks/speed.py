"""Compare two builds in processor seconds and peak memory: ``python benchmarks/speed.py BEFORE AFTER [ROW ...]``.

BEFORE and AFTER are interpreters that have a build installed, or folders with the sources of one, which the present
interpreter then imports. Each row runs in a process of its own, first before, then after, with one BLAS thread; what
counts is the processor time of the whole process, its threads and start included. Rows are globs on names; without any
all are run. ``--list`` prints them.

``--lab DIR`` adds real models: ``DIR/zoo`` holds them, ``DIR/calib/NAME`` folders of feeds (the default is
~/.cache/squeeze-lab). What ONNX Runtime's own static quantizer takes is measured with the interpreter of AFTER.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
ZOO = {
    "ppocr_rec": "ch_PP-OCRv4_rec_infer.onnx", "ppocr_det": "ch_PP-OCRv4_det_infer.onnx",
    "ppocr_cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx", "minilm": "minilm_dynamo.onnx",
    "silero_vad": "silero_vad.onnx", "yolov8n": "320n.onnx",
}  # fmt: skip
FACTORED = ("resnet", "yolov8n", "minilm", "ppocr_det")
LIMIT = 900
"""Seconds that a row may take."""

SQUEEZE = """
from onnxsqueeze import squeeze
report = squeeze(model, pipeline, feeds, output=out).report
told(dB=report.sqnr_db, bytes=report.after.bytes)
"""
CALIBRATE = """
from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.select import needs
from onnxsqueeze.passes.lowrank import LowRank
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.statistics.needs import Range
from onnxsqueeze.statistics.sweep import collect
from time import process_time
graph = load(model)
data = list(read(feeds, inputs_of(encode(graph, skeleton=True)), model_path=model))
data = [data[i % len(data)] for i in range(count or len(data))]
view = View(graph)
ranges = [Range(t.name) for n in view.nodes for t in n.outputs if t.name and not view.in_body(n)]
grams = list(needs(view, LowRank()))
session = Session(graph)
session.run(data[0])
def seconds(call):
    start = process_time()
    call()
    return process_time() - start
bare = seconds(lambda: [session.run(feed) for feed in data])
one = seconds(lambda: one_blas_thread(collect)(graph, ranges, data))
both = seconds(lambda: one_blas_thread(collect)(graph, [*ranges, *grams], data))
told(ranges=one / bare, ranges_and_gram=both / bare)
"""
SENSITIVITY = """
from onnxsqueeze.engine.sensitivity import sensitivity
sensitivity(model, pipeline, feeds)
told()
"""
DIFF = """
import onnx, sys
sys.path.insert(0, benchmarks)
from diff_speed import chain
from onnxsqueeze import diff
for name, prefix in (("a", ""), ("b", "other/")):
    onnx.save(chain(count, prefix), f"{out}.{name}.onnx")
from time import process_time
start = process_time()
diff(f"{out}.a.onnx", f"{out}.b.onnx")
told(seconds=process_time() - start)
"""
CLEAN = """
import onnx, sys
sys.path.insert(0, benchmarks)
from diff_speed import chain
from onnxsqueeze import squeeze
onnx.save(chain(count), f"{out}.a.onnx")
from time import process_time
start = process_time()
squeeze(f"{out}.a.onnx", "clean", output=out, validate="none")
told(seconds=process_time() - start)
"""
STATIC = """
import onnx, onnx.version_converter
from glob import glob
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
class Reader(CalibrationDataReader):
    def __init__(self):
        self.feeds = (dict(np.load(path)) for path in sorted(glob(feeds + "/*.npz")))
    def get_next(self):
        return next(self.feeds, None)
loaded = onnx.load(model)
if next(each.version for each in loaded.opset_import if not each.domain) < 13:
    loaded = onnx.version_converter.convert_version(loaded, 13)
onnx.save(loaded, out + ".raised.onnx")
quant_pre_process(out + ".raised.onnx", out + ".ready.onnx", skip_symbolic_shape=True)
quantize_static(out + ".ready.onnx", out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=getattr(CalibrationMethod, pipeline))
told()
"""


@dataclass(frozen=True)
class Row:
    """What is run: ``code`` with these names; ``foreign`` is nothing of ours and is run once."""

    name: str
    code: str
    model: str = ""
    pipeline: str = ""
    feeds: str | None = None
    count: int = 0
    foreign: bool = False


@dataclass(frozen=True)
class Taken:
    """Seconds of the processor, MB at the peak, and what the row has told."""

    seconds: float
    peak: float
    told: dict[str, float]
    failed: str = ""


def rows(lab: Path) -> Iterator[Row]:
    """Yield all rows for the models that are there."""
    found = {name: (str(lab / "zoo" / file), str(lab / "calib" / name)) for name, file in ZOO.items()}
    there: dict[str, tuple[str, str | None]] = {name: pair for name, pair in found.items() if Path(pair[0]).exists()}
    there["resnet"] = str(MODELS / "resnet.onnx"), None
    for name, (model, feeds) in there.items():
        yield Row(f"int8 {name}", SQUEEZE, model, "int8", feeds)
        if feeds is not None:
            yield Row(f"static MinMax {name}", STATIC, model, "MinMax", feeds, foreign=True)
            yield Row(f"static Percentile {name}", STATIC, model, "Percentile", feeds, foreign=True)
    for pipeline in ("lowrank{ratio=0.5}", "prune{ratio=0.8}"):
        for name in FACTORED:
            if name in there:
                yield Row(f"{pipeline} {name}", SQUEEZE, there[name][0], pipeline, there[name][1])
    yield Row("sparsify resnet", SQUEEZE, there["resnet"][0], "sparsify")
    for name, (model, feeds) in there.items():
        if feeds is not None:
            yield Row(f"calibration {name}", CALIBRATE, model, feeds=feeds)
    for count in (8, 64, 512):
        yield Row(f"calibration {count} feeds resnet", CALIBRATE, there["resnet"][0], feeds="random", count=count)
    if "yolov8n" in there:
        model, feeds = there["yolov8n"]
        for pipeline in ("lowrank", "prune", "sparsify", "int8"):
            yield Row(f"sensitivity {pipeline} yolov8n", SENSITIVITY, model, pipeline, feeds)
    for count in (10_000, 50_000):
        yield Row(f"diff {count}", DIFF, count=count)
    yield Row("clean 100000", CLEAN, count=100_000)


def run(build: str, row: Row) -> Taken:
    """Run a row in a process of its own."""
    source = Path(build)
    python, path = (sys.executable, str(source.resolve())) if source.is_dir() else (build, "")
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        names = {"model": row.model, "pipeline": row.pipeline, "feeds": row.feeds, "count": row.count}
        names |= {"out": f"{folder}/out.onnx", "benchmarks": str(HERE)}
        head = f"import json\nglobals().update(json.loads({json.dumps(names)!r}))\n"
        head += f"def told(**values): open({folder + '/told'!r}, 'w').write(json.dumps(values))\n"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        with Path(folder, "log").open("w+b") as log:
            child = subprocess.Popen([python, "-c", head + row.code], env=env, cwd=folder, stdout=log, stderr=log)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
        told = Path(folder, "told")
        values = json.loads(told.read_text()) if told.exists() else {}
    failed = "" if child.returncode == 0 else (said or [f"exit code {child.returncode}"])[-1][:80]
    return Taken(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, values, failed)


def line(name: str, before: Taken | None, after: Taken) -> str:
    """Return a row of the table."""

    def one(taken: Taken | None) -> str:
        if taken is None:
            return ""
        told = " ".join(f"{key} {value:.4g}" for key, value in taken.told.items() if value is not None)
        return taken.failed or f"{taken.seconds:.1f} s {taken.peak:.0f} MB {told}".strip()

    ratio = "" if before is None or before.failed or after.failed else f"{after.seconds / before.seconds:.2f}"
    return f"| {name} | {one(before)} | {one(after)} | {ratio} |"


def main() -> None:
    """Run the rows and print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?")
    parser.add_argument("after", nargs="?")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--lab", type=Path, default=Path.home() / ".cache/squeeze-lab")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = [row for row in rows(args.lab) if not args.rows or any(fnmatch(row.name, each) for each in args.rows)]
    if args.list or args.before is None or args.after is None:
        print(*(row.name for row in chosen), sep="\n")
        return
    print("| row | before | after | ratio |\n|---|---|---|---|", flush=True)
    totals = [0.0, 0.0]
    for row in chosen:
        before = None if row.foreign else run(args.before, row)
        after = run(args.after, row)
        if before is not None and not before.failed and not after.failed:
            totals = [totals[0] + before.seconds, totals[1] + after.seconds]
        print(line(row.name, before, after), flush=True)
    if totals[0]:
        print(f"| all | {totals[0]:.1f} s | {totals[1]:.1f} s | {totals[1] / totals[0]:.2f} |")


if __name__ == "__main__":
    main()
