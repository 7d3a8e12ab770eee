"""How long ``onnxsqueeze --help`` takes, in seconds of processor time: python benchmarks/start.py"""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

RUNS = 11


def main() -> None:
    """Print the median over some runs, user and system time together."""
    found = []
    for _ in range(RUNS):
        before = os.times()
        subprocess.run([sys.executable, "-m", "onnxsqueeze", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        found.append(after.children_user + after.children_system - before.children_user - before.children_system)
    print(f"--help: {median(found):.3f} s of processor time, from {min(found):.3f} to {max(found):.3f}")


if __name__ == "__main__":
    main()
