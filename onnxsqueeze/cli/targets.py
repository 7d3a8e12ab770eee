"""``onnxsqueeze targets``: what a model can be made for, and every rule with its source."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from onnxsqueeze.cli.options import console_on

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.targets.target import Target

__all__ = ["command", "show"]


@click.command(name="targets", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="[NAME|FILE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def command(target: str | None, as_json: bool) -> None:
    """List the targets and explain their rules.

    A target that is named is explained: each of its rules, where it is known from, and how surely.
    """
    from onnxsqueeze.plain import fields_of
    from onnxsqueeze.targets.profiles import find, names

    found = [find(each) for each in (names() if target is None else [target])]
    if as_json:
        click.echo(json.dumps([fields_of(each) for each in found], indent=2, ensure_ascii=False))
    elif target is None:
        _list(dict(zip(names(), found, strict=True)), console_on(sys.stdout))
    else:
        show(found[0], console_on(sys.stdout))


def _list(found: dict[str, Target], console: Console) -> None:
    from rich.text import Text

    from onnxsqueeze.report.tables import grid
    from onnxsqueeze.targets.profiles import DEFAULT
    from onnxsqueeze.words import printable

    table = grid("left", "left")
    for name, each in found.items():
        more = " [default]" if name == DEFAULT else "" if name == each.name else f" [this machine: {each.name}]"
        table.add_row(Text(printable(name), "bold"), Text(printable(each.summary + more)))
    console.print(table)


def show(target: Target, console: Console) -> None:
    """Print a profile: its head, then line by line the value, and from where and how surely it is known."""
    from rich.text import Text

    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import printable

    line(console, f"{target}: {target.summary}", style="bold")
    line(console, f"runs on {target.runtime}" + (f"; changes {target.base}" if target.base else ""), style="dim")
    behind: dict[tuple[str, str, str, str], list[str]] = {}
    for each in target.lines:
        key = (each.source, each.date, each.confidence, each.profile)
        behind.setdefault(key, []).append(f"{each.key} = {_value(each.value)}")
    for (source, date, confidence, profile), lines in behind.items():
        console.print()
        line(console, f"{confidence} {date}, in {profile}: {source}", style="dim")
        table = grid("left")
        for text in lines:
            table.add_row(Text("  " + printable(text)))
        console.print(table)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"({_value(each)})" if isinstance(each, tuple) else str(each) for each in value) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
