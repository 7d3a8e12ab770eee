"""What a pass is: a frozen dataclass whose fields are its options, with ``needs``, ``plan`` and ``apply``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from onnxsqueeze.graph.edit import Rewrite

if TYPE_CHECKING:
    from onnxsqueeze.bench import Bench
    from onnxsqueeze.calibration import Statistics
    from onnxsqueeze.graph.view import View
    from onnxsqueeze.ir.objects import Graph

__all__ = ["Channels", "Gram", "Level", "Mean", "Need", "Pass", "Range", "Site", "Skip"]


@dataclass(frozen=True)
class Range:
    """Asks for the power-of-two histogram, minimum and maximum of the float tensor ``tensor``."""

    tensor: str


@dataclass(frozen=True)
class Mean:
    """Asks for the mean of ``tensor`` per index of ``axis`` (its channels)."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Channels:
    """Asks for minimum, maximum, mean and mean square of ``tensor`` per index of ``axis``; ``gram``: and products."""

    tensor: str
    axis: int
    gram: bool = False


@dataclass(frozen=True)
class Gram:
    """Asks for ``n``, ``Σx`` and ``Σxxᵀ`` over the input rows ``x`` that a linear operator reads from ``tensor``.

    ``axis`` is the contracted axis of a Gemm or MatMul (-1: the last). With ``kernel`` set the rows are the
    im2col patches of a Conv of one group, ordered channel-major like its weight: ``x[(c·kh + i)·kw + j]``; ``pads``
    are all the beginnings, then all the ends, unless ``auto_pad`` is SAME_UPPER or SAME_LOWER.
    """

    tensor: str
    axis: int = -1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = ""


Need = Range | Mean | Channels | Gram


@dataclass(frozen=True)
class Site:
    """One place that a pass will rewrite.

    ``key`` is the name of the first output of the node concerned, with the channels in brackets if it is about a part
    of them (``y[16:32]``), ``action`` says in words what happens, ``detail`` holds the figures for the report (JSON
    values), ``error`` the predicted relative output error ``‖Δy‖² / ‖y‖²`` and ``work`` whatever ``apply`` needs and
    ``plan`` already has.
    """

    key: str
    action: str
    detail: dict[str, object] = field(default_factory=dict)
    error: float | None = None
    work: object = field(default=None, compare=False, repr=False)


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


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of the graph. The fields of the dataclass are its options: ``min_rank`` is written ``min-rank``.

    The engine calls ``needs`` (what to measure), collects it in one sweep over the calibration feeds, calls ``plan``
    (pure: it must not touch the graph) and then ``apply`` for each site, and checks the result.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    min_opset: ClassVar[int] = 1
    """The engine raises the model's opset to this before ``plan`` if there is anything to do."""
    cleans_first: ClassVar[bool] = True
    """Whether ``clean`` runs before this pass when the pipeline does not say so itself."""

    float_only: ClassVar[bool] = True
    """Whether the pass makes no sense on a graph that is already quantized; the engine then refuses."""
    quantizes: ClassVar[bool] = False
    """Whether the pass leaves a quantized graph, so that nothing that needs float weights may follow."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Names of passes that have to run before this one."""
    forbids: ClassVar[tuple[str, ...]] = ()
    """Names of passes that this one must not follow."""
    repeats: ClassVar[bool] = False
    """Whether one rewrite may make another possible, so that the engine plans again until nothing is left."""

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the statistics that ``plan`` reads; they are absent when there are no feeds."""
        return ()

    @abstractmethod
    def plan(self, view: View, stats: Statistics) -> Iterator[Site | Skip]:
        """Yield what would be done at each candidate place, and why nothing is done at the others."""

    def level_needs(self, view: View) -> Iterable[Need]:
        """Yield the statistics that ``levels`` reads: those of ``plan`` unless the pass says otherwise."""
        return self.needs(view)

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield, for a study of sensitivity, each layer at each level alone; a pass without levels yields none."""
        return iter(())

    def select(self, plan: list[Site | Skip], bench: Bench) -> list[Site | Skip]:
        """Return the plan without the sites that do not pay, each replaced by a Skip that says why.

        Called between ``plan`` and the first ``apply`` when there are feeds and results are checked.
        """
        return plan

    def tune(self, graph: Graph, bench: Bench) -> Iterable[str]:
        """Improve the rewritten graph in place by measuring it, and yield what was gained, in words for the report.

        Called after the last ``apply`` when there are feeds and results are checked.
        """
        return ()

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Yield what the report says about the result besides its figures; called at last, with or without feeds."""
        return ()

    @abstractmethod
    def apply(self, site: Site, graph: Graph) -> None:
        """Rewrite one site in place."""
