"""A compression compiler for ONNX graphs: a float model goes in, a smaller one that gives the same answers comes out.

>>> import onnxsqueeze
>>> result = onnxsqueeze.squeeze("models/mlp.onnx", "int8")
>>> result.report.after.bytes < 0.4 * result.report.before.bytes
True

Every name is imported when it is first used, so that ``import onnxsqueeze`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxsqueeze.codec import load, save
    from onnxsqueeze.contract import Pass, Site, Skip
    from onnxsqueeze.difference import GraphDiff, diff
    from onnxsqueeze.errors import (
        ContractError,
        FeedError,
        ModelError,
        PassError,
        SpecError,
        SqueezeError,
        ToleranceError,
        UnknownPassError,
        UsageError,
    )
    from onnxsqueeze.inspection import Inspection, inspect_model
    from onnxsqueeze.passes.canonical import Canonical
    from onnxsqueeze.passes.clean import Clean
    from onnxsqueeze.passes.depthwise import Depthwise
    from onnxsqueeze.passes.int8 import Int8
    from onnxsqueeze.passes.lowrank import LowRank
    from onnxsqueeze.passes.sparsify import Sparsify
    from onnxsqueeze.pipeline import squeeze
    from onnxsqueeze.recipe import Recipe
    from onnxsqueeze.report import Report
    from onnxsqueeze.result import Result
    from onnxsqueeze.study import Sensitivity, sensitivity

    __version__: str

__all__ = [
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

_HOMES = {
    "Canonical": "passes.canonical",
    "Clean": "passes.clean",
    "Depthwise": "passes.depthwise",
    "GraphDiff": "difference",
    "Inspection": "inspection",
    "Int8": "passes.int8",
    "LowRank": "passes.lowrank",
    "Pass": "contract",
    "Recipe": "recipe",
    "Report": "report",
    "Result": "result",
    "Sensitivity": "study",
    "Site": "contract",
    "Skip": "contract",
    "Sparsify": "passes.sparsify",
    "diff": "difference",
    "inspect_model": "inspection",
    "load": "codec",
    "save": "codec",
    "sensitivity": "study",
    "squeeze": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("onnxsqueeze")
        except PackageNotFoundError:  # run from a checkout
            value = "0+unknown"
    else:
        value = getattr(import_module(f"onnxsqueeze.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
