"""Lets test files import the modules in models/, gives generated tests all the time, and builds one fresh venv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "models"))
settings.register_profile("project", deadline=None)  # a busy machine is no defect
settings.load_profile("project")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def fresh_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment into which pip has installed the project's wheel and the plug-in of the docs.

    Their dependencies are those of this environment: downloading them again would take most of the time.
    """
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("onnxsqueeze", "passes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    shutil.copytree(ROOT / "docs/examples/plugin", folder / "plugin", ignore=unwanted)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = subprocess.check_output(
        [python, "-c", "import os, site; print(next(filter(os.path.isdir, site.getsitepackages())))"], text=True
    ).strip()
    Path(site, "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    pip += ["--ignore-installed", "--no-build-isolation"]
    subprocess.run([*pip, str(source), str(folder / "plugin")], check=True)
    return folder / "venv"
