"""``onnxsqueeze passes``: the passes and their options."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from onnxsqueeze.cli.options import console_on
from onnxsqueeze.report.tables import grid
from onnxsqueeze.words import printable

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.engine.registry import Listing

__all__ = ["show_passes"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def passes(as_json: bool) -> None:
    """List the passes and their options."""
    from onnxsqueeze.engine.registry import listing

    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(each) for each in listing()], indent=2, ensure_ascii=False))
    else:
        from onnxsqueeze.cli.passes import show_passes

        show_passes(console_on(sys.stdout), listing())


def show_passes(console: Console, rows: Iterable[Listing]) -> None:
    """Print every pass with its options at their defaults; a broken plug-in is shown with its error."""
    from rich.text import Text

    table = grid("left", "left")
    for each in rows:
        summary = each.error or each.summary
        where = "" if each.origin == "built-in" else f" [{each.origin} {each.version}]"
        table.add_row(Text(printable(each.name), "bold"), Text(printable(summary + where), "red" if each.error else ""))
        for option in each.options:
            default = option.key if option.default is None else f"{option.key}={option.default}"
            meaning = f": {option.meaning}" if option.meaning else ""
            table.add_row("", Text(printable(f"{default}  ({option.expects}){meaning}"), "dim"))
    console.print(table)
