"""What each layer's rewrite does to the model's outputs, measured one by one in a single session with switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze import codec, edit
from onnxsqueeze.codec import Graph
from onnxsqueeze.runtime import Session, first_samples
from onnxsqueeze.validate import compare

__all__ = ["impacts"]

Array = NDArray[np.generic]


def impacts(
    original: Graph,
    feeds: Sequence[Mapping[str, Array]],
    rewrites: Mapping[str, Sequence[Callable[[Graph, str], None]]],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[float]]:
    """Return, per layer, the relative squared error ‖Δy‖²/‖y‖² of the worst output for each of its rewrites alone.

    ``rewrites`` maps the name of a layer's output to functions that rewrite the node making a given tensor. Each
    works on a copy of the layer, whose result takes the place of the layer's own where a switch says so that is an
    input of the model. So one session serves all layers. Layers inside bodies are left out.
    """
    graph = edit.duplicate(original)
    names = {t.name for t in original.outputs}
    switches: dict[tuple[str, int], str] = {}
    for key, functions in rewrites.items():
        node, scope = edit.find(graph, key)
        if scope is not graph:
            continue
        for i, function in enumerate(functions):
            switches[key, i] = _switch(graph, node, function, f"{key}_switch_{i}", key in names)
    edit.tidy(graph)
    session = Session(codec.encode(graph), graph.folder)
    wanted = [t.name for t in original.outputs]
    off = {name: np.array(False) for name in switches.values()}
    small = [first_samples(session, feed, 2, off) for feed in feeds]
    expected = [session.run({**feed, **off}, wanted) for feed in small]
    found: dict[str, list[float]] = {key: [] for key in rewrites}
    for step, ((key, _), switch) in enumerate(switches.items()):
        if progress:
            progress("measuring layers", step, len(switches))
        on = {**off, switch: np.array(True)}
        answers = [session.run({**feed, **on}, wanted) for feed in small]
        worst = min((d.sqnr_db for d in compare(expected, answers)), default=float("inf"))
        found[key].append(10 ** (-worst / 10) if worst > -300 else float("inf"))
    return {key: values for key, values in found.items() if values}


def _switch(graph: Graph, node: gs.Node, rewrite: Callable[[Graph, str], None], hint: str, is_output: bool) -> str:
    """Copy the node, rewrite the copy, and take its result where the switch says so; return the switch's name."""
    y = node.outputs[0]
    copy = edit.variable(graph, f"{hint}_copy")
    edit.insert(graph, graph, node.op, list(node.inputs), [copy], dict(node.attrs), after=node)
    switch = gs.Variable(edit.mint(graph, hint), np.bool_, ())
    graph.inputs.append(switch)
    readers = [r for r in y.outputs if r.outputs[0] is not copy]
    chosen: list[gs.Tensor] | str = f"{hint}_chosen"
    if is_output:
        raw = edit.variable(graph, f"{hint}_raw")
        node.outputs[0] = raw
        edit.redirect(y, raw)
        chosen, y, readers = [y], raw, []
    result = edit.insert(graph, graph, "Where", [switch, copy, y], chosen)
    edit.redirect(y, result, only=readers)
    rewrite(graph, copy.name)
    return str(switch.name)
