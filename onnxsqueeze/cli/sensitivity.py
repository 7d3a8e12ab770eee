"""``onnxsqueeze sensitivity``: what each layer does to the answers at each level of a pass, in a table or a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.options import command_line, console_on, number, numbers, seed, write_report
from onnxsqueeze.cli.workers import shared_out, with_workers
from onnxsqueeze.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.report.sensitivity import Sensitivity

__all__ = ["command", "show"]

ROWS = 40
"""Layers that are shown on a terminal; all of them are in the JSON and the page."""


@click.command(name="sensitivity", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("-p", "--pipeline", metavar="PASS", help="The pass to study, like lowrank; passes before it run first.")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images; or random.")
@click.option("--seed", type=seed, default="0", metavar="N", help="Seed of everything random.")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
@with_workers
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--html", metavar="FILE", help="Also write a page for the browser.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    pipeline: str | None,
    calib: str | None,
    as_json: bool,
    html: str | None,
    workers: int | None,
    dask: str | None,
    **settings: Any,
) -> None:
    """Say what each layer does to the answers at each level of a pass.

    Every layer is rewritten alone: its own error is predicted by closed form, the error of the answers is measured on
    feeds that were held out. No labels are needed.
    """
    if pipeline is None:
        raise UsageError("no pass: say which one to study with -p, for example -p lowrank")
    from onnxsqueeze.engine.places import refuse_places
    from onnxsqueeze.engine.sensitivity import sensitivity
    from onnxsqueeze.report import terminal

    refuse_places({"--html": html}, {"the model": model}, calibration=calib)
    with shared_out(workers, dask) as shared, terminal.progress(console_on(sys.stderr)) as progress:
        found = sensitivity(model, pipeline, calib, progress=progress, **shared, **settings)
    if html is not None:
        from onnxsqueeze.report.pages.page import sensitivity_page

        write_report(Path(html), sensitivity_page(found, command_line(ctx)))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, console_on(sys.stdout))


def show(found: Sensitivity, console: Console) -> None:
    """Print the layers, the most sensitive first, with predicted and measured SQNR at every level."""
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import decibels, printable

    line(console, f"{found.model}, {found.spec}", style="bold")
    line(console, found.verdict)
    line(console, f"measured on {found.feeds} in {found.seconds:.1f} s", style="dim")
    if not found.layers:
        return
    console.print()
    wide = console.width >= 90
    table = grid("left", *(["left"] if wide else []), *["right"] * len(found.levels))
    table.add_row("layer", *(["operator"] if wide else []), *found.levels, style="dim")
    for layer in found.ranked[:ROWS]:
        cells: list[Text | str] = [Text(printable(layer.name or layer.key), overflow="ellipsis", no_wrap=True)]
        cells += [layer.op] if wide else []
        for label in found.levels:
            point = layer.at(label)
            cells.append("" if point is None else f"{decibels(point.predicted)} / {decibels(point.measured)}")
        table.add_row(*cells)
    console.print(table)
    if len(found.layers) > ROWS:
        line(console, f"and {len(found.layers) - ROWS} more; --json lists all", style="dim")
    console.print()
    line(console, "in dB SQNR: the layer's own output as predicted / the model's worst output as measured", style="dim")
    known = [f"{label} {rank:.2f}" for label, rank in found.correlation.items() if rank is not None]
    if known:
        line(console, f"rank correlation of predicted and measured: {', '.join(known)}", style="dim")
