"""``diff``: what was added, removed, replaced, changed and renamed between two models, as data."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from onnxsqueeze.analysis.diff.changes import Change, Rename
from onnxsqueeze.analysis.diff.comparison import Comparison
from onnxsqueeze.analysis.diff.interface import FieldChange, Totals, interface, totals
from onnxsqueeze.analysis.diff.trace import Trace, trace
from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.saturation import saturating, warning
from onnxsqueeze.plain import plain
from onnxsqueeze.runtime.memory import Memory
from onnxsqueeze.runtime.memory import memory as footprint

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["GraphDiff", "diff"]


@dataclass(frozen=True)
class GraphDiff:
    """The difference of two models. ``pairs`` maps the keys of all nodes of the main graph that were paired."""

    before: str
    after: str
    interface: tuple[FieldChange, ...]
    changes: tuple[Change, ...]
    renamed: tuple[Rename, ...]
    totals: Totals
    pairs: dict[str, str]
    numbers: Trace | None = None
    memory: tuple[Memory, Memory] | None = None
    """What both take at run time, if it was asked for."""
    warnings: tuple[str, ...] = ()
    """What is wrong with either model: sums that can saturate on processors without VNNI."""

    @property
    def same(self) -> bool:
        """Whether nothing differs at all; the order of nodes is no difference."""
        return not (self.interface or self.changes or self.renamed)

    @property
    def verdict(self) -> str:
        """The difference in one sentence."""
        if self.same:
            return "The models are the same."
        parts = [
            f"{count} {kind}"
            for kind in ("replaced", "changed", "added", "removed")
            if (count := sum(change.kind == kind for change in self.changes))
        ]
        if self.renamed:
            parts.append(f"{len(self.renamed)} renamed")
        if self.interface:
            parts.append(f"{len(self.interface)} in the model's interface")
        if not self.changes and not self.interface:
            return f"Only names differ: {parts[0]}."
        return f"The models differ: {', '.join(parts)}."

    def to_dict(self) -> dict[str, object]:
        """Return the difference as JSON values, without ``pairs``."""
        found = plain(self)
        assert isinstance(found, dict)
        del found["pairs"]
        return {"same": self.same, "verdict": self.verdict, **found}


def diff(
    a: AnyModel,
    b: AnyModel,
    calibration: Any = None,
    *,
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    seed: int = 0,
    threshold: float = 60.0,
    memory: bool = False,
) -> GraphDiff:
    """Return how ``b`` differs from ``a``: files, models or graphs, made by whatever tool.

    Nodes are paired by what they compute, by how their results are used, by name where names hold and by their
    neighbourhood; so a moved node is no change and a renamed one is only renamed. With ``calibration`` (whatever
    ``squeeze`` takes) both models run, and ``numbers`` says how far each common tensor and output of ``b`` is from
    that of ``a``, and where the error is born: see ``onnxsqueeze.analysis.diff.trace``. With ``memory`` both run in
    processes of their own, on the first feed or a random one, and ``memory`` says what they take. Raises ModelError or
    FeedError.
    """
    collecting = gc.isenabled()
    gc.disable()  # of the many small objects none is garbage before the end: looking for it takes a third of the time
    try:
        one, two = (model if isinstance(model, gs.Graph) else load(model) for model in (a, b))
        comparison = Comparison(one, two)
        main = comparison.run()
        sizes = [_size(model, graph) for model, graph in ((a, one), (b, two))]
        weights = totals(one, two, sizes, calibration, mean=mean, std=std, scale=scale, seed=seed)
    finally:
        if collecting:
            gc.enable()
    numbers = None
    if calibration is not None:
        numbers = trace(main, calibration, mean=mean, std=std, scale=scale, seed=seed, threshold=threshold)
    taken = None
    if memory:
        inputs = inputs_of(encode(one, skeleton=True))
        where = one.file.path if one.file else None
        given: Any = "random" if calibration is None else calibration
        feed = read(given, inputs, model_path=where, seed=seed, mean=mean, std=std, scale=scale)[0]
        before, after = (footprint(graph.file.path if graph.file else graph, feed) for graph in (one, two))
        taken = None if before is None or after is None else (before, after)
    return GraphDiff(
        before=_title(a),
        after=_title(b),
        interface=interface(one, two),
        changes=tuple(comparison.changes),
        renamed=tuple(comparison.renamed),
        totals=weights,
        pairs={main.a.keys[i]: main.b.keys[j] for i, j in main.pairs.items()},
        numbers=numbers,
        memory=taken,
        warnings=tuple(
            f"{_title(model)}: {said}" for model, graph in ((a, one), (b, two)) if (said := warning(saturating(graph)))
        ),
    )


def _size(model: object, graph: Graph) -> int | None:
    """Return the size of the files of a model that was just loaded from them."""
    if not isinstance(model, (str, os.PathLike)) or graph.file is None:
        return None
    return sum(path.stat().st_size for path in (graph.file.path, *graph.file.others))


def _title(model: object) -> str:
    if isinstance(model, gs.Graph) and getattr(model, "file", None) is not None:
        return str(model.file.path)
    return str(model) if isinstance(model, (str, os.PathLike)) else "<memory>"
