"""What the commands share: options, consoles, and files that are written whole."""

from __future__ import annotations

import io
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["GIVEN", "command_line", "console_on", "number", "numbers", "seed", "share", "write_report"]

GIVEN = "onnxsqueeze.given"
LARGEST_SEED = 2**63 - 1


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


def share(text: str) -> float:
    """Return a share that is given as a number or in per cent."""
    return number(text[:-1]) / 100 if text.endswith("%") else number(text)


def seed(text: str) -> int:
    """Return the seed that an option gives."""
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is not an integer of 0 or more")
    if len(text) > 19 or int(text) > LARGEST_SEED:
        raise click.BadParameter(f"it is at most {LARGEST_SEED}")
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


def write_report(path: Path, text: str) -> None:
    """Write the report whole or not at all."""
    from onnxsqueeze.files import whole

    with whole(path, f"the report {path}") as file:
        file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
