"""The one exception tree; the exit code of the command line lives on the class.

* SqueezeError 1
  x UsageError 2: the caller asked for something that cannot be done as asked
    + SpecError: pipeline text that does not parse
    + UnknownPassError: a name that no pass has
    + FeedError: calibration data that does not fit the model
  x ModelError 3: the model file cannot be read, checked or run
    + UnmeasuredError: a model that was instrumented does not run, so that something cannot be measured
  x PassError 4: a pass broke its promise; this is our bug
    + PlaceError: a pass cannot go on at one place, which is then left alone
    + ContractError: a pass does not keep to the contract of passes; the bug of whoever wrote the pass
  x ToleranceError 5: the result is further from the original than allowed; nothing is written
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ContractError",
    "FeedError",
    "ModelError",
    "PassError",
    "PlaceError",
    "SpecError",
    "SqueezeError",
    "ToleranceError",
    "UnknownPassError",
    "UnmeasuredError",
    "UsageError",
]


class SqueezeError(Exception):
    """Everything that onnxsqueeze raises on purpose."""

    exit_code = 1


class UsageError(SqueezeError):
    """The caller asked for something that cannot be done as asked."""

    exit_code = 2


class SpecError(UsageError):
    """Pipeline text that does not parse; the message carries a caret under the first bad character."""


class UnknownPassError(UsageError):
    """A name that no pass has; the message suggests the nearest one."""


class FeedError(UsageError):
    """Calibration data that does not fit the model."""


class ModelError(SqueezeError):
    """The model cannot be read, checked or run."""

    exit_code = 3


class UnmeasuredError(ModelError):
    """A model that was instrumented does not run where the user's own does: what it was to measure is not known."""


class PassError(SqueezeError):
    """A pass broke its promise; the original exception is its cause."""

    exit_code = 4


class ContractError(PassError):
    """A pass does not keep to the contract of passes; the message names the pass, the place and the way out."""


class PlaceError(PassError):
    """A pass cannot go on at one place; the engine tries it again without that place.

    ``key`` and ``action`` are those of the site.
    """

    def __init__(self, message: str, key: str = "", action: str = "") -> None:
        super().__init__(message)
        self.key, self.action = key, action


class ToleranceError(SqueezeError):
    """The result is further from the original than allowed; nothing is written. ``report`` is the Report of the run."""

    exit_code = 5

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report
