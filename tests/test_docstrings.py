"""Examples in docstrings run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "onnxsqueeze", ROOT / "onnxsqueeze/passes")
"""Named both, because not every version of Python goes through the link from one to the other."""
SOURCES = sorted({path for folder in FOLDERS for path in folder.rglob("*.py")})
WITH_EXAMPLES = [path for path in SOURCES if ">>>" in path.read_text(encoding="utf-8")]


def test_the_main_functions_have_examples() -> None:
    from_root = {path.relative_to(ROOT / "onnxsqueeze").as_posix() for path in WITH_EXAMPLES}

    assert {"__init__.py", "ir/files.py", "engine/recipe.py", "engine/registry.py", "engine/syntax.py"} <= from_root


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if path.stem == "__init__" else parts)
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)

    assert found.attempted > 0
    assert found.failed == 0
