"""What people read: a run as data, as text and as pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.lazy import hand_on

if TYPE_CHECKING:
    from onnxsqueeze.measure.answers import Deviation as Deviation
    from onnxsqueeze.measure.cost import Cost as Cost
    from onnxsqueeze.report.run import StepReport as StepReport

_HOMES = {
    "Cost": "onnxsqueeze.measure.cost",
    "Deviation": "onnxsqueeze.measure.answers",
    "StepReport": "onnxsqueeze.report.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    return hand_on(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
