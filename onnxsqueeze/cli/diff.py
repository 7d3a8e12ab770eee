"""``onnxsqueeze diff``: the difference of two models on a terminal, as JSON or as a page."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.analysis.diff.words import FEW, born, short, title, words
from onnxsqueeze.cli.options import command_line, console_on, number, numbers, seed, write_report

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.analysis.diff.changes import Change
    from onnxsqueeze.analysis.diff.diff import GraphDiff
    from onnxsqueeze.analysis.diff.trace import Trace
    from onnxsqueeze.runtime.memory import Memory

__all__ = ["command", "show"]


@click.command(name="diff", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("before", metavar="A.onnx")
@click.argument("after", metavar="B.onnx")
@click.option("--calib", metavar="PATH", help="Also compare the numbers on these feeds: a folder or file, or random.")
@click.option("--threshold", type=number, default=60.0, metavar="DB", help="An error is born under this SQNR.  [60]")
@click.option("--seed", type=seed, default="0", metavar="N", help="Seed of random feeds.")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
@click.option("--memory", is_flag=True, help="Also run both and compare what they take of memory.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--html", metavar="FILE", help="Also write the difference as a page for the browser.")
@click.option("-q", "--quiet", is_flag=True, help="Write nothing; the exit code tells.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    before: str,
    after: str,
    calib: str | None,
    as_json: bool,
    html: str | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Say how two models differ, and where an error is born.

    Tells what was added, removed, replaced, changed and renamed from A to B, and with --calib the numbers. The exit
    code is 0 if the models are the same, 1 if they differ; the order of nodes does not count.
    """
    from onnxsqueeze.analysis.diff.diff import diff
    from onnxsqueeze.engine.places import refuse_places
    from onnxsqueeze.ir.files import load

    refuse_places({"--html": html}, {"the model": before, "the other model": after}, calibration=calib)
    graphs = load(before), load(after)
    found = diff(*graphs, calib, **settings)
    if html is not None:
        from onnxsqueeze.report.pages.page import diff_page

        write_report(Path(html), diff_page(found, *graphs, command_line(ctx)))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        show(found, console_on(sys.stdout))
    if not found.same:
        ctx.exit(1)


def show(found: GraphDiff, console: Console) -> None:
    """Print the difference: the verdict, the interface, the changes, the renames, the totals and the numbers."""
    from onnxsqueeze.report.tables import line

    line(console, f"{found.before} → {found.after}", style="bold")
    line(console, found.verdict)
    for said in found.warnings:
        line(console, said, style="yellow")
    if found.interface:
        console.print()
        for field in found.interface:
            what = f"{field.what} {field.name}".strip()
            line(console, f"{what}: {short(field.before)} → {short(field.after)}", indent=2)
    _changes(found.changes, console)
    _renames(found, console)
    if found.changes:
        _totals(found, console)
    if found.memory is not None:
        _memory(found.memory, console)
    if found.numbers is not None:
        _numbers(found.numbers, console)


def _changes(changes: tuple[Change, ...], console: Console) -> None:
    from onnxsqueeze.report.tables import line

    marks = {"added": ("+", "green"), "removed": ("-", "red"), "replaced": ("~", "yellow"), "changed": ("*", "cyan")}
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.kind, title(change)].append(change)
    for (kind, what), group in groups.items():
        mark, colour = marks[kind]
        console.print()
        count = f" × {len(group)}" if len(group) > 1 else ""
        line(console, f"{mark} {kind} {what}{count}", style=colour)
        for change in group[:FEW]:
            where = f"{change.scope}: " if change.scope else ""
            line(console, where + _place(change), indent=4)
            for text in words(change)[:FEW]:
                line(console, text, style="dim", indent=6)
        if len(group) > FEW:
            line(console, f"and {len(group) - FEW} more", style="dim", indent=4)


def _place(change: Change) -> str:
    before, after = (side[-1].key if side else "" for side in (change.before, change.after))
    return f"{before} → {after}" if before and after and before != after else before or after


def _renames(found: GraphDiff, console: Console) -> None:
    from onnxsqueeze.report.tables import line

    counts = Counter(each.kind for each in found.renamed)
    for kind, count in counts.items():
        console.print()
        line(console, f"= renamed {count} {kind}{'s' if count > 1 else ''}", style="blue")
        some = [each for each in found.renamed if each.kind == kind]
        for each in some[:3]:
            line(console, f"{each.before or '(no name)'} → {each.after or '(no name)'}", style="dim", indent=4)
        if count > 3:
            line(console, f"and {count - 3} more", style="dim", indent=4)


def _totals(found: GraphDiff, console: Console) -> None:
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import amount, change, printable

    before, after = found.totals.before, found.totals.after
    table = grid("left", "right", "right", "left")
    table.add_row("", "before", "after", "", style="dim")
    table.add_row(
        "file size", amount(before.bytes, "B"), amount(after.bytes, "B"), change(before.bytes, after.bytes, "smaller")
    )
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
        ("nodes", before.nodes, after.nodes),
    ):
        if old is not None and new is not None:
            table.add_row(name, amount(old), amount(new), change(old, new, "fewer"))
    console.print()
    console.print(table)
    if found.totals.taken is not None and found.totals.taken.source:
        line(console, f"MACs are {found.totals.taken}", style="dim")
    rows = [row for row in found.totals.by_op if len({*row.nodes}) > 1 or len({*row.parameters}) > 1]
    if not rows:
        return
    table = grid("left", "right", "right", "right")
    table.add_row("operator", "nodes", "parameters", "MACs", style="dim")
    for row in rows[: 2 * FEW]:
        cells = [
            amount(old or 0) if old == new else f"{amount(old or 0)} → {amount(new or 0)}"
            for old, new in (row.nodes, row.parameters, row.macs)
        ]
        table.add_row(Text(printable(row.op), overflow="ellipsis", no_wrap=True), *cells)
    console.print()
    console.print(table)


def _memory(taken: tuple[Memory, Memory], console: Console) -> None:
    from onnxsqueeze.report.tables import grid, memory_rows

    table = grid("left", "right", "right", "left")
    table.add_row("", "before", "after", "", style="dim")
    for row in memory_rows(*taken):
        table.add_row(*row)
    console.print()
    console.print(table)


def _numbers(numbers: Trace, console: Console) -> None:
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import db, printable

    console.print()
    line(console, f"compared on {numbers.feeds}", style="dim")
    table = grid("left", "right", "right", "right")
    table.add_row("output", "SQNR dB", "cosine", "max abs", style="dim")
    for each in numbers.outputs[:FEW]:
        name = Text(printable(each.output), overflow="ellipsis", no_wrap=True)
        table.add_row(name, db(each.sqnr_db), f"{each.cosine:.6f}", f"{each.max_abs:.3g}")
    console.print(table)
    console.print()
    line(console, born(numbers), style="bold")
    worst = [fall for fall in numbers.worst if fall.noise > 1e-8][:FEW]
    if not worst:
        return
    table = grid("left", "left", "right", "right")
    table.add_row("adds most to the error", "", "in dB", "out dB", style="dim")
    for fall in worst:
        name = Text(printable(fall.tensor), overflow="ellipsis", no_wrap=True)
        table.add_row(name, fall.op, db(fall.inputs_db), db(fall.sqnr_db))
    console.print(table)
