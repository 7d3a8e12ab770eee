"""Lines and tables of a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onnxsqueeze.words import amount, change, milliseconds, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnxsqueeze.report.run import Timed
    from onnxsqueeze.runtime.memory import Memory

__all__ = ["grid", "latency_rows", "line", "memory_rows"]


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


def latency_rows(found: Iterable[Timed]) -> Iterator[tuple[str, str, str, str]]:
    """Yield latencies on numbers of threads and of samples at once, as rows of a table."""
    for each in found:
        samples = f"{each.batch} samples" if each.batch > 1 else "1 sample"
        threads = f"{each.threads} threads" if each.threads > 1 else "one thread"
        times = milliseconds(each.before), milliseconds(each.after)
        yield f"of {samples} on {threads}", *times, change(1.0, each.ratio, "faster")


def memory_rows(before: Memory, after: Memory) -> Iterator[tuple[str, str, str, str]]:
    """Yield what two models take of memory at run time, at the peak, and of time to load, as rows of a table."""
    for what, was, now in (
        ("memory at run time", before.resident, after.resident),
        ("its peak", before.peak, after.peak),
    ):
        yield what, amount(was, "B"), amount(now, "B"), change(was, now, "smaller")
    times = before.milliseconds, after.milliseconds
    yield "time to load", milliseconds(times[0]), milliseconds(times[1]), change(*times, "faster")
