"""What an error of the answers is: one definition, for every decision, the guard, the report, diff and sensitivity.

Errors are relative to how the answers vary (``variation``), at the tensors that are smooth (``taps``); what an output
is decides what else is told of it (``output_kinds``, ``agreement``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure import agreement
from onnxsqueeze.measure.agreement import Array, agreeing, interval, kind_of, leaves, numbers, unlike
from onnxsqueeze.measure.output_kinds import Kind, Name, kinds
from onnxsqueeze.measure.variation import Layout, Reference
from onnxsqueeze.runtime.session import Session

__all__ = ["Answers", "Deviation", "Ruler", "answer", "compare", "decibels", "worst"]


@dataclass(frozen=True)
class Deviation:
    """How far one output is from the original's, on feeds that no pass has seen.

    ``sqnr_db`` is the error relative to how the answers vary, in dB (``onnxsqueeze.measure.variation``), infinite where
    nothing differs; ``top1`` is the share of equal argmaxes in [0, 1], None where the output does not look like
    scores. ``kind`` says what the output is and ``reason`` why, ``agreement`` is the share of equal labels or matched
    rows, ``kl`` the mean divergence in nats, ``rows`` how many rows or labels that counts. ``worst_feed`` is the
    number of the feed with the largest error and ``worst_channel`` says where; ``interval_db`` is where ``sqnr_db``
    lies with 95 %, told where the feeds are few.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float | None
    note: str = ""
    kind: str = "values"
    reason: str = ""
    agreement: float | None = None
    kl: float | None = None
    rows: int = 0
    worst_feed: int | None = None
    worst_channel: str = ""
    interval_db: tuple[float, float] | None = None


Floats = NDArray[np.float64]
Answers = list[dict[str, object]]
Progress = Callable[[str, int, int], None]

KEPT = 1 << 28
"""Bytes of answers that are kept at most: the feeds after that are not compared."""
KNOWN = 4
"""Sets of expected answers whose variation is remembered."""


def answer(
    model: Session | Graph | onnx.ModelProto | bytes | Path,
    folder: Path | None,
    feeds: Sequence[Mapping[str, Array]],
    progress: Progress | None = None,
) -> Answers:
    """Return the model's outputs on the feeds, one dict per feed; it stops early when they exceed 256 MB."""
    session = model if isinstance(model, Session) else Session(model, folder)
    answers: Answers = []
    size = 0
    for index, feed in enumerate(feeds):
        if progress is not None:
            progress("comparing", index, len(feeds))
        answers.append(session.run(feed))
        size += sum(leaf.nbytes for value in answers[-1].values() for leaf in leaves("", value).values())
        if size > KEPT:
            break
    return answers


def compare(expected: Answers, found: Answers) -> tuple[Deviation, ...]:
    """Return how far each output is from what was expected, over all feeds, with nothing known of the graph."""
    return Ruler().compare(expected, found)


def worst(deviations: Sequence[Deviation]) -> float:
    """Return the lowest SQNR of all outputs in dB, infinity if there are none; NaN counts as −∞."""
    return min((-math.inf if math.isnan(d.sqnr_db) else d.sqnr_db for d in deviations), default=math.inf)


@dataclass(frozen=True)
class Ruler:
    """The kinds of a model's outputs, and what follows from them for its errors.

    Answers may hold the tensors that ``taps`` names besides the outputs; where they do not, an output's own error
    counts in their place.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    """Tensors that are outputs for another reason than to be measured."""
    _known: list[tuple[Answers, _Expected]] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, graph: Graph, given: Mapping[str, Name] | None = None) -> Ruler:
        """Return the ruler for the outputs of a graph; ``given`` are kinds that the user knows better."""
        return cls(kinds(View(graph), given))

    def __reduce__(self) -> tuple[Any, ...]:
        return Ruler, (self.kinds, self.silent)  # what it remembers stays here

    @property
    def taps(self) -> tuple[str, ...]:
        """The tensors, besides the outputs, at which errors are measured."""
        return tuple(
            dict.fromkeys(name for kind in self.kinds.values() for name in kind.taps if name not in self.kinds)
        )

    def error(self, expected: Answers, found: Answers) -> float:
        """Return the relative squared error of the worst part of the worst output, infinity where there is NaN."""
        known = self._expected(expected)
        return max((known.error(name, found)[0] for name in known.outputs), default=0.0)

    def compare(self, expected: Answers, found: Answers) -> tuple[Deviation, ...]:
        """Return how far each output is from what was expected: SQNR in dB, and what else its kind says."""
        known = self._expected(expected)
        return tuple(known.deviation(name, found) for name in known.outputs)

    def _expected(self, expected: Answers) -> _Expected:
        for answers, known in self._known:
            if answers is expected and len(answers) == known.count:
                return known
        made = _Expected(expected, self.kinds, self.silent)
        del self._known[: max(len(self._known) - KNOWN + 1, 0)]
        self._known.append((expected, made))
        return made


class _Expected:
    """Expected answers, cut into plain tensors, with the variation of each."""

    def __init__(self, answers: Answers, kinds: Mapping[str, Kind], silent: frozenset[str]) -> None:
        self.count = len(answers)
        self.kinds = kinds
        self.layouts = {n: each for kind in kinds.values() for n, each in zip(kind.taps, kind.layouts, strict=False)}
        taps = ({name for kind in kinds.values() for name in kind.taps} - set(kinds)) | silent
        names = list(dict.fromkeys(name for each in answers for name in each))
        self.outputs = [name for name in names if name not in taps]
        self.given = {name: [leaves(name, each.get(name)) for each in answers] for name in names}
        self._references: dict[str, dict[str, Reference]] = {}

    def kind(self, name: str) -> Kind:
        """Return the kind of an output: what the graph says, or else the data."""
        return self.kinds.get(name) or kind_of([leaf for each in self.given[name] for leaf in each.values()])

    def references(self, name: str) -> dict[str, Reference]:
        """Return the variation of each plain tensor of an output or tap."""
        if name not in self._references:
            columns = dict.fromkeys(key for each in self.given[name] for key in each)
            layout = self.kind(name).layout if name in self.outputs else self.layouts.get(name, Layout())
            self._references[name] = {
                key: Reference([numbers(each.get(key)) for each in self.given[name]], layout) for key in columns
            }
        return self._references[name]

    def sources(self, name: str) -> list[str]:
        """Return where the errors of an output are measured: at itself, at its taps or at both."""
        kind = self.kind(name)
        taps = [tap for tap in kind.taps if tap in self.given]
        return [*taps, name] if kind.direct else taps or [name]

    def error(self, name: str, found: Answers) -> tuple[float, _Where]:
        """Return the relative squared error of an output and where it is largest."""
        worst, where = 0.0, _Where(np.zeros(self.count), "", None, "")
        for source in self.sources(name):
            error, at = self._own(source, name, found)
            if error > worst or (math.isinf(error) and not where.note):
                worst, where = error, at
            elif at.note and not where.note:
                where = _Where(where.errors, where.part, where.reference, at.note)
        return worst, where

    def _own(self, source: str, name: str, found: Answers) -> tuple[float, _Where]:
        kind = self.kind(name)
        if source == name and kind.name in ("labels", "rows"):
            return self._discrete(name, kind.name, found)
        lengths = source == name and bool(kind.taps)
        worst, where = 0.0, _Where(np.zeros(self.count), source, None, "")
        for key, reference in self.references(source).items():
            rows = np.zeros((len(found), int(reference.parts.max(initial=0)) + 1))
            note, skipped = "", 0
            for feed, each in enumerate(found[: self.count]):
                value = reference.values[feed]
                other = numbers(leaves(source, each.get(source)).get(key))
                if value is None and other is None:
                    continue
                if value is None or other is None or value.shape != other.shape:
                    if lengths and value is not None and other is not None and value.ndim == other.ndim:
                        skipped += 1
                        continue
                    rows[feed], note = np.inf, unlike(value, other)
                    continue
                if value.size:
                    rows[feed] = reference.errors(feed, other)
            if np.isinf(rows).any() and not note:
                note = "NaN or infinity"
            if skipped:
                note = note or f"another length in {skipped} of {len(found)} feeds"
            if reference.masked:
                note = note or "compared where finite"
            with np.errstate(over="ignore"):
                totals = np.sqrt(np.mean(rows**2, axis=0)) if len(rows) else np.zeros(rows.shape[1])
            part = int(totals.argmax())
            if totals[part] > worst or where.reference is None:
                worst, where = float(totals[part]), _Where(rows[:, part], key, reference, note or where.note, part)
            elif note:
                where = _Where(where.errors, where.part, where.reference, where.note or note, where.number)
        return worst, where

    def _discrete(self, name: str, kind: str, found: Answers) -> tuple[float, _Where]:
        """Return the share of labels or rows that differ, as an error: 1 % is 20 dB."""
        errors = np.zeros(min(self.count, len(found)))
        for feed, each in enumerate(found[: self.count]):
            same, count = agreeing(self.given[name][feed], leaves(name, each.get(name)), kind)
            errors[feed] = 1 - same / count if count else 0.0
        total = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
        return total, _Where(errors, name, None, "")

    def deviation(self, name: str, found: Answers) -> Deviation:
        """Return all that is told of an output."""
        error, where = self.error(name, found)
        kind = self.kind(name)
        told = agreement.told(kind, self.given[name], [leaves(name, each.get(name)) for each in found[: self.count]])
        low, high = interval(where.errors)
        worst_feed = int(where.errors.argmax()) if len(where.errors) > 1 and 0 < error < math.inf else None
        return Deviation(
            output=name,
            sqnr_db=decibels(error),
            cosine=0.0 if math.isinf(error) and math.isinf(told.max_abs) else 1.0 if error == 0 else told.cosine,
            max_abs=told.max_abs,
            top1=told.top1,
            note=where.note or told.note,
            kind=kind.name,
            reason=kind.reason,
            agreement=told.agreement,
            kl=told.kl,
            rows=told.rows,
            worst_feed=worst_feed,
            worst_channel=self._channel(where, found),
            interval_db=None if low is None or high is None else (decibels(high), decibels(low)),
        )

    def _channel(self, where: _Where, found: Answers) -> str:
        """Return the part, and in it the channel, that bears most of the error; "" where there is only one."""
        reference = where.reference
        if reference is None or not len(where.errors) or not 0 < float(where.errors.max()) < math.inf:
            return ""
        names = reference.layout.names
        part = f"part '{names[where.number]}'" if where.number < len(names) else ""
        if reference.channels < 2 or reference.axis is None:
            return part
        feed = int(where.errors.argmax())
        source = where.part.partition("[")[0]
        value = found[feed].get(source, found[feed].get(where.part))
        other = numbers(leaves(source, value).get(where.part))
        if other is None:
            return part
        squares = np.where(reference.parts == where.number, reference.squares(feed, other), -1.0)
        told = f"channel {int(squares.argmax())} of {reference.channels}"
        return f"{part}, {told}" if part else told


@dataclass(frozen=True)
class _Where:
    """Where an error is largest: its errors by feed, the tensor, its variation, a note and the number of the part."""

    errors: Floats
    part: str
    reference: Reference | None
    note: str
    number: int = 0


def decibels(error: float) -> float:
    """Return a relative squared error as SQNR in dB, ±infinity at its ends."""
    if error <= 0:
        return math.inf
    return -10 * math.log10(error) if math.isfinite(error) else -math.inf
