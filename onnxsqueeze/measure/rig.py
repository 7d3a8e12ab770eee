"""What a run works on: the model with its taps as further outputs and its random draws as further inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.graph.edit import tidy
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.answers import Ruler
from onnxsqueeze.measure.output_kinds import Kind, Name
from onnxsqueeze.measure.random_nodes import Draws, Recorded, find
from onnxsqueeze.measure.taps import expose, withdraw

__all__ = ["Rig", "mount"]

Feeds = Sequence[dict[str, NDArray[np.generic]]]


@dataclass(frozen=True)
class Rig:
    """A graph that passes work on, how to measure it, and the way back.

    ``graph`` is the model itself where it has neither taps nor draws.
    """

    model: Graph
    graph: Graph
    ruler: Ruler
    draws: Draws
    added: tuple[str, ...] = ()

    def feeds(self, feeds: Feeds, seed: int) -> Feeds:
        """Return the feeds with the recorded draws."""
        return Recorded(feeds, self.draws, seed) if self.draws.nodes and len(feeds) else feeds

    def dismounted(self, graph: Graph) -> Graph:
        """Return a graph that passes have made of ``graph`` as the user gets it, with the model's own interface."""
        if graph is self.graph:
            return self.model
        if self.draws.nodes:
            graph = self.draws.put_back(graph)
        if self.added or self.draws.nodes:
            graph = withdraw(graph, self.added)
        return graph


def mount(model: Graph, outputs: Mapping[str, Name] | None, measured: bool) -> Rig:
    """Return the rig for a model; if nothing is ``measured``, the model as it is.

    Raises UsageError if ``outputs`` names one that the model does not have.
    """
    ruler = Ruler.of(model, outputs)
    if not measured:
        return Rig(model, model, ruler, Draws())
    draws = find(model)
    graph = draws.as_inputs(model) if draws.nodes else model
    if draws.nodes:  # what depended on a length that is given now does so no more
        ruler = Ruler.of(graph, outputs)
    present = {str(t.name) for t in model.outputs}
    wanted = [*ruler.taps, *draws.kept]
    added = tuple(name for name in dict.fromkeys(wanted) if name not in present)
    if draws.measured:
        kinds = {name: Kind("values", "random draws or lengths depend on it") for name in draws.measured}
        ruler = replace(ruler, kinds={**ruler.kinds, **kinds})
    if added:
        graph = expose(graph, added)
    present |= {str(t.name) for t in graph.outputs}
    added = tuple(name for name in added if name in present)
    ruler = replace(ruler, silent=frozenset(added) - set(ruler.taps) - set(draws.measured))
    if graph is not model:
        tidy(graph)
    return Rig(model, graph, ruler, draws, added)
