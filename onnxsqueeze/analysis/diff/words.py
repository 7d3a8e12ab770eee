"""A difference in words, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsqueeze.words import db

if TYPE_CHECKING:
    from onnxsqueeze.analysis.diff.changes import Change, WeightChange
    from onnxsqueeze.analysis.diff.trace import Trace

__all__ = ["FEW", "born", "short", "summary", "title", "words"]

FEW = 6
"""Items of one kind before the rest is only counted."""


def title(change: Change) -> str:
    """Return the operators before and after: ``Conv + BatchNormalization → Conv``."""
    before, after = (summary([node.op for node in side], FEW) for side in (change.before, change.after))
    if change.kind == "changed":
        return before
    return f"{before} → {after}" if before and after else before or after


def words(change: Change) -> list[str]:
    """Return the details of a change in words, one line for each attribute, input and weight; of a replaced
    one only the weights with two axes and more."""
    found = [f"{each.name}: {short(each.before)} → {short(each.after)}" for each in change.attributes]
    found += [f"reads {after} instead of {before}" for before, after in change.inputs]
    if change.kind == "changed":
        return found + [_weight(each, told=True) for each in change.weights]
    matrices = [each for each in change.weights if len(each.shape[0] or each.shape[1] or ()) > 1]
    old = [_weight(each) for each in matrices if each.name[0] is not None]
    new = [_weight(each) for each in matrices if each.name[1] is not None]
    return found + ([f"{', '.join(old) or '·'} → {', '.join(new) or '·'}"] if old or new else [])


def born(numbers: Trace) -> str:
    """Return in one sentence where the error is born."""
    fall = numbers.born
    if fall is None:
        lowest = min((each.sqnr_db for each in numbers.along), default=math.inf)
        worst = "all are exact" if lowest == math.inf else f"the lowest is {db(lowest)} dB"
        return f"Of {len(numbers.along)} common tensors none is under {numbers.threshold:g} dB: {worst}."
    source = "exact" if fall.inputs_db == math.inf else f"at {db(fall.inputs_db)} dB"
    return (
        f"The error is born at {fall.op} '{fall.tensor}': what it reads is {source}, what it makes at "
        f"{db(fall.sqnr_db)} dB."
    )


def summary(ops: Sequence[str], most: int) -> str:
    """Join operators in order; the same ones in a row are counted, and more than ``most`` only told to be there."""
    runs: list[tuple[str, int]] = []
    for op in ops:
        if runs and runs[-1][0] == op:
            runs[-1] = op, runs[-1][1] + 1
        else:
            runs.append((op, 1))
    parts = [op if count == 1 else f"{count} {op}" for op, count in runs]
    return " + ".join(parts if len(parts) <= most else [*parts[: most - 1], f"{len(ops)} nodes in all"])


def short(text: str | None) -> str:
    """Return at most 60 characters, and a dot for what is not there."""
    if text is None:
        return "·"
    return text if len(text) <= 60 else text[:59] + "…"


def _weight(change: WeightChange, told: bool = False) -> str:
    """Return a weight in words: name, type and shape, and how far it moved; ``told`` says if it came or went."""
    sides = [
        None if name is None else f"{dtype}[{', '.join(map(str, shape or ()))}]"
        for name, dtype, shape in zip(change.name, change.dtype, change.shape, strict=True)
    ]
    name = change.name[0] or change.name[1] or "its constant"
    if sides[0] is None or sides[1] is None:
        gone = "no longer has" if sides[1] is None else "now has"
        return f"{gone} {name} {sides[0] or sides[1]}" if told else f"{name} {sides[0] or sides[1]}"
    parts = [f"{sides[0]} → {sides[1]}" if sides[0] != sides[1] else sides[0]]
    old, new = change.values
    if old is not None and new is not None:
        parts.append(f"{short(old)} → {short(new)}")
    elif change.relative is not None:
        parts.append(f"moved by {100 * change.relative:.3g} %")
    if None not in change.sparsity and change.sparsity[0] != change.sparsity[1]:
        parts.append(f"zeros {100 * (change.sparsity[0] or 0):.3g} % → {100 * (change.sparsity[1] or 0):.3g} %")
    return f"{name} {', '.join(parts)}"
