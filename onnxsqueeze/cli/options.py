"""What the commands share: options, consoles, and files that are written whole."""

from __future__ import annotations

import io
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from onnxsqueeze.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["GIVEN", "command_line", "console_on", "number", "numbers", "refuse_to_overwrite", "seed", "write_report"]

GIVEN = "onnxsqueeze.given"


def number(text: str) -> float:
    """Return the number that an option gives."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise click.BadParameter(f"{text!r} is not a number")
    return value


def numbers(text: str) -> float | list[float]:
    """Return one number for all channels, or one for each with commas between them."""
    values = [number(each) for each in text.split(",")]
    return values if len(values) > 1 else values[0]


def seed(text: str) -> int:
    """Return the seed that an option gives."""
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is not an integer of 0 or more")
    return int(text)


def command_line(ctx: click.Context) -> str:
    """Return what the user typed, so that it can be typed again."""
    return shlex.join(["onnxsqueeze", *ctx.meta[GIVEN]])


def console_on(stream: TextIO) -> Console:
    """Return a console on ``stream`` that writes "?" for what the encoding of the stream does not have."""
    from rich.console import Console

    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(file=stream)


def refuse_to_overwrite(option: str, target: Path, others: dict[str, Path]) -> None:
    """Refuse a target that cannot be written or that is one of ``others`` before any work is done."""
    if target.is_dir():
        raise UsageError(f"{option} {target} is a folder: name a file")
    if not target.parent.is_dir():
        raise UsageError(f"{option} {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{option} {target}: the folder {target.parent} cannot be written to; name a file elsewhere")
    for what, other in others.items():
        if target.resolve() == other.resolve() or (target.exists() and other.exists() and target.samefile(other)):
            raise UsageError(f"{option} {target} would overwrite {what}: name another file")


def write_report(path: Path, text: str) -> None:
    """Write the report whole or not at all."""
    from onnxsqueeze.files import whole

    with whole(path, f"the report {path}") as file:
        file.write(text.encode())
