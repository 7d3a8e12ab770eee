"""A report, the progress of a run and the list of passes as text for a terminal or a pipe."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxsqueeze.report.frontier import show_search
from onnxsqueeze.report.tables import grid, latency_rows, line, memory_rows
from onnxsqueeze.words import amount, change, db, milliseconds, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnxsqueeze.measure.answers import Deviation
    from onnxsqueeze.report.run import Elsewhere, Report, StepReport

__all__ = ["progress", "show"]

MAX_OUTPUTS = 8
MAX_REASONS = 5
VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<!\w)-?\d\w*(?:[.,]\d\w*)*")
"""What differs between reasons of one kind: names in quotes and numbers."""


def show(report: Report, console: Console) -> None:
    """Print the report: what it cost and costs now, how far the outputs moved, what each pass did and left alone."""
    line(console, f"{report.model} → {report.output}" if report.output else report.model, style="bold")
    if report.dry_run:
        line(console, f"pipeline: {report.pipeline}")
    feeds = [
        ("target", report.target),
        ("calibration", report.calibration or "none"),
        ("compared on", report.deviations and report.held_out),
    ]
    line(console, "; ".join(f"{what}: {where}" for what, where in feeds if where), style="dim")
    console.print()
    console.print(_costs(report))
    console.print()
    if report.search is not None:
        show_search(report.search, console)
    _deviations(report.deviations, console)
    if report.score is not None:
        score = report.score
        line(console, f"score {score.name}: {score.before:.4g} → {score.after:.4g} on {report.held_out}", style="bold")
        console.print()
    for step in report.steps:
        if not step.implicit or step.done or step.skipped or not step.kept:
            _step(step, console)
            if report.dry_run:
                _plan(step, console)
    console.print()
    _elsewhere(report.elsewhere, console)
    for note in report.notes:
        line(console, f"note: {note}", style="yellow")
    if report.dry_run:
        line(console, f"dry run, {report.seconds:.1f} s: no model was written", style="bold")
    elif report.output is not None:
        line(console, f"wrote {report.output} in {report.seconds:.1f} s", style="bold")


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (stage, done, total) that draws a bar on a terminal and does nothing on anything else."""
    if not console.is_terminal:
        yield lambda stage, done, total: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {"": bar.add_task("starting", total=None)}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                bar.remove_task(tasks.popitem()[1])
                tasks[stage] = bar.add_task(printable(stage), total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield update


# Parts of the report


def _costs(report: Report) -> Table:
    before, after = report.before, report.after
    table = grid("left", "right", "right", "left")
    table.add_row("", "before", "after", "", style="dim")
    table.add_row(
        "file size",
        amount(before.bytes, "B"),
        amount(after.bytes, "B"),
        change(before.bytes, after.bytes, "smaller"),
    )
    counts = (("parameters", before.parameters, after.parameters), ("MACs per feed", before.macs, after.macs))
    for name, old, new in (*counts, ("nodes", before.nodes, after.nodes)):
        if old is not None and new is not None:
            table.add_row(name, amount(old), amount(new), change(old, new, "fewer"))
        elif old is not None or new is not None:
            table.add_row(name, *("unknown" if n is None else amount(n) for n in (old, new)), "")
    if before.opset != after.opset:
        table.add_row("opset", str(before.opset), str(after.opset), "")
    if report.latency_ms is not None:
        old_ms, new_ms = report.latency_ms
        ratio = report.latency_ratio if report.latency_ratio is not None else new_ms / old_ms
        table.add_row("latency per feed", milliseconds(old_ms), milliseconds(new_ms), change(1.0, ratio, "faster"))
    for row in latency_rows(report.latencies):
        table.add_row(*row)
    if report.memory is not None:
        for row in memory_rows(*report.memory):
            table.add_row(*row)
    return table


def _deviations(deviations: tuple[Deviation, ...], console: Console) -> None:
    if not deviations:
        line(console, "The answers were not compared with the original.")
        console.print()
        return
    from rich.text import Text

    scores = any(each.top1 is not None for each in deviations)
    table = grid("left", "right", "right", "right", *(["right"] if scores else []))
    table.add_row("output", "SQNR dB", "cosine", "max abs", *(["top-1"] if scores else []), style="dim")
    for each in deviations[:MAX_OUTPUTS]:
        top1 = "" if each.top1 is None else f"{100 * each.top1:.1f} %"
        name = Text(printable(each.output), overflow="ellipsis", no_wrap=True)
        table.add_row(name, db(each.sqnr_db), f"{each.cosine:.6f}", f"{each.max_abs:.3g}", *([top1] if scores else []))
    console.print(table)
    rest = deviations[MAX_OUTPUTS:]
    if rest:
        worst = min(rest, key=lambda each: (not math.isnan(each.sqnr_db), each.sqnr_db))
        line(console, f"and {len(rest)} more, worst {worst.output} at {db(worst.sqnr_db)} dB")
    from onnxsqueeze.report.verdict import sentence, where

    for each in deviations[:MAX_OUTPUTS]:
        parts = (each.reason, "" if each.sqnr_db == math.inf else sentence(each), where(each))
        if told := "; ".join(part for part in parts if part):
            line(console, f"{each.output}: {told}", style="dim")
    named = defaultdict(list)
    for each in deviations:
        if each.note:
            named[each.note].append(each.output)
    for note, outputs in named.items():
        more = f" and {len(outputs) - 3} more" if len(outputs) > 3 else ""
        line(console, f"{', '.join(outputs[:3])}{more}: {note}", style="dim")
    console.print()


def _elsewhere(found: tuple[Elsewhere, ...], console: Console) -> None:
    """Print what the result is predicted to do on its target and on others."""
    times = [f"{each.target} {each.ratio:.2f}" for each in found if each.ratio is not None]
    broken = [f"{each.target} {each.broken}" for each in found if each.broken]
    if times:
        line(console, f"predicted latency over the original's, one thread: {', '.join(times)}", style="dim")
    if broken:
        line(console, f"places that break a rule (onnxsqueeze check): {', '.join(broken)}", style="dim")


def _step(step: StepReport, console: Console) -> None:
    whole = step.done and not step.skipped and not step.implicit
    facts = [f"{len(step.done)} done, none skipped" if whole else f"{len(step.done)} done"]
    if not step.kept:
        facts = ["rolled back"]
    elif step.done:
        facts += [f"own SQNR {db(step.sqnr_db)} dB"] if step.sqnr_db not in (None, math.inf) else []
        facts += ["exact"] if step.sqnr_db == math.inf else []
        facts += [f"nodes {step.nodes[0]} → {step.nodes[1]}"] if step.nodes[0] != step.nodes[1] else []
        old, new = (amount(size, "B") for size in step.bytes)
        facts += [f"{old} → {new}"] if old != new else []
    name = f"{step.spec} (implied)" if step.implicit else step.spec
    line(console, f"{name}: {', '.join(facts)}, {step.seconds:.1f} s", style="bold" if step.kept else "bold yellow")
    if step.reason is not None:
        line(console, step.reason, style="yellow", indent=4)
    if step.done:
        line(console, _grouped(site.action for site in step.done), indent=4)
    if step.skipped:
        reasons = _grouped(skip.reason for skip in step.skipped)
        line(console, f"{len(step.skipped)} skipped: {reasons}", style="dim", indent=4)
    for note in step.notes:
        line(console, note, style="dim", indent=4)


def _plan(step: StepReport, console: Console) -> None:
    """Print every place of a step: what would be done there with what error, or why nothing."""
    for site in step.done:
        error = "" if site.error is None else f", relative error {site.error:.1e} predicted"
        line(console, f"{site.key}: {site.action}{error}", indent=8)
    for skip in () if step.implicit else step.skipped:
        line(console, f"{skip.key}: {skip.reason}", style="dim", indent=8)


def _grouped(reasons: Iterable[str]) -> str:
    """Count equal reasons, the most frequent first; reasons that differ in names or numbers alone are one kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in reasons:
        kinds[VARIES.sub("…", reason)].append(reason)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    parts = [f"{len(kind)} × {_common(kind)}" for kind in ordered[:MAX_REASONS]]
    rest = sum(len(kind) for kind in ordered[MAX_REASONS:])
    return "; ".join([*parts, *([f"{rest} × other"] if rest else [])])


def _common(kind: list[str]) -> str:
    """Return one text for reasons of one kind: the range of numbers that differ, up to three names that do."""
    slots = iter([_span(each) for each in zip(*map(VARIES.findall, kind), strict=True)])
    return VARIES.sub(lambda _: next(slots), kind[0])


def _span(values: tuple[str, ...]) -> str:
    different = sorted(set(values))
    try:
        different.sort(key=float)
    except ValueError:
        return "/".join(different) if len(different) <= 3 else "…"
    return different[0] if len(different) == 1 else f"{different[0]}–{different[-1]}"


# Words and figures
