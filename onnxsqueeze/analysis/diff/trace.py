"""Where the error is born: both models run on the same feeds, and every tensor that both have is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import MASK
from onnxsqueeze.errors import FeedError
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.measure.answers import Answers, Deviation, Ruler
from onnxsqueeze.runtime.session import Session

if TYPE_CHECKING:
    from onnxsqueeze.analysis.diff.matching import Match

__all__ = ["Fall", "Trace", "trace"]

FEEDS = 8
FALL = 20.0
"""A node bears an error when the SQNR of its output lies this many dB under that of its worst input."""
EXACT = 100.0
"""In dB; a higher SQNR is the rounding of float32 arithmetic and counts as this."""
BUDGET = 1 << 28
"""Bytes of tensors of one model that are held at a time."""


@dataclass(frozen=True)
class Fall:
    """A tensor with its SQNR in dB, and the lowest SQNR of what its node reads.

    ``noise`` is what the node adds to the relative error, ``10^(−out/10) − 10^(−in/10)``.
    """

    tensor: str
    other: str
    op: str
    sqnr_db: float
    inputs_db: float
    noise: float


@dataclass(frozen=True)
class Trace:
    """The numbers of a diff: outputs, every common float tensor in the order of the graph, and where the error is born.

    ``born`` is the first tensor under ``threshold`` dB that lies at least 20 dB under what its node reads, or if there
    is none the first under ``threshold``; None if there is no such tensor either.
    """

    feeds: str
    threshold: float
    outputs: tuple[Deviation, ...]
    along: tuple[Fall, ...]
    born: Fall | None

    @property
    def worst(self) -> tuple[Fall, ...]:
        """The tensors whose nodes add most to the error, the most first."""
        return tuple(sorted((f for f in self.along if f.noise > 0), key=lambda fall: -fall.noise))


def trace(
    match: Match, calibration: Any, *, mean: Any, std: Any, scale: float | None, seed: int, threshold: float
) -> Trace:
    """Run both graphs of ``match`` on up to eight feeds and compare the tensors on their common wires.

    Raises FeedError when the feeds do not fit the first model, or the second does not take the same inputs.
    """
    a, b = match.a.graph, match.b.graph
    data = read_feeds(
        calibration, inputs_of(encode(a, skeleton=True)), mean=mean, std=std, scale=scale, seed=seed,
        model_path=None if a.file is None else a.file.path,
    )  # fmt: skip
    inputs = _renamed_inputs(match)
    pairs = _pairs(match)
    sessions = [
        Session(_exposing(graph, names), graph.folder)
        for graph, names in ((a, [one for one, _ in pairs]), (b, [two for _, two in pairs]))
    ]
    names = [(t.name, o.name) for t, o in _outputs(match)]
    expected: Answers = []
    found: Answers = []
    sums = {pair: _Sums() for pair in pairs}
    count = min(FEEDS, len(data))
    groups = [pairs]
    for i in range(count):
        feed = data[i]
        other = {inputs[name]: value for name, value in feed.items()}
        expected.append(sessions[0].run(feed, [one for one, _ in names]))
        answers = sessions[1].run(other, [two for _, two in names])
        found.append({one: answers[two] for one, two in names})
        sizes: dict[tuple[str, str], int] = {}
        for group in groups:
            left = sessions[0].run(feed, list(dict.fromkeys(one for one, _ in group)))
            right = sessions[1].run(other, list(dict.fromkeys(two for _, two in group)))
            for one, two in group:
                sums[one, two].add(left[one], right[two])
                sizes[one, two] = getattr(left[one], "nbytes", 0)
        if i == 0:
            groups = _split(pairs, sizes)
    sqnr = {one: total.sqnr_db for (one, _), total in sums.items() if total.compared}
    along = _along(match, sqnr, dict(pairs))
    words = f"{count} of {len(data)} feeds of {data.source}" if count < len(data) else data.source
    outputs = Ruler.of(a).compare(expected, found)
    return Trace(words, threshold, outputs, along, _born(along, threshold))


class _Sums:
    """The SQNR of one tensor over all feeds."""

    def __init__(self) -> None:
        self.signal = self.error = 0.0
        self.compared = False

    def add(self, expected: object, found: object) -> None:
        if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray) or expected.shape != found.shape:
            return
        if expected.dtype.kind != "f" or found.dtype.kind != "f" or not expected.size:
            return
        a, b = expected.astype(np.float64), found.astype(np.float64)
        usual = np.isfinite(a) & (np.abs(a) < MASK)
        difference: NDArray[np.float64] = (a - b)[usual]
        self.compared = True
        self.signal += float((a[usual] ** 2).sum())
        self.error += float(difference @ difference) if np.isfinite(difference).all() else math.inf

    @property
    def sqnr_db(self) -> float:
        if self.error == 0:
            return math.inf
        if self.signal == 0 or not math.isfinite(self.error):
            return -math.inf
        return 10 * math.log10(self.signal / self.error)


def _pairs(match: Match) -> list[tuple[str, str]]:
    """Return the names of the tensors to compare: those that nodes of both main graphs make, one pair per wire."""
    found = []
    for one, two in match.wires.members:
        left = next((t for t in one if id(t) in match.a.maker), None)
        right = next((t for t in two if id(t) in match.b.maker), None)
        if left is not None and right is not None:
            found.append((str(left.name), str(right.name)))
    return list(dict.fromkeys(found))


def _outputs(match: Match) -> list[tuple[gs.Tensor, gs.Tensor]]:
    wires = {match.wires.b(tensor): tensor for tensor in match.b.graph.outputs}
    return [(t, wires[match.wires.a(t)]) for t in match.a.graph.outputs if match.wires.a(t) in wires]


def _renamed_inputs(match: Match) -> dict[str, str]:
    wires = {match.wires.b(tensor): str(tensor.name) for tensor in match.b.graph.inputs}
    found = {str(t.name): wires.get(match.wires.a(t)) for t in match.a.graph.inputs}
    missing = [name for name, other in found.items() if other is None] or [
        name for name in wires.values() if name not in found.values()
    ]
    if missing:
        raise FeedError(f"the models cannot run on the same feeds: only one of them has the input '{missing[0]}'")
    return {name: str(other) for name, other in found.items()}


def _exposing(graph: gs.Graph, tensors: Sequence[str]) -> Any:
    """Return the model with the tensors as further outputs."""
    model = encode(graph)
    present = {output.name for output in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in present:
            model.graph.output.add(name=name)
    return model


def _split(pairs: list[tuple[str, str]], sizes: dict[tuple[str, str], int]) -> list[list[tuple[str, str]]]:
    """Split into runs that hold at most ``BUDGET`` bytes each."""
    groups: list[list[tuple[str, str]]] = [[]]
    total = 0
    for pair in pairs:
        total += sizes.get(pair, 0)
        if groups[-1] and total > BUDGET:
            groups.append([])
            total = sizes.get(pair, 0)
        groups[-1].append(pair)
    return groups


def _along(match: Match, sqnr: dict[str, float], others: dict[str, str]) -> tuple[Fall, ...]:
    """Compare every measured tensor with what its node reads; what was not measured is as good as what made it."""
    quality: dict[int, float] = {}
    falls = []
    for node in match.a.nodes:
        read = min((quality.get(id(t), math.inf) for t in node.inputs if t.name), default=math.inf)
        for tensor in node.outputs:
            name = str(tensor.name)
            value = quality[id(tensor)] = sqnr.get(name, read)
            if name in sqnr:
                noise = max(0.0, _relative(value) - _relative(read))
                falls.append(Fall(name, others[name], node.op, value, read, noise))
    return tuple(falls)


def _relative(db: float) -> float:
    return 0.0 if db >= EXACT else 10 ** (-db / 10) if db > -300 else math.inf


def _born(along: Sequence[Fall], threshold: float) -> Fall | None:
    under = [fall for fall in along if fall.sqnr_db < threshold]
    steep = (fall for fall in under if fall.sqnr_db <= min(fall.inputs_db, EXACT) - FALL)
    return next(steep, under[0] if under else None)
