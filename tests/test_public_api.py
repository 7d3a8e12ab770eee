from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import onnxsqueeze
from onnxsqueeze import plugin

PUBLIC = [
    "Bits",
    "Calibration",
    "Canonical",
    "Clean",
    "Code",
    "ContractError",
    "Depthwise",
    "Distilled",
    "Family",
    "FeedError",
    "Float32",
    "GraphDiff",
    "Half",
    "Inspection",
    "Int8",
    "LowRank",
    "ModelError",
    "Packing",
    "Palette",
    "Pass",
    "PassError",
    "Prune",
    "Recipe",
    "Report",
    "Result",
    "Sensitivity",
    "Site",
    "Skip",
    "Sparsify",
    "SpecError",
    "SqueezeError",
    "ToleranceError",
    "Tune",
    "UnknownPassError",
    "UsageError",
    "__version__",
    "auto",
    "calibrate",
    "diff",
    "distill",
    "edit",
    "family",
    "inspect_model",
    "load",
    "merge",
    "pack",
    "pick",
    "save",
    "sensitivity",
    "session",
    "squeeze",
    "unpack",
]

FOR_PASSES = [
    "Bench",
    "Channels",
    "Derived",
    "Gram",
    "Graph",
    "Level",
    "Mean",
    "Need",
    "Node",
    "Pass",
    "Range",
    "Selected",
    "Site",
    "Skip",
    "Statistics",
    "View",
    "Weight",
    "edit",
    "is_standard",
    "key_of",
    "subgraphs",
    "walk",
]
"""What the author of a pass imports from ``onnxsqueeze.plugin``."""

ELSEWHERE = {
    "onnxsqueeze.contract": ["Channels", "Gram", "Mean", "Pass", "Range", "Site", "Skip"],
    "onnxsqueeze.feeds": ["read"],
    "onnxsqueeze.report": ["Cost", "Deviation", "StepReport"],
}
"""What else the documentation names."""


def test_the_public_names_are_these() -> None:
    assert onnxsqueeze.__all__ == PUBLIC
    assert onnxsqueeze.__all__ == sorted(onnxsqueeze.__all__)
    assert set(PUBLIC) <= set(dir(onnxsqueeze))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(onnxsqueeze, name)

    assert isinstance(found, str) if name == "__version__" else found.__name__.rpartition(".")[2] == name


def test_every_public_class_and_function_says_what_it_is() -> None:
    for name in PUBLIC:
        if name != "__version__":
            assert getattr(onnxsqueeze, name).__doc__, name


def test_type_checkers_know_the_public_names_and_where_they_are() -> None:
    tree = ast.parse(Path(onnxsqueeze.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {}
    for node in imports:
        for each in node.names:
            path = f"{node.module}.{each.name}"
            homes[each.asname] = path if path in sys.modules else node.module

    assert homes == onnxsqueeze._HOMES


def test_the_names_for_authors_of_passes_are_these() -> None:
    assert plugin.__all__ == FOR_PASSES
    assert [name for name in FOR_PASSES if not hasattr(plugin, name)] == []


@pytest.mark.parametrize("module", ELSEWHERE)
def test_what_else_the_documentation_names_is_there(module: str) -> None:
    found = import_module(module)

    assert [name for name in ELSEWHERE[module] if getattr(found, name).__name__ != name] == []


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'onnxsqueeze' has no attribute 'compress'"):
        _ = onnxsqueeze.compress


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, onnxsqueeze; print(*sorted({'numpy', 'onnx', 'onnxruntime', 'click', 'rich'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
