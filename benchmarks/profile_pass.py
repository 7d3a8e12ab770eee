"""Where the processor's time of a run goes: ``python benchmarks/profile_pass.py MODEL PIPELINE [FEEDS] [--lines 40]``.

Every few milliseconds of processor time, of all threads together, the stack of the main thread is taken down with the
time that has passed since: a call of native code counts in full at the line that makes it. Tables are printed by the
function that the time is spent in, by all functions above it, and by those under which the peak of memory rose (on
Linux). ``--flame FILE`` writes the stacks in the folded form that flame graph tools read (``inferno-flamegraph``,
``flamegraph.pl``, speedscope.app).
"""

from __future__ import annotations

import argparse
import resource
import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from onnxsqueeze import squeeze

ROOT = str(Path(__file__).parents[1]) + "/"
INTERVAL = 0.005
MEMORY = Path("/proc/self/statm")
KNOWN = MEMORY.exists()


class Profiler:
    """Stacks of the main thread, weighted with the seconds of the processor that passed before each was taken."""

    def __init__(self) -> None:
        self.stacks: Counter[tuple[str, ...]] = Counter()
        self.growth: Counter[tuple[str, ...]] = Counter()
        """Bytes by which the peak of resident memory rose."""
        self._peak = 0
        self._last = 0.0

    def __enter__(self) -> Profiler:
        self._last = time.process_time()
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _take(self, _: int, frame: FrameType | None) -> None:
        now = time.process_time()
        stack = []
        while frame is not None:
            code = frame.f_code
            name = code.co_filename.removeprefix(ROOT).split("site-packages/")[-1]
            stack.append(f"{name}:{code.co_qualname}")
            frame = frame.f_back
        whole = tuple(reversed(stack))
        self.stacks[whole] += now - self._last  # type: ignore[assignment]
        self._last = now
        if KNOWN:
            resident = int(MEMORY.read_text().split()[1]) * resource.getpagesize()
            self.growth[whole] += max(resident - self._peak, 0) if self._peak else 0
            self._peak = max(self._peak, resident)

    def tables(self, lines: int) -> str:
        """Return the functions with most time in themselves, and with most in and under them."""
        own: Counter[str] = Counter()
        for stack, seconds in self.stacks.items():
            own[stack[-1]] += seconds  # type: ignore[assignment]
        total = max(sum(self.stacks.values()), 1e-9)
        parts = []
        for title, found in (("in the function itself", own), ("in it and under it", _under(self.stacks))):
            rows = [f"{seconds:8.2f} s {seconds / total:6.1%}  {name}" for name, seconds in found.most_common(lines)]
            parts.append("\n".join([title, *rows]))
        rows = [f"{size / 2**20:8.1f} MB  {name}" for name, size in _under(self.growth).most_common(lines)]
        return "\n\n".join([*parts, "\n".join(["the peak of memory rose in it and under it", *rows])])


def _under(found: Counter[tuple[str, ...]]) -> Counter[str]:
    """Return the sums by the functions on the stacks."""
    sums: Counter[str] = Counter()
    for stack, value in found.items():
        for name in set(stack):
            sums[name] += value
    return sums


def main() -> None:
    """Run the pipeline and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pipeline")
    parser.add_argument("feeds", nargs="?")
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--flame", type=Path)
    args = parser.parse_args()
    start, busy = time.perf_counter(), time.process_time()
    with Profiler() as profiler:
        result = squeeze(args.model, args.pipeline, args.feeds)
    busy, passed = time.process_time() - busy, time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(profiler.tables(args.lines))
    print(f"\n{args.pipeline} of {args.model}: {busy:.1f} s of the processor, {passed:.1f} s passed, {peak:.0f} MB")
    print(*(f"{step.spec}: {step.seconds:.1f} s" for step in result.report.steps), sep="\n")
    print(f"{result.report.sqnr_db:.1f} dB" if result.report.sqnr_db is not None else "not compared")
    if args.flame is not None:
        rows = (f"{';'.join(stack)} {round(seconds * 1000)}" for stack, seconds in profiler.stacks.items())
        args.flame.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
