"""Examples in docstrings run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "onnxsqueeze").glob("*.py"), *(ROOT / "passes").glob("*.py")])
WITH_EXAMPLES = [path for path in SOURCES if ">>>" in path.read_text(encoding="utf-8")]


def test_the_main_functions_have_examples() -> None:
    assert {"__init__", "codec", "recipe", "registry", "spec"} <= {path.stem for path in WITH_EXAMPLES}


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    package = "onnxsqueeze" if path.parent.name == "onnxsqueeze" else "onnxsqueeze.passes"
    name = package if path.stem == "__init__" else f"{package}.{path.stem}"
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)

    assert found.attempted > 0
    assert found.failed == 0
