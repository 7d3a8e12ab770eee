"""What a user gets: one version, the type marker, and everything that the package needs at work."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_folder_of_the_package_is_listed_as_one() -> None:
    (listed,) = re.findall(r"^packages = (\[.*?\])$", PROJECT, re.MULTILINE | re.DOTALL)
    files = (ROOT / "onnxsqueeze").rglob("__init__.py")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in files} | {"onnxsqueeze.passes"}

    assert ast.literal_eval(listed) == sorted(folders)


def test_the_installed_package_has_the_version_of_the_project_and_all_its_files(fresh_venv: Path) -> None:
    (version,) = re.findall(r'^version = "(.*)"$', PROJECT, re.MULTILINE)
    said = subprocess.check_output([fresh_venv / "bin/onnxsqueeze", "--version"], text=True)
    (package,) = fresh_venv.glob("lib/python*/site-packages/onnxsqueeze")
    unwanted = {"__pycache__", "__init__.pyc"}
    ours = {
        path.relative_to(folder)
        for folder in (ROOT / "onnxsqueeze",)
        for path in [*folder.rglob("*"), *(folder / "passes").rglob("*")]
        if path.is_file() and not unwanted & set(path.parts)
    }

    assert said == f"onnxsqueeze {version}\n"
    assert [each for each in sorted(ours) if not (package / each).is_file()] == []
    assert Path("py.typed") in ours
    assert Path("passes/int8.py") in ours
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
