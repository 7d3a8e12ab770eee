"""``onnxsqueeze calibrate`` and ``merge``: statistics of much data, by many workers or machines."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.options import console_on, number, numbers, seed
from onnxsqueeze.cli.workers import shared_out, with_workers

if TYPE_CHECKING:
    from onnxsqueeze.engine.calibrate import Calibration

__all__ = ["calibrate", "merge"]


def part(text: str) -> tuple[int, int]:
    """Return the number of a shard and how many there are."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{text!r} is no shard: the first of 16 is 1/16, the last 16/16")
    return int(found[1]), int(found[2])


@click.command(name="calibrate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images; or random.")
@click.option("-o", "--output", metavar="FILE", required=True, help="The statistics, for --stats, or for merge.")
@click.option("-p", "--pipeline", metavar="PIPELINE", help="What its first measuring pass asks for.  [default: all]")
@click.option("--shard", type=part, metavar="K/N", help="Only the K-th of N parts of the data; then merge the files.")
@with_workers
@click.option("--every-feed", is_flag=True, help="Go on although further feeds change nothing.")
@click.option("--seed", type=seed, default="0", metavar="N", help="Seed of everything random.")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
def calibrate(model: str, calib: str | None, workers: int | None, dask: str | None, **settings: Any) -> None:
    """Measure much data, by many workers or in shards.

    What the passes need is measured and kept. The same bytes come out with one worker or many, in one run or in shards,
    or with a run that was stopped and called again.
    """
    from onnxsqueeze.engine.calibrate import calibrate as measure
    from onnxsqueeze.report import terminal
    from onnxsqueeze.report.tables import line

    with shared_out(workers, dask) as shared, terminal.progress(console_on(sys.stderr)) as progress:
        found = measure(model, calib, progress=progress, **shared, **settings)
    console = console_on(sys.stdout)
    for each in _words(found):
        line(console, each)


@click.command(name="merge", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, required=True, metavar="SHARD...")
@click.option("-o", "--output", metavar="FILE", required=True, help="The statistics, for --stats.")
def merge(parts: tuple[str, ...], output: str) -> None:
    """Put the shards that calibrate has measured together."""
    from onnxsqueeze.engine.calibrate import merge as put_together
    from onnxsqueeze.report.tables import line

    put_together(parts, output)
    line(console_on(sys.stdout), f"wrote {output}: use it with --stats {output}")


def _words(found: Calibration) -> list[str]:
    """Say what was measured."""
    measured = f"{found.feeds} feeds in {found.chunks} of {found.total} chunks, {found.seconds:.1f} s"
    if found.converged:
        early = "ended early: over eight chunks no range and no second moment moved; --every-feed goes on"
        return [measured, early, f"wrote {found.output}: use it with --stats {found.output}"]
    way = f"use it with --stats {found.output}" if found.complete else "merge puts it together with the other shards"
    return [measured, f"wrote {found.output}: {way}"]
