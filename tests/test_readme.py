"""README and docs keep their word: commands and programs run, links lead somewhere, and no pass is left out."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import onnxsqueeze
from onnxsqueeze import Recipe
from onnxsqueeze.cli.main import main
from onnxsqueeze.engine import registry
from onnxsqueeze.runtime.timing import Latency

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "models/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
RUN = re.compile(r"^```(console|python)$", re.MULTILINE)
GUIDES = [path for path in sorted((ROOT / "docs").glob("*.md")) if RUN.search(path.read_text(encoding="utf-8"))]
ELSEWHERE = ["onnxsqueeze models/mlp.onnx -p 'narrow{min-size=2000}'"]
"""Commands that need an installed plug-in: its own test has them."""
IN_CI_RUN = ("python3 -m venv", "pip install", "ruff check", "ruff format --check", "mypy", "python -m pytest")
"""Commands that are too slow here; the run that proves the project on a fresh machine has them."""


QUICKER = {"onnxsqueeze models/cnn.onnx": "onnxsqueeze models/cnn.onnx --effort quick"}
"""What takes minutes as users run it, and does the same in one."""


class Block(NamedTuple):
    """A fenced block: its language, the file that it is the text of (""  for none), and the text."""

    language: str
    file: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def commands(block: Block) -> list[str]:
    return [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]


def is_in_ci_run(command: str) -> bool:
    return command.startswith(IN_CI_RUN)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with less data, and the model.onnx, feeds/ and photos/ of which the README speaks."""
    from PIL import Image

    copy = tmp_path / "project"
    unwanted = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "*.squeezed.*", "tests")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    shutil.copy(copy / "models/mlp.onnx", copy / "model.onnx")
    for file in copy.glob("models/*.calib.npz"):
        with np.load(file) as calibration:
            digits = calibration["input"][:24]
        np.savez(file, input=digits)
    for folder in ("feeds", "photos", "part1", "part2"):
        (copy / folder).mkdir()
    for i, digit in enumerate(digits[:8]):
        np.savez(copy / f"feeds/{i}.npz", input=digit[None])
        np.savez(copy / f"part{i % 2 + 1}/{i}.npz", input=digit[None])
        Image.fromarray((255 * digit[0]).astype(np.uint8)).save(copy / f"photos/{i}.png")
    return copy


def environment(project: Path) -> dict[str, str]:
    """Return an environment in which python is this one, and onnxsqueeze and its modules are those of the copy."""
    programs = project.parent / "programs"
    programs.mkdir()
    for name, arguments in (("python", ""), ("onnxsqueeze", "-m onnxsqueeze")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(project)}


@pytest.mark.skipif(os.name == "nt", reason="the commands are for a POSIX shell")
def test_every_command_and_every_program_of_the_readme_works(project: Path) -> None:
    argv = run_all(README, project)

    assert len(argv) >= 8
    assert {"cnn.squeezed.onnx", "mlp.squeezed.onnx"} <= {path.name for path in (project / "models").iterdir()}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_command_and_every_program_of_a_guide_works(
    guide: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs them in this process and without the clock, which takes a third of the time."""
    monkeypatch.setattr("onnxsqueeze.engine.latencies.latency", lambda *_, **__: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.setattr("onnxsqueeze.contract.bench.latency", lambda *_: Latency((1.0, 1.0), 1.0, 1.0))
    monkeypatch.chdir(project)
    onnxsqueeze.squeeze("models/mlp.onnx", "int8", output="models/mlp.squeezed.onnx")
    program = ""
    for block in blocks(guide.read_text(encoding="utf-8")):
        if block.language == "python":
            program += block.text
        for command in commands(block) if block.language == "console" else ():
            if not is_in_ci_run(command) and command not in ELSEWHERE:
                with pytest.raises(SystemExit) as exit_:
                    main(shlex.split(command, comments=True)[1:])

                assert exit_.value.code == (1 if command.startswith("onnxsqueeze diff") else 0), command
    exec(compile(program, guide.name, "exec", dont_inherit=True), {"__name__": guide.stem})


def test_the_recipe_in_the_guide_is_one() -> None:
    (example,) = (each for each in blocks((ROOT / "docs/recipes.md").read_text("utf-8")) if each.language == "toml")

    assert len(Recipe.parse(example.text).steps) == 3


def run_all(text: str, project: Path) -> list[list[str]]:
    """Run the commands and programs of a document in the copy of the project, and return them."""
    env = environment(project)
    programs, argv = [], []
    for block in blocks(text):
        if block.file:
            (project / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            programs.append(block.text)
        elif block.language == "console":
            argv += [["bash", "-c", QUICKER.get(each, each)] for each in commands(block) if not is_in_ci_run(each)]
    argv.append([sys.executable, "-c", "\n".join(programs)])
    for each in argv:
        result = subprocess.run(
            each, capture_output=True, text=True, cwd=project, env=env, stdin=subprocess.DEVNULL, check=False
        )

        expected = 1 if each[-1].startswith("onnxsqueeze diff") else 0  # as in diff: the models differ
        assert result.returncode == expected, f"{each[-1]}\n{result.stdout}\n{result.stderr}"
        assert result.stderr == ""
    return argv


def test_commands_that_are_not_run_here_are_run_on_a_fresh_machine() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    named = [each for block in blocks(README) if block.language == "console" for each in commands(block)]

    assert [prefix for prefix in IN_CI_RUN if f"step {prefix}" not in script] == []
    assert next(each for each in named if each.startswith("onnxsqueeze")) == "onnxsqueeze models/cnn.onnx"
    assert all(f"step {quicker}\n" in script for quicker in QUICKER.values())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))

    assert [each for each in targets if "://" not in each and not (document.parent / each).exists()] == []


def test_the_map_names_files_that_are_there() -> None:
    rows = README.split("## Where things are")[1].split("\n## ")[0].splitlines()
    places = [place for row in rows if "|" in row for place in re.findall(r"`([\w/.]+)`", row.split("|")[1])]

    assert len(places) > 10
    folders = (ROOT, ROOT / "onnxsqueeze")
    assert [each for each in places if not any((folder / each).exists() for folder in folders)] == []


def test_every_pass_and_every_option_is_documented() -> None:
    guide = (ROOT / "docs/passes.md").read_text(encoding="utf-8")
    built_in = [each for each in registry.listing() if each.origin == "built-in"]

    assert [each.name for each in built_in if f"| `{each.name}` |" not in README] == []
    assert [each.name for each in built_in if f"## `{each.name}`" not in guide] == []
    missing = [
        (each.name, option.key) for each in built_in for option in each.options if f"`{option.key}`" not in guide
    ]
    assert missing == []
