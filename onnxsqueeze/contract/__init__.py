"""What a pass is, and the bench that it may measure on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxsqueeze.lazy import hand_on

if TYPE_CHECKING:
    from onnxsqueeze.contract.base import Pass as Pass
    from onnxsqueeze.contract.plan import Site as Site
    from onnxsqueeze.contract.plan import Skip as Skip
    from onnxsqueeze.statistics.needs import Channels as Channels
    from onnxsqueeze.statistics.needs import Gram as Gram
    from onnxsqueeze.statistics.needs import Mean as Mean
    from onnxsqueeze.statistics.needs import Range as Range

_HOMES = {
    "Channels": "onnxsqueeze.statistics.needs",
    "Gram": "onnxsqueeze.statistics.needs",
    "Mean": "onnxsqueeze.statistics.needs",
    "Pass": "onnxsqueeze.contract.base",
    "Range": "onnxsqueeze.statistics.needs",
    "Site": "onnxsqueeze.contract.plan",
    "Skip": "onnxsqueeze.contract.plan",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    return hand_on(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
