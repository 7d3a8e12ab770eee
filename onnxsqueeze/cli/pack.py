"""``onnxsqueeze pack`` and ``unpack``: a model as an entropy-coded container, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxsqueeze.cli.options import console_on

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.ir.packed import Packing

__all__ = ["pack", "plain_sizes", "show_tensors", "unpack"]

ROWS = 40
"""Tensors that are shown at most, the largest first."""


@click.command(name="pack", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("-o", "--output", metavar="FILE", help="The container.  [default: MODEL.osq]")
@click.option("--coder", metavar="NAME", default="rans", help="rans, huffman, deflate or zstd.  [default: rans]")
@click.option("--zstd", is_flag=True, help="Zstandard for repetitions, where that is smaller; browsers lack it.")
@click.option("--compare", is_flag=True, help="Also say what gzip and others reach for the plain file.")
def pack(model: str, output: str | None, coder: str, zstd: bool, compare: bool) -> None:
    """Write a model as an entropy-coded container for the wire.

    Its data files come along, and unpack gives the same bytes again. Containers by --coder deflate open several times
    faster than by rans, and are 1 to 7 % larger; those by zstd need that extra to open. The table says
    how many bits an element of each tensor was stored in, has by its entropy, and takes now.
    """
    source = Path(model)
    target = Path(output) if output is not None else source.with_suffix(".osq")

    from onnxsqueeze.engine.places import refuse_places
    from onnxsqueeze.ir.packed import pack as write

    refuse_places({"--output": target}, {"the model": source})

    show(write(source, target, coder=coder, zstd=zstd), source, target, console_on(sys.stdout), compare)


@click.command(name="unpack", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("container", metavar="CONTAINER.osq")
@click.option("-o", "--output", metavar="FILE", help="The model.  [default: CONTAINER.onnx]")
def unpack(container: str, output: str | None) -> None:
    """Write the model in a container, byte for byte as it was.

    Its data files go beside it, and never over a file that is there.
    """
    source = Path(container)
    target = Path(output) if output is not None else source.with_suffix(".onnx")

    from onnxsqueeze.ir.packed import unpack as write
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.words import amount

    line(console_on(sys.stdout), f"wrote {target}: {amount(write(source, target), 'B')}")


def show(found: Packing, source: Path, target: Path, console: Console, compare: bool) -> None:
    """Print what was packed: the largest tensors with the bits of a weight stored and coded, and the whole."""
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.words import amount, change

    show_tensors(found, console)
    if compare:
        for name, size in plain_sizes(source):
            line(console, f"the plain file by {name}: {amount(size, 'B')}")
    shorter = change(found.before, found.after, "smaller")
    line(console, f"wrote {target}: {amount(found.before, 'B')} → {amount(found.after, 'B')}, {shorter}", style="bold")


def show_tensors(found: Packing, console: Console) -> None:
    """Print the bits that an element of the largest tensors is stored in, has by its entropy, and takes once coded."""
    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import amount, printable

    table = grid("left", "left", *["right"] * 5)
    table.add_row("tensor", "type", "elements", "bytes", "bits each", "entropy", "coded", style="dim")
    large = sorted(found.tensors, key=lambda each: -each.size)
    for each in large[:ROWS]:
        count = max(each.elements, 1)
        coded, entropy = 8 * each.coded / count, "?" if each.entropy is None else f"{each.entropy:.2f}"
        cells = [amount(count), amount(each.size, "B"), f"{8 * each.size / count:.2f}", entropy, f"{coded:.2f}"]
        table.add_row(printable(each.name), each.dtype, *cells)
    if len(large) > ROWS:
        table.add_row(f"and {len(large) - ROWS} more", style="dim")
    console.print(table)
    console.print()
    line(console, f"all else (graph, names, small tensors): {amount(found.rest, 'B')}")


def plain_sizes(model: Path) -> list[tuple[str, int]]:
    """Return what gzip, and brotli and Zstandard where they are installed, make of a file."""
    from onnxsqueeze.container.others import others
    from onnxsqueeze.ir.reading import mapped

    return list(others(mapped(model)))
