"""``onnxsqueeze distill``: a student is trained on the answers of teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.options import console_on, number, seed
from onnxsqueeze.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.engine.distill import Distilled

__all__ = ["command", "show"]


@click.command(name="distill", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", metavar="TEACHER.onnx... STUDENT.onnx", nargs=-1)
@click.option("--calib", metavar="PATH", help="Inputs: a folder or file of .npz, .npy or images.")
@click.option("-o", "--output", metavar="FILE", help="The trained student.  [default: STUDENT.distilled.onnx]")
@click.option("--steps", type=int, default=1000, metavar="N", help="Steps of Adam.  [default: 1000]")
@click.option("--lr", type=number, default="0.05", metavar="X", help="Learning rate.  [default: 0.05]")
@click.option("--temperature", type=number, default="4", metavar="T", help="Divides logits.  [default: 4]")
@click.option("--labels", metavar="NAME", help="Array of classes in the data, mixed in as cross-entropy.")
@click.option("--mix", type=number, default="0.5", metavar="X", help="Weight of the labels, 0 to 1.  [default: 0.5]")
@click.option("--batch", type=int, default=32, metavar="N", help="Samples of a step.  [default: 32]")
@click.option("--minutes", type=number, default="0", metavar="X", help="Ends with the best so far; 0: no limit.")
@click.option("--outputs", metavar="NAME:KIND[,...]", help="What outputs are, like logits:scores.")
@click.option("--seed", type=seed, default="0", metavar="N", help="Seed of everything random.")
def command(models: tuple[str, ...], calib: str | None, output: str | None, **settings: Any) -> None:
    """Train a student on the answers of teachers.

    The student is any graph with the same inputs, trained before or not. The answers of several teachers are averaged.
    No labels are needed. Ctrl-C ends training with the best so far.
    """
    if len(models) < 2:
        raise UsageError("name a teacher and a student: onnxsqueeze distill teacher.onnx student.onnx --calib feeds/")
    *teachers, student = models
    target = Path(output) if output is not None else Path(student).with_name(f"{Path(student).stem}.distilled.onnx")

    from onnxsqueeze.engine.distill import distill
    from onnxsqueeze.report import terminal

    with terminal.progress(console_on(sys.stderr)) as progress:
        found = distill(teachers, student, calib, output=target, progress=progress, **settings)
    show(found, target, console_on(sys.stdout))


def show(found: Distilled, target: Path, console: Console) -> None:
    """Print how far the student is from the teachers, before and after, and how its loss fell."""
    from onnxsqueeze.report.tables import grid, line
    from onnxsqueeze.words import decibels, printable

    table = grid("left", "left", "right", "right", "right", "right")
    table.add_row("output", "loss", "before", "after", "top-1 before", "after", style="dim")
    words = {"squares": "squared error", "scores": "divergence", "labels": "cross-entropy"}
    for one, other in zip(found.before, found.after, strict=True):
        kinds = " and ".join(words[loss.kind] for loss in found.losses if loss.output == one.output)
        shares = ["" if each.top1 is None else f"{each.top1:.1%}" for each in (one, other)]
        table.add_row(printable(one.output), kinds, decibels(one.sqnr_db), decibels(other.sqnr_db), *shares)
    console.print(table)
    line(console, f"against the teachers on {found.held_out} feeds that were held out", style="dim")
    fitted = found.fitted
    curve = ", ".join(f"{loss:.3g} at {step}" for step, loss in fitted.looks[:: max(len(fitted.looks) // 5, 1)])
    line(console, f"loss on feeds to judge by: {curve}; the best, {fitted.after:.3g}, was taken", style="dim")
    if fitted.stopped:
        line(console, f"ended after {fitted.steps} steps, since {fitted.stopped}")
    line(console, f"wrote {target} in {found.seconds:.1f} s")
