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
    from onnxsqueeze.analysis.diff.diff import GraphDiff as GraphDiff
    from onnxsqueeze.analysis.diff.diff import diff as diff
    from onnxsqueeze.analysis.inspection.inspect import Inspection as Inspection
    from onnxsqueeze.analysis.inspection.inspect import inspect_model as inspect_model
    from onnxsqueeze.contract.base import Pass as Pass
    from onnxsqueeze.contract.plan import Site as Site
    from onnxsqueeze.contract.plan import Skip as Skip
    from onnxsqueeze.engine.calibrate import Calibration as Calibration
    from onnxsqueeze.engine.calibrate import calibrate as calibrate
    from onnxsqueeze.engine.calibrate import merge as merge
    from onnxsqueeze.engine.distill import Distilled as Distilled
    from onnxsqueeze.engine.distill import distill as distill
    from onnxsqueeze.engine.recipe import Recipe as Recipe
    from onnxsqueeze.engine.result import Result as Result
    from onnxsqueeze.engine.sensitivity import sensitivity as sensitivity
    from onnxsqueeze.engine.squeeze import squeeze as squeeze
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
    from onnxsqueeze.ir.files import load as load
    from onnxsqueeze.ir.files import save as save
    from onnxsqueeze.ir.packed import Packing as Packing
    from onnxsqueeze.ir.packed import pack as pack
    from onnxsqueeze.ir.packed import unpack as unpack
    from onnxsqueeze.passes.bits import Bits as Bits
    from onnxsqueeze.passes.canonical import Canonical as Canonical
    from onnxsqueeze.passes.clean import Clean as Clean
    from onnxsqueeze.passes.code import Code as Code
    from onnxsqueeze.passes.depthwise import Depthwise as Depthwise
    from onnxsqueeze.passes.float32 import Float32 as Float32
    from onnxsqueeze.passes.half import Half as Half
    from onnxsqueeze.passes.int8 import Int8 as Int8
    from onnxsqueeze.passes.lowrank import LowRank as LowRank
    from onnxsqueeze.passes.palette import Palette as Palette
    from onnxsqueeze.passes.prune import Prune as Prune
    from onnxsqueeze.passes.sparsify import Sparsify as Sparsify
    from onnxsqueeze.passes.tune import Tune as Tune
    from onnxsqueeze.report.run import Report as Report
    from onnxsqueeze.report.sensitivity import Sensitivity as Sensitivity
    from onnxsqueeze.runtime.session import session as session
    from onnxsqueeze.search.auto import auto as auto
    from onnxsqueeze.search.family import Family as Family
    from onnxsqueeze.search.family import family as family
    from onnxsqueeze.search.pick import pick as pick

    __version__: str

_HOMES = {
    "Bits": "onnxsqueeze.passes.bits",
    "Calibration": "onnxsqueeze.engine.calibrate",
    "Canonical": "onnxsqueeze.passes.canonical",
    "Clean": "onnxsqueeze.passes.clean",
    "Code": "onnxsqueeze.passes.code",
    "ContractError": "onnxsqueeze.errors",
    "Depthwise": "onnxsqueeze.passes.depthwise",
    "Distilled": "onnxsqueeze.engine.distill",
    "Family": "onnxsqueeze.search.family",
    "FeedError": "onnxsqueeze.errors",
    "Float32": "onnxsqueeze.passes.float32",
    "GraphDiff": "onnxsqueeze.analysis.diff.diff",
    "Half": "onnxsqueeze.passes.half",
    "Inspection": "onnxsqueeze.analysis.inspection.inspect",
    "Int8": "onnxsqueeze.passes.int8",
    "LowRank": "onnxsqueeze.passes.lowrank",
    "ModelError": "onnxsqueeze.errors",
    "Packing": "onnxsqueeze.ir.packed",
    "Palette": "onnxsqueeze.passes.palette",
    "Pass": "onnxsqueeze.contract.base",
    "PassError": "onnxsqueeze.errors",
    "Prune": "onnxsqueeze.passes.prune",
    "Recipe": "onnxsqueeze.engine.recipe",
    "Report": "onnxsqueeze.report.run",
    "Result": "onnxsqueeze.engine.result",
    "Sensitivity": "onnxsqueeze.report.sensitivity",
    "Site": "onnxsqueeze.contract.plan",
    "Skip": "onnxsqueeze.contract.plan",
    "Sparsify": "onnxsqueeze.passes.sparsify",
    "SpecError": "onnxsqueeze.errors",
    "SqueezeError": "onnxsqueeze.errors",
    "ToleranceError": "onnxsqueeze.errors",
    "Tune": "onnxsqueeze.passes.tune",
    "UnknownPassError": "onnxsqueeze.errors",
    "UsageError": "onnxsqueeze.errors",
    "auto": "onnxsqueeze.search.auto",
    "calibrate": "onnxsqueeze.engine.calibrate",
    "diff": "onnxsqueeze.analysis.diff.diff",
    "distill": "onnxsqueeze.engine.distill",
    "edit": "onnxsqueeze.graph.edit",
    "family": "onnxsqueeze.search.family",
    "inspect_model": "onnxsqueeze.analysis.inspection.inspect",
    "load": "onnxsqueeze.ir.files",
    "merge": "onnxsqueeze.engine.calibrate",
    "pack": "onnxsqueeze.ir.packed",
    "pick": "onnxsqueeze.search.pick",
    "save": "onnxsqueeze.ir.files",
    "sensitivity": "onnxsqueeze.engine.sensitivity",
    "session": "onnxsqueeze.runtime.session",
    "squeeze": "onnxsqueeze.engine.squeeze",
    "unpack": "onnxsqueeze.ir.packed",
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
