"""``onnxsqueeze exits``: a model that answers early where it is sure, as two models and a router."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.options import console_on, number, numbers, seed, share

if TYPE_CHECKING:
    from onnxsqueeze.engine.exits import Exits

__all__ = ["command"]


@click.command(name="exits", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images.")
@click.option("-o", "--output", metavar="FOLDER", required=True, help="A new folder for the models and the routers.")
@click.option("--max-disagreement", type=share, default="1%", metavar="SHARE", help="Other answers than the model's.")
@click.option("--at-least", type=share, default="20%", metavar="SHARE", help="Inputs that have to leave early.")
@click.option("--one-file", is_flag=True, help="Also write both parts as one model with an If.")
@click.option("--outputs", metavar="NAME:KIND", help="What the output is: scores or values.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--seed", type=seed, default="0", metavar="N", help="Seed of everything random.")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
def command(model: str, calib: str | None, as_json: bool, **settings: Any) -> None:
    """Let a model answer early where it is sure.

    It is cut in two; in front of the cut stands a small early answer, fitted to the model's own, and a router asks the
    rest only where that is not sure. On inputs that the choice has not seen, at most --max-disagreement of all answers
    are other ones, with 95 % confidence.
    """
    from onnxsqueeze.engine.exits import exits
    from onnxsqueeze.report import terminal

    with terminal.progress(console_on(sys.stderr)) as progress:
        found = exits(model, calib, progress=progress, **settings)
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(found), indent=2))
        return
    from onnxsqueeze.report.tables import line

    console = console_on(sys.stdout)
    for each in _words(found):
        line(console, each)


def _words(found: Exits) -> list[str]:
    """Say where inputs leave, how many, how often that is another answer, and what it saves."""
    other = "another class" if found.scores else "off by over 5 % of the variance"
    return [
        f"{found.rate:.0%} of the inputs leave at '{found.tensor}', after {found.arithmetic:.0%} of the arithmetic",
        f"{found.disagreement:.2%} of {found.confirmed} unseen inputs leave with an answer that is {other}; at most "
        f"{found.bound:.2%} with 95 % confidence",
        f"expected latency {found.latency:.2f} of the model's: {found.stem:.2f} + {1 - found.rate:.0%} of "
        f"{found.rest:.2f}",
        f"inputs that leave surest: {', '.join(map(str, found.early))}; least sure: {', '.join(map(str, found.late))}",
        f"wrote {found.folder}/: stem.onnx, rest.onnx, exits.json, router.py and router.js",
    ]
