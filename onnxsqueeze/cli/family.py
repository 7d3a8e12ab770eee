"""``onnxsqueeze family``: a model in several sizes, with a manifest to choose by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.options import console_on, number, numbers, seed
from onnxsqueeze.cli.workers import shared_out, with_workers

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.search.family import Family

__all__ = ["command", "show"]


@click.command(name="family", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("-n", "--count", type=int, default=4, metavar="N", help="How many models.  [default: 4]")
@click.option("-o", "--output", metavar="FOLDER", help="Where they go.  [default: MODEL.family]")
@click.option("--by", type=click.Choice(["latency", "size"]), default="latency", help="What is halved.")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images; or random.")
@click.option("--effort", type=click.Choice(["quick", "default", "max"]), default="default", help="1, 5 or 20 minutes.")
@click.option("--cache", metavar="FOLDER", help="Keep what was measured there, for the next search.")
@with_workers
@click.option("--outputs", metavar="NAME:KIND,...", help="What outputs are: values, scores, labels or rows.")
@click.option("--target", metavar="NAME|FILE", help="What it is to run on, see onnxsqueeze targets.")
@click.option("--seed", type=seed, metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
def command(
    model: str,
    count: int,
    output: str | None,
    calib: str | None,
    workers: int | None,
    dask: str | None,
    **settings: Any,
) -> None:
    """Write a model in several sizes, to choose from.

    From all of its latency down to an eighth, each is smaller, faster and less accurate than the one before.
    manifest.json says what was measured of each, and onnxsqueeze.pick(manifest, budget) chooses by it.
    """
    from onnxsqueeze.report import terminal
    from onnxsqueeze.search.family import family

    folder = Path(output) if output is not None else Path(model).with_suffix(".family")
    with shared_out(workers, dask) as shared, terminal.progress(console_on(sys.stderr)) as progress:
        found = family(model, folder, count, calib, progress=progress, **shared, **settings)
    show(found, folder, console_on(sys.stdout))


def show(found: Family, folder: Path, console: Console) -> None:
    """Print what was measured of each member, and which are not there."""
    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import amount, db, milliseconds, printable

    table = grid("left", "right", "right", "right", "right", "left")
    table.add_row("model", "size", "latency", "", "SQNR dB", "pipeline", style="dim")
    for each in found.members:
        cells = [amount(each.bytes, "B"), milliseconds(each.milliseconds), f"{100 * each.latency:.0f} %"]
        table.add_row(printable(each.file), *cells, db(each.sqnr_db), printable(each.pipeline))
    console.print(table)
    for note in found.notes:
        line(console, f"note: {note}", style="yellow")
    told = f"wrote {len(found.members)} models and manifest.json to {folder} in {found.seconds:.1f} s"
    line(console, told, style="bold")
