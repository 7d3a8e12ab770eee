"""``onnxsqueeze inspect``: what a model's layers cost and weigh, on a terminal, as JSON, as CSV or as a page."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxsqueeze.cli.options import command_line, console_on, write_report
from onnxsqueeze.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.analysis.inspection.inspect import Inspection
    from onnxsqueeze.ir.packed import Packing

__all__ = ["command", "show", "to_csv"]

ROWS = 40
"""Layers that are shown on a terminal; all of them are in the JSON, the CSV and the page."""


@click.command(name="inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("--profile", is_flag=True, help="Run the model and measure the time of every layer.")
@click.option("--calib", metavar="PATH", help="Feeds to run it on: a folder or file.  [default: random]")
@click.option(
    "--size",
    "sizes",
    metavar="NAME=SIZE",
    multiple=True,
    help="Size of an open axis, as height=320, or the "
    "shape of an input, as image=1x3x320x320; may be repeated.  [default: made up]",
)
@click.option("--memory", is_flag=True, help="Run the model and measure its memory at run time.")
@click.option("--packed", is_flag=True, help="Also say what weights and the file take once they are coded.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Write one line of CSV for each layer.")
@click.option("--html", metavar="FILE", help="Also write a page for the browser.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    profile: bool,
    calib: str | None,
    sizes: tuple[str, ...],
    memory: bool,
    packed: bool,
    as_json: bool,
    as_csv: bool,
    html: str | None,
) -> None:
    """Say what every layer costs and what the model needs.

    Layers are sorted by measured time, else by MACs, then by bytes; their weights are described below them.
    """
    from onnxsqueeze.analysis.inspection.inspect import inspect_model
    from onnxsqueeze.engine.places import refuse_places

    refuse_places({"--html": html}, {"the model": model}, calibration=calib)
    found = inspect_model(model, profile=profile, calibration=calib, memory=memory, sizes=_sizes(sizes))
    if html is not None:
        from onnxsqueeze.report.pages.page import inspection_page

        write_report(Path(html), inspection_page(found, command_line(ctx)))
    coded, plain = _coded(Path(model)) if packed else (None, {})
    if as_json:
        whole = found.to_dict()
        if coded is not None:
            whole["packed"] = {**asdict(coded), "plain": plain}
        click.echo(json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False))
    elif as_csv:
        click.echo(to_csv(found), nl=False)
    else:
        show(found, console_on(sys.stdout))
        if coded is not None:
            _show_coded(coded, plain, console_on(sys.stdout))


def _coded(model: Path) -> tuple[Packing, dict[str, int]]:
    """Return what ``pack`` makes of a model file, and what general compressors do."""
    from onnxsqueeze.cli.pack import plain_sizes
    from onnxsqueeze.ir.packed import packing

    return packing(model), dict(plain_sizes(model))


def _show_coded(found: Packing, plain: Mapping[str, int], console: Console) -> None:
    from onnxsqueeze.cli.pack import show_tensors
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.words import amount

    console.print()
    show_tensors(found, console)
    sizes = [f"{amount(found.after, 'B')} by pack", *(f"{amount(size, 'B')} by {name}" for name, size in plain.items())]
    line(console, f"on the wire: {', '.join(sizes)}")


def _sizes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return sizes by name; the last of equal names wins."""
    found = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        parts = size.split("x")
        if not name or not all(part.isdecimal() and len(part) < 10 for part in parts):
            raise UsageError(f"--size {text}: write NAME=SIZE, such as height=320 or image=1x3x320x320")
        found[name] = tuple(map(int, parts))
    return found


def show(found: Inspection, console: Console) -> None:
    """Print the model's facts and its layers, the costliest first."""
    from onnxsqueeze.measure.saturation import warning
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.words import amount, milliseconds

    cost = found.cost
    line(console, found.model, style="bold")
    facts = [amount(cost.bytes, "B"), f"{amount(cost.parameters)} parameters", f"{amount(cost.nodes)} nodes"]
    facts += [f"{amount(cost.macs)} MACs"] if cost.macs is not None else []
    facts += [f"{milliseconds(found.milliseconds)} a run on one thread"] if found.milliseconds is not None else []
    line(console, ", ".join(facts))
    if found.taken is not None and found.taken.source:
        made_up = found.taken.source == "made up"
        way_out = "; --size NAME=SIZE or --calib takes others" if made_up else ""
        line(console, f"{found.taken}{way_out}", style="yellow" if made_up else "dim")
    if found.memory is not None:
        each = found.memory
        peak = f"{amount(each.peak, 'B')} at the peak, {milliseconds(each.milliseconds)} to load"
        line(console, f"{amount(each.resident, 'B')} of memory at run time, {peak}")
    console.print()
    for what, values in (
        ("inputs", found.inputs),
        ("outputs", found.outputs),
        ("dynamic axes", found.dynamic_axes),
        ("needs", tuple(f"{r.what} {r.version}{f' ({r.note})' if r.note else ''}" for r in found.requirements)),
        ("holds", found.quantization),
        ("functions", found.functions),
    ):
        if values:
            rest = f" and {len(values) - 8} more" if len(values) > 8 else ""
            line(console, f"{what}: {', '.join(values[:8])}{rest}", style="dim")
    if found.saturating:
        line(console, warning(found.saturating), style="yellow")
    for told in {each.name: each for each in reversed(found.spellings)}.values():
        more = sum(each.name == told.name for each in found.spellings) - 1
        line(console, f"{told.key}: {told.problem}{f', and {more} more such' if more else ''}", style="yellow")
    console.print()
    _costs(found, console)
    _weights(found, console)


def to_csv(found: Inspection) -> str:
    """Return one line for each layer, the costliest first, under a line of names."""
    weight = ("name", "dtype", "shape", "mean", "std", "abs_mean", "sparsity", "filter_sparsity", "channel_sparsity",
              "effective_rank", "full_rank", "channel_range")  # fmt: skip
    own = (
        "key",
        "name",
        "op",
        "inputs",
        "outputs",
        "parameters",
        "bytes",
        "macs",
        "share",
        "quantization",
        "milliseconds",
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*own, *(f"weight_{name}" for name in weight)])
    for layer in found.layers:
        row = [_cell(getattr(layer, name)) for name in own]
        row += [_cell(getattr(layer.weight, name)) if layer.weight else "" for name in weight]
        writer.writerow(row)
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a value as a cell: what a terminal would take for an order is only text."""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return "" if value is None else value
    from onnxsqueeze.words import printable

    return printable(value).replace("\n", "\\n")


def _costs(found: Inspection, console: Console) -> None:
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import amount, milliseconds, printable

    layers = [layer for layer in found.layers if layer.share > 0 or layer.parameters]
    timed = found.milliseconds is not None
    wide = console.width >= 90
    table = grid("left", "left", *(["left"] if wide else []), *(["right"] if timed else []), *["right"] * 4)
    heads = ["layer", "operator", *(["output"] if wide else []), *(["time"] if timed else [])]
    table.add_row(*heads, f"of {found.share_of}", "MACs", "params", "bytes", style="dim")
    for layer in layers[:ROWS]:
        name = Text(printable(layer.key), overflow="ellipsis", no_wrap=True)
        cells: list[str | Text] = [name, Text(printable(layer.op), overflow="ellipsis", no_wrap=True)]
        cells += [layer.outputs[0] if layer.outputs else ""] if wide else []
        cells += [milliseconds(layer.milliseconds or 0)] if timed else []
        macs = "?" if layer.macs is None else amount(layer.macs) if layer.macs else ""
        params = amount(layer.parameters) if layer.parameters else ""
        table.add_row(
            *cells, f"{100 * layer.share:.1f} %", macs, params, amount(layer.bytes, "B") if layer.bytes else ""
        )
    console.print(table)
    if len(layers) > ROWS:
        rest = sum(layer.share for layer in layers[ROWS:])
        line(console, f"and {len(layers) - ROWS} more with {100 * rest:.1f} % together; --csv lists all", style="dim")
    if found.unattributed_ms:
        rest = 100 * (1 - sum(layer.share for layer in found.layers))
        between = f"{milliseconds(found.unattributed_ms)} ({rest:.1f} %) went to what is between layers"
        line(console, between, style="dim")


def _weights(found: Inspection, console: Console) -> None:
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import printable

    layers = [layer for layer in found.layers if layer.weight is not None]
    if not layers:
        return
    wide = console.width >= 100
    table = grid("left", "left", "right", "right", "right", "right", *(["right", "right"] if wide else []))
    more = ["mean", "|mean|"] if wide else []
    table.add_row("weight", "", "std", "zeros", "eff. rank", "range", *more, style="dim")
    for layer in layers[:ROWS]:
        each = layer.weight
        assert each is not None
        rank = f"{'?' if each.effective_rank is None else f'{each.effective_rank:.0f}'} of {each.full_rank}"
        spread = "" if each.channel_range is None else f"{each.channel_range:.1f}×"
        shape = f"{each.dtype} {'x'.join(map(str, each.shape))}"
        table.add_row(
            Text(printable(each.name), overflow="ellipsis", no_wrap=True),
            Text(shape, overflow="ellipsis", no_wrap=True),
            f"{each.std:.3g}", f"{100 * each.sparsity:.1f} %", rank, spread,
            *([f"{each.mean:.2g}", f"{each.abs_mean:.3g}"] if wide else []),
        )  # fmt: skip
    console.print()
    console.print(table)
    if len(layers) > ROWS:
        line(console, f"and {len(layers) - ROWS} more", style="dim")
