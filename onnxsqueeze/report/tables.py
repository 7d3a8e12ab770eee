"""Lines and tables of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.words import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["grid", "line"]


def line(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Print text that may come from a model: without markup, folded where the terminal ends."""
    from rich.padding import Padding
    from rich.text import Text

    content = Text(printable(text), style=style, overflow="fold")
    console.print(Padding(content, (0, 0, 0, indent), expand=False) if indent else content)


def grid(*justify: str) -> Table:
    """Return a table without lines with these columns, ``left`` or ``right``; figures are never folded."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for i, each in enumerate(justify):
        table.add_column(justify="right" if each == "right" else "left", no_wrap=i > 0 and each == "right")
    return table
