"""``onnxsqueeze check``: what of a model breaks on a target."""

from __future__ import annotations

import json
import sys

import click

from onnxsqueeze.cli.options import console_on

__all__ = ["command"]

ROWS = 40
"""Breaches that are shown on a terminal; all of them are in the JSON."""
BROKEN = 1
"""The exit code where something breaks."""


@click.command(name="check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL.onnx")
@click.option("--target", metavar="NAME|FILE", default="ort-x64", show_default=True, help="See onnxsqueeze targets.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.pass_context
def command(ctx: click.Context, /, model: str, target: str, as_json: bool) -> None:
    """Say what of a model breaks on a target, and where.

    The exit code is 1 if something does. What a model cannot show, like how fast it is, is not looked at.
    """
    from onnxsqueeze.analysis.check import breaches
    from onnxsqueeze.ir.files import load
    from onnxsqueeze.plain import fields_of
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.targets.profiles import find

    profile = find(target)
    found = breaches(load(model), profile)
    broken = [each for each in found if not each.notice]
    if as_json:
        told = {"model": model, "target": str(profile), "breaches": [fields_of(each) for each in found]}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        console = console_on(sys.stdout)
        for each in found[:ROWS]:
            notice = "notice: " if each.notice else ""
            line(console, f"{notice}{each.key or 'the model'}: {each.problem} ({each.rule})")
        if len(found) > ROWS:
            line(console, f"and {len(found) - ROWS} more; --json has all", style="dim")
        verdict = (
            f"breaks the rules of {profile} at {len(broken)} places" if broken else f"keeps to the rules of {profile}"
        )
        line(console, f"{model} {verdict}", style="bold")
    if broken:
        ctx.exit(BROKEN)
