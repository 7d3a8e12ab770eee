"""Generated models, mutants, flipped bits and hostile files through every pass, each in a process that may die.

    $ python benchmarks/fuzz/run.py --minutes 5 --first 0

counts per kind of case what became of it, and prints the seed of each that is a fault of ours; `--only KIND:SEED:PASS`
runs one again and shows where it goes wrong. The same seed makes the same case, whatever ran before.

* fine: the result loads, has the outputs of the original, and its answers on unseen feeds are as close as its pass says
* refused: an error of exit code 2, 3 or 5, in one sentence
* outside: the model itself does not run, or kills ONNX Runtime, which the passes then are not asked about
* wrong, bug (exit code 4), crash, hang: ours
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

PASSES = ("clean", "canonical", "lowrank{ratio=0.5}", "depthwise", "prune{ratio=0.8}", "sparsify{ratio=0.5}", "int8",
          "int8{arithmetic=false}", "bits{4}", "half", "code", "lowrank,int8")  # fmt: skip
LOSSLESS = {"clean": 1e-3, "canonical": 1e-3}
"""The largest error relative to the largest value of an output, on feeds that nothing was decided by."""
SECONDS = 60.0
"""After which a case hangs."""
MEMORY = 6 << 30
"""Bytes of address space of a process."""
KNOWN = ("fine", "refused", "outside", "wrong", "bug", "crash", "hang")


def case(kind: str, seed: int, pass_: str) -> dict[str, str]:
    """Return what becomes of a case: its state, and words for it."""
    import onnxruntime as ort
    from mutants import feeds, made

    from onnxsqueeze import squeeze
    from onnxsqueeze.errors import SqueezeError

    data = made(kind, seed)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    given: Any = None
    unseen: Any = []
    expected: Any = []
    told("outside", "the model kills ONNX Runtime")
    try:
        given, unseen = feeds(data, 6, seed), feeds(data, 2, seed + 1)
        session = ort.InferenceSession(data, options)
        expected = [session.run(None, feed) for feed in unseen]
    except Exception:
        given = None
    told("crash", "the process died")
    with TemporaryDirectory() as folder:
        path, output = Path(folder, "model.onnx"), Path(folder, "out.onnx")
        path.write_bytes(data)
        try:
            if given is None:  # what does not run may still not be answered by a traceback
                squeeze(path, pass_, output=output, validate="none")
                return {"state": "outside", "words": "does not run"}
            report = squeeze(path, pass_, given, output=output).report
        except SqueezeError as error:
            text = str(error)
            bug = error.exit_code == 4 or len(text) > 2000
            return {"state": "bug" if bug else "refused", "words": text[:300]}
        except Exception as error:
            return {"state": "bug", "words": f"{type(error).__name__}: {error} {where()}"[:300]}
        try:
            session = ort.InferenceSession(str(output), options)
            found = [session.run(None, feed) for feed in unseen]
        except Exception as error:
            return {"state": "wrong", "words": f"the result does not run: {error}"[:300]}
        words = differs(expected, found, LOSSLESS.get(pass_))
        grown = output.stat().st_size - len(data)
        if grown > 4096 + len(data) // 20:
            words = words or f"{grown} bytes larger: {report.notes}"
        return {"state": "wrong" if words else "fine", "words": words[:300]}


def differs(expected: list[Any], found: list[Any], limit: float | None) -> str:
    """Return how answers differ in what no pass may change, or by more than a limit; "" if they do not."""
    for one, two in zip(expected, found, strict=True):
        if len(one) != len(two):
            return f"{len(one)} outputs became {len(two)}"
        for a, b in zip(one, two, strict=True):
            if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
                if type(a) is not type(b):
                    return f"{type(a).__name__} became {type(b).__name__}"
                continue
            if a.dtype != b.dtype or a.shape != b.shape:
                return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
            if a.dtype.kind != "f":
                continue
            usual = np.isfinite(a)
            if not np.isfinite(b[usual]).all():
                return "numbers became NaN or infinity"
            if limit is not None and usual.any():
                x, y = a[usual].astype(np.float64), b[usual].astype(np.float64)
                error = float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30))
                if error > limit:
                    return f"answers are {error:.1e} off"
    return ""


def where() -> str:
    """Return the last places of ours in a traceback."""
    frames = [f for f in traceback.extract_tb(sys.exc_info()[2]) if "onnxsqueeze" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[::-1][:3])


def told(state: str, words: str) -> None:
    """Say what the case is if the process dies now."""
    print(json.dumps({"if dead": True, "state": state, "words": words}), flush=True)


def worker() -> None:
    """Answer cases from standard input, one a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        try:
            answer = case(*json.loads(line))
        except MemoryError:
            answer = {"state": "refused", "words": "out of memory"}
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that answers cases, and is made anew when it has died."""

    def __init__(self, script: str = __file__) -> None:
        self.script = script
        self.process: subprocess.Popen[bytes] | None = None

    def answer(self, kind: str, seed: int, pass_: str) -> dict[str, str]:
        if self.process is None:
            command = [sys.executable, self.script, "--worker"]
            self.process = subprocess.Popen(  # without a buffer, in which a second line would not be seen by select
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([kind, seed, pass_]).encode() + b"\n")
        process.stdin.flush()
        last = {"state": "crash", "words": "the process died at once"}
        end = time.monotonic() + SECONDS
        while select.select([process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            line = process.stdout.readline()
            if not line:
                self.stop()
                return {**last, "words": f"{last['words']} ({process.wait()})"}
            if not line.startswith(b"{"):  # ONNX's own words
                continue
            last = json.loads(line)
            if not last.pop("if dead", False):
                return last
        self.stop()
        return {"state": "hang" if last["state"] == "crash" else "outside", "words": f"over {SECONDS:.0f} s"}

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
        self.process = None


def main() -> None:
    """Run cases until the time is over, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--kinds", default="generated,generated,backend,mutant,mutant,bits,hostile")
    parser.add_argument("--only", metavar="KIND:SEED:PASS", help="run one case in this process")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.worker:
        worker()
        return
    if given.only:
        kind, seed, pass_ = given.only.split(":", 2)
        print(case(kind, int(seed), pass_))
        return
    kinds = given.kinds.split(",")
    counts: Counter[tuple[str, str]] = Counter()
    ours: list[str] = []
    process, number, end = Worker(), given.first, time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        kind, pass_ = kinds[number % len(kinds)], PASSES[number // len(kinds) % len(PASSES)]
        answer = process.answer(kind, number, pass_)
        counts[kind, answer["state"]] += 1
        if answer["state"] not in ("fine", "refused", "outside"):
            ours.append(f"{answer['state']:6} {kind}:{number}:{pass_}  {answer['words']}")
            print(ours[-1], flush=True)
        number += 1
    process.stop()
    print(f"\nseeds {given.first} to {number - 1}")
    print(f"{'':10}", *(f"{state:>8}" for state in KNOWN))
    for kind in dict.fromkeys(kinds):
        print(f"{kind:10}", *(f"{counts[kind, state]:8}" for state in KNOWN))
    sys.exit(bool(ours))


if __name__ == "__main__":
    main()
