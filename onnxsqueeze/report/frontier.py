"""A search on a terminal: what was asked for, the frontier as a table, and how well it was predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.report.tables import grid, line
from onnxsqueeze.words import decibels, printable

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.report.search import Search, Try

__all__ = ["lost", "show_search", "summary"]


def show_search(search: Search, console: Console) -> None:
    """Print the points from small to accurate, the one that was taken with an arrow, and what the predictions were."""
    line(console, search.asked, style="bold")
    line(console, summary(search), style="dim")
    table = grid("left", "right", "right", "right", "right", "left")
    table.add_row("", "size", "latency", "SQNR dB", "confirmed", "pipeline", style="dim")
    for number in sorted({*search.frontier, search.chosen}, key=lambda each: search.cost(search.tries[each])):
        each = search.tries[number]
        found = each.measured
        if found is None:
            continue
        size = found.size if found.packed is None else found.packed
        cells = [f"{100 * size:.1f} %", f"{100 * found.latency:.0f} %", decibels(found.error), lost(each, search)]
        style = "bold" if number == search.chosen else ""
        table.add_row("→" if number == search.chosen else "", *cells, printable(each.pipeline), style=style)
    console.print(table)
    known = [f"{axis} {rank:.2f}" for axis, rank in search.correlation.items() if rank is not None]
    if known:
        line(console, f"rank correlation of predicted and measured: {', '.join(known)}", style="dim")
    console.print()


def summary(search: Search) -> str:
    """Return in a sentence how long was searched, on what, and why no longer."""
    fresh = sum(not each.remembered for each in search.tries)
    told = f"{len(search.tries)} pipelines tried" + (f", {fresh} of them now" if fresh < len(search.tries) else "")
    statistics, choosing, confirming = search.feeds
    feeds = f"{statistics} feeds for statistics, {choosing} to choose by and {confirming} others to confirm"
    return f"{told}, in {search.seconds:.0f} s: {search.stopped}; {feeds}"


def lost(each: Try, search: Search) -> str:
    """Return what a plan loses on the feeds that confirm: dB, or points of the score."""
    if each.confirmed is None:
        return ""
    return f"{100 * each.confirmed:.2f} points" if search.score else decibels(each.confirmed)
