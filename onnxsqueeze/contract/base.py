"""What a pass is: a frozen dataclass whose fields are its options, with ``needs``, ``plan`` and ``apply``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic

from onnxsqueeze.contract.plan import Level, Site, Skip, W
from onnxsqueeze.statistics.needs import Need

if TYPE_CHECKING:
    from onnxsqueeze.contract.bench import Bench
    from onnxsqueeze.graph.view import View
    from onnxsqueeze.ir.objects import Graph
    from onnxsqueeze.statistics.measured import Statistics

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass(ABC, Generic[W]):
    """A rewrite of the graph. The fields of the dataclass are its options: ``min_rank`` is written ``min-rank``.

    The engine calls ``needs`` (what to measure), collects it in one sweep over the calibration feeds, calls ``plan``
    (pure: it must not touch the graph) and then ``apply`` for each site, and checks the result.

    A ``Pass[W]`` hands what ``plan`` has found out to ``apply`` as the ``work`` of its sites, of the type W.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    min_opset: ClassVar[int] = 1
    """The engine raises the model's opset to this before ``plan`` if there is anything to do."""
    max_opset: ClassVar[int | None] = None
    """The newest opset whose operators the pass writes: a newer model is lowered to it where that is exact."""
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

    grows: ClassVar[str] = ""
    """Why the file may become larger, in words for the report; a pass that says nothing is rolled back if it does."""
    lossless: ClassVar[bool] = False
    """Whether answers stay the same but for rounding: under 60 dB SQNR what makes them differ is taken back."""

    @property
    def restores(self) -> bool:
        """Whether it leaves a float graph of a quantized one, for passes behind it that need one."""
        return False

    @property
    def reads(self) -> str:
        """Name of an array of the calibration data that is no input, which ``Bench.label`` then has; "" for none."""
        return ""

    def needs(self, view: View) -> Iterable[Need]:
        """Yield the statistics that ``plan`` reads; they are absent when there are no feeds."""
        return ()

    @abstractmethod
    def plan(self, view: View, stats: Statistics) -> Iterator[Site[W] | Skip]:
        """Yield what would be done at each candidate place, and why nothing is done at the others."""

    def level_needs(self, view: View) -> Iterable[Need]:
        """Yield the statistics that ``levels`` reads: those of ``plan`` unless the pass says otherwise."""
        return self.needs(view)

    def levels(self, view: View, stats: Statistics) -> Iterator[Level]:
        """Yield, for a study of sensitivity, each layer at each level alone; a pass without levels yields none."""
        return iter(())

    def select(self, plan: list[Site[W] | Skip], bench: Bench) -> list[Site[W] | Skip]:
        """Return the plan without the sites that do not pay, each replaced by a Skip that says why.

        Called between ``plan`` and the first ``apply`` when there are feeds and results are checked.
        """
        return plan

    def milder(self) -> Pass | None:
        """Return the pass in its mildest useful form, tried where the answers collapse; None if there is none."""
        return None

    def floor(self) -> float | None:
        """Return the SQNR in dB of its own on unseen feeds under which the pass is tried in its mildest form.

        None, if only a collapse counts. A pass that bounds its error on calibration feeds says how much less than that
        bound it may turn out to keep.
        """
        return None

    def tune(self, graph: Graph, done: Sequence[Site[W]], bench: Bench) -> Iterable[str]:
        """Improve the rewritten graph in place by measuring it, and yield what was gained, in words for the report.

        ``done`` are the sites that were applied, each with its ``work``. Called after the last ``apply`` when there
        are feeds and results are checked.
        """
        return ()

    def notes(self, before: Graph, after: Graph, done: Iterable[Site]) -> Iterable[str]:
        """Yield what the report says about the result besides its figures; called at last, with or without feeds.

        The sites that were done have no ``work`` any more.
        """
        return ()

    @abstractmethod
    def apply(self, site: Site[W], graph: Graph) -> None:
        """Rewrite one site in place."""
