"""``onnxsqueeze profile-target``: measures what operators cost on this device, as a target's profile."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from onnxsqueeze.cli.options import console_on

__all__ = ["command"]


@click.command(name="profile-target", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "--output", metavar="FILE", required=True, help="The profile, a file that ends with .toml.")
@click.option("--base", metavar="NAME", default="native", help="The target that it changes.  [default: native]")
@click.option("--script", is_flag=True, help="Write the script that measures instead, to run it on another device.")
def command(output: str, base: str, script: bool) -> None:
    """Measure what operators cost on this device, for --target.

    It takes up to three minutes of one thread. With --script a file is written that needs onnxruntime and numpy alone.
    """
    from onnxsqueeze.engine.places import refuse_places
    from onnxsqueeze.errors import UsageError
    from onnxsqueeze.files import whole
    from onnxsqueeze.report.tables import line
    from onnxsqueeze.runtime import device
    from onnxsqueeze.targets.profiles import NATIVE, find

    path = Path(output)
    refuse_places({"--output": path}, {})
    if not script and path.suffix != ".toml":
        raise UsageError(f"--output {path}: a profile ends with .toml")
    if script:
        text = Path(device.__file__).read_text(encoding="utf-8")
    else:
        console = console_on(sys.stderr)
        clock = "measured" if base == NATIVE else ""
        points = device.measured(lambda told: line(console, told, style="dim"))
        text = device.profile(points, path.stem, find(base).name, device.borders(), clock)
    with whole(path, f"the profile {path}") as file:
        file.write(text.encode())
    if not script:
        find(path)  # whoever reads it next finds no mistake
    line(console_on(sys.stdout), f"wrote {path}", style="bold")
