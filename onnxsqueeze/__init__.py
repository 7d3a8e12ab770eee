"""A compression compiler for ONNX graphs: a float model goes in, a smaller one that gives the same answers comes out.

>>> import onnxsqueeze
>>> result = onnxsqueeze.squeeze("models/mlp.onnx", "int8")
>>> result.report.after.bytes < 0.4 * result.report.before.bytes
True

Every name is imported when it is first used, so that ``import onnxsqueeze`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.lazy import hand_on

if TYPE_CHECKING:
    from onnxsqueeze.contract.base import Pass as Pass
    from onnxsqueeze.contract.plan import Site as Site
    from onnxsqueeze.contract.plan import Skip as Skip
    from onnxsqueeze.difference import GraphDiff as GraphDiff
    from onnxsqueeze.difference import diff as diff
    from onnxsqueeze.errors import ContractError as ContractError
    from onnxsqueeze.errors import FeedError as FeedError
    from onnxsqueeze.errors import ModelError as ModelError
    from onnxsqueeze.errors import PassError as PassError
    from onnxsqueeze.errors import SpecError as SpecError
    from onnxsqueeze.errors import SqueezeError as SqueezeError
    from onnxsqueeze.errors import ToleranceError as ToleranceError
    from onnxsqueeze.errors import UnknownPassError as UnknownPassError
    from onnxsqueeze.errors import UsageError as UsageError
    from onnxsqueeze.graph import edit as edit
    from onnxsqueeze.inspection import Inspection as Inspection
    from onnxsqueeze.inspection import inspect_model as inspect_model
    from onnxsqueeze.ir.files import load as load
    from onnxsqueeze.ir.files import save as save
    from onnxsqueeze.passes.canonical import Canonical as Canonical
    from onnxsqueeze.passes.clean import Clean as Clean
    from onnxsqueeze.passes.depthwise import Depthwise as Depthwise
    from onnxsqueeze.passes.int8 import Int8 as Int8
    from onnxsqueeze.passes.lowrank import LowRank as LowRank
    from onnxsqueeze.passes.prune import Prune as Prune
    from onnxsqueeze.passes.sparsify import Sparsify as Sparsify
    from onnxsqueeze.pipeline import squeeze as squeeze
    from onnxsqueeze.recipe import Recipe as Recipe
    from onnxsqueeze.report import Report as Report
    from onnxsqueeze.result import Result as Result
    from onnxsqueeze.study import Sensitivity as Sensitivity
    from onnxsqueeze.study import sensitivity as sensitivity

    __version__: str

_HOMES = {
    "Canonical": "onnxsqueeze.passes.canonical",
    "Clean": "onnxsqueeze.passes.clean",
    "ContractError": "onnxsqueeze.errors",
    "Depthwise": "onnxsqueeze.passes.depthwise",
    "FeedError": "onnxsqueeze.errors",
    "GraphDiff": "onnxsqueeze.difference",
    "Inspection": "onnxsqueeze.inspection",
    "Int8": "onnxsqueeze.passes.int8",
    "LowRank": "onnxsqueeze.passes.lowrank",
    "ModelError": "onnxsqueeze.errors",
    "Pass": "onnxsqueeze.contract.base",
    "PassError": "onnxsqueeze.errors",
    "Prune": "onnxsqueeze.passes.prune",
    "Recipe": "onnxsqueeze.recipe",
    "Report": "onnxsqueeze.report",
    "Result": "onnxsqueeze.result",
    "Sensitivity": "onnxsqueeze.study",
    "Site": "onnxsqueeze.contract.plan",
    "Skip": "onnxsqueeze.contract.plan",
    "Sparsify": "onnxsqueeze.passes.sparsify",
    "SpecError": "onnxsqueeze.errors",
    "SqueezeError": "onnxsqueeze.errors",
    "ToleranceError": "onnxsqueeze.errors",
    "UnknownPassError": "onnxsqueeze.errors",
    "UsageError": "onnxsqueeze.errors",
    "diff": "onnxsqueeze.difference",
    "edit": "onnxsqueeze.graph.edit",
    "inspect_model": "onnxsqueeze.inspection",
    "load": "onnxsqueeze.ir.files",
    "save": "onnxsqueeze.ir.files",
    "sensitivity": "onnxsqueeze.study",
    "squeeze": "onnxsqueeze.pipeline",
}
"""Where each public name is defined."""

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    if name != "__version__":
        return hand_on(__name__, _HOMES, name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxsqueeze")
    except PackageNotFoundError:  # run from a checkout
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
