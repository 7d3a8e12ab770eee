"""What a pass plans: places to rewrite, places left alone and why, and levels to study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from onnxsqueeze.graph.edit import Rewrite

    W = TypeVar("W", default=Any)
    W_co = TypeVar("W_co", covariant=True, default=Any)
else:  # type checkers bring that module themselves; at run time nothing reads the default
    from typing import TypeVar

    W = TypeVar("W")
    W_co = TypeVar("W_co", covariant=True)

__all__ = ["Level", "Site", "Skip", "W"]


@dataclass(frozen=True)
class Site(Generic[W_co]):
    """One place that a pass will rewrite.

    ``key`` is the name of the first output of the node concerned, with the channels in brackets if it is about a part
    of them (``y[16:32]``), ``action`` says in words what happens, ``detail`` holds the figures for the report (JSON
    values), ``error`` the predicted relative output error ``‖Δy‖² / ‖y‖²`` and ``work``, of the type W of
    ``Site[W]``, whatever ``apply`` needs and ``plan`` already has. A plain ``Site`` carries anything.
    """

    key: str
    action: str
    detail: dict[str, object] = field(default_factory=dict)
    error: float | None = None
    work: W_co = field(default=None, compare=False, repr=False)  # type: ignore[assignment]


@dataclass(frozen=True)
class Skip:
    """One place that a pass looked at and left alone, and why, in words for the user."""

    key: str
    reason: str


@dataclass(frozen=True)
class Level:
    """One way to treat one layer, among several from mild to harsh, for a study of what that does to the answers.

    ``key`` names the layer as in Site, ``label`` the level, the same for all layers where that makes sense; ``share``
    of the layer's cost is left, and ``error`` is the predicted relative error of its output ``‖Δy‖² / ‖y‖²``.
    ``rewrites`` says which nodes become what, by the name of their first output; each gets a copy of its node, whose
    output has another name, and must keep the shape of that output.
    """

    key: str
    label: str
    share: float
    error: float | None
    rewrites: Mapping[str, Rewrite] = field(compare=False, repr=False)
