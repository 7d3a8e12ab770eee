"""Squeezes models/cnn.onnx and draws what the terminal shows: `python docs/images/terminal.py` writes terminal.svg."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from onnxsqueeze.report import terminal
from onnxsqueeze import squeeze

ROOT = Path(__file__).parents[2]
COMMAND = "onnxsqueeze models/cnn.onnx -p lowrank,int8"
# The theme without fonts from elsewhere: the reader's own monospaced one will do.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code", "Menlo, Consolas")


def main() -> None:
    """Run the README's main command on a copy of the models and save a picture of the report."""
    console = Console(record=True, width=84, file=open(os.devnull, "w"), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").mkdir()
        for name in ("cnn.onnx", "cnn.calib.npz"):
            (Path(folder) / "models" / name).write_bytes((ROOT / "models" / name).read_bytes())
        os.chdir(folder)
        result = squeeze("models/cnn.onnx", "lowrank,int8", output="models/cnn.squeezed.onnx")
        console.print(Text(f"$ {COMMAND}"))
        terminal.show(result.report, console)
    svg = console.export_svg(title="onnxsqueeze", theme=MONOKAI, code_format=FORMAT, unique_id="onnxsqueeze")
    lines = (line.rstrip() for line in svg.splitlines())
    (Path(__file__).parent / "terminal.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
