from __future__ import annotations

import subprocess
import sys

import pytest

import onnxsqueeze

PUBLIC = [
    "Canonical",
    "Clean",
    "ContractError",
    "Depthwise",
    "FeedError",
    "GraphDiff",
    "Inspection",
    "Int8",
    "LowRank",
    "ModelError",
    "Pass",
    "PassError",
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
    "UnknownPassError",
    "UsageError",
    "__version__",
    "diff",
    "inspect_model",
    "load",
    "save",
    "sensitivity",
    "squeeze",
]


def test_the_public_names_are_these() -> None:
    assert onnxsqueeze.__all__ == PUBLIC
    assert onnxsqueeze.__all__ == sorted(onnxsqueeze.__all__)
    assert set(PUBLIC) <= set(dir(onnxsqueeze))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(onnxsqueeze, name)

    assert isinstance(found, str) if name == "__version__" else found.__name__ == name


def test_every_public_class_and_function_says_what_it_is() -> None:
    for name in PUBLIC:
        if name != "__version__":
            assert getattr(onnxsqueeze, name).__doc__, name


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'onnxsqueeze' has no attribute 'compress'"):
        _ = onnxsqueeze.compress


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, onnxsqueeze; print(*sorted({'numpy', 'onnx', 'onnxruntime', 'click', 'rich'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
