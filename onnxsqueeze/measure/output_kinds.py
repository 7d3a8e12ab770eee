"""What each output of a model holds, found from the graph or told by the user, and where its errors are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal, cast, get_args

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.errors import UsageError
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard
from onnxsqueeze.measure.taps import ROWS, Ancestry
from onnxsqueeze.measure.variation import Layout

__all__ = ["Kind", "Name", "kinds", "parse"]

Name = Literal["values", "scores", "labels", "rows"]
"""values: numbers; scores: logits, probabilities or their logarithms, a class each; labels: classes, flags and text;
rows: detections and the like, in any number and order."""
_LABELLERS = """ArgMax ArgMin Multinomial Bernoulli NonZero TopK NonMaxSuppression ArrayFeatureExtractor LabelEncoder
    TreeEnsembleClassifier SVMClassifier LinearClassifier Greater GreaterOrEqual Less LessOrEqual Equal"""
LABELLERS = frozenset(_LABELLERS.split())
LOGARITHMIC = "LogSoftmax"
PLAIN = Layout()
ALONG = frozenset(["Identity", "Cast", "Sigmoid", "Relu", "Clip", "Mul", "Add", "Sub", "Div"])
"""Operators behind a Concat that leave its parts where they are."""


@dataclass(frozen=True)
class Kind:
    """What an output is, why it is taken for that, and the tensors at which its errors are measured.

    ``direct`` says that its own error counts.
    """

    name: Name = "values"
    reason: str = ""
    taps: tuple[str, ...] = ()
    direct: bool = True
    layout: Layout = PLAIN
    layouts: tuple[Layout, ...] = ()
    """Those of the taps."""
    given: bool = False


def parse(text: str | Mapping[str, str]) -> dict[str, Name]:
    """Return the kinds that a user gives, like ``boxes:rows, logits:scores``; UsageError for a word that is no kind.

    >>> parse("boxes:rows, logits:scores")
    {'boxes': 'rows', 'logits': 'scores'}
    """
    pairs = list(text.items()) if isinstance(text, Mapping) else [
        (name.strip(), kind.strip()) for each in text.split(",") for name, _, kind in [each.strip().rpartition(":")]
    ]  # fmt: skip
    known = get_args(Name)
    found: dict[str, Name] = {}
    for name, kind in pairs:
        if not name or kind not in known:
            near = get_close_matches(kind, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"outputs: '{name}:{kind}' names no kind; write OUTPUT:KIND with {', '.join(known)}{hint}")
        found[name] = cast("Name", kind)
    return found


def kinds(view: View, given: Mapping[str, Name] | None = None) -> dict[str, Kind]:
    """Return the kind of every output of the graph; UsageError if ``given`` names one that it does not have."""
    outputs = {str(t.name): t for t in view.graph.outputs}
    for name in given or {}:
        if name not in outputs:
            near = get_close_matches(name, outputs, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(outputs)}"
            raise UsageError(f"the model has no output '{name}' to give a kind to; {hint}")
    ancestry = Ancestry(view)
    found = {}
    for name, tensor in outputs.items():
        kind = _recognised(ancestry, tensor)
        wanted = (given or {}).get(name)
        kind = kind if wanted is None else _as_told(kind, wanted)
        made = {str(t.name): t for node in view.nodes for t in node.outputs} if kind.taps else {}
        found[name] = replace(kind, layouts=tuple(_smooth(ancestry, made[tap]).layout for tap in kind.taps))
    return found


def _as_told(kind: Kind, wanted: Name) -> Kind:
    layout = Layout(whole=True) if wanted == "scores" else kind.layout
    front = wanted in ("labels", "rows")
    return replace(
        kind, name=wanted, reason="as told", layout=layout, taps=kind.taps if front else (),
        direct=not (front and kind.taps), given=True,
    )  # fmt: skip


def _recognised(ancestry: Ancestry, output: gs.Tensor) -> Kind:
    view = ancestry.view
    dtype = view.dtype(output)
    region = ancestry.behind_layers(output)
    label = next((node for node in region if node.op in LABELLERS), None)
    if dtype is None:
        return _container(output)
    is_float = dtype.kind in "fc" or dtype.name == "bfloat16"
    front = ancestry.front(output, discrete=not is_float)
    taps = front.taps if front is not None else ()
    where = f", measured at {_listed(taps)}" if taps else ""
    if front is not None and not front.whole:
        return Kind("values", f"its length depends on data ({front.op}); compared where it agrees{where}", taps, True)
    if not is_float and taps and any(node.op in ROWS - {"TopK"} for node in region):
        return Kind("rows", f"{_chooser(region)} chooses them{where}", taps, False)
    if not is_float:
        if dtype.kind == "b" or dtype.kind in "OUS" or label is not None:
            cause = f"{label.op} makes it" if label is not None else f"it is {_word(dtype)}"
            return Kind("labels", f"{cause}{where}", taps, not taps)
        return Kind("values", f"whole numbers{where}" if taps else "", taps, not taps)
    if front is not None:
        if front.op in ROWS or any(node.op in ROWS for node in region):
            return Kind("rows", f"{_chooser(region)} chooses them{where}", taps, False)
        return Kind("values", f"{front.op} stands in front{where}", taps, False)
    return _smooth(ancestry, output)


def _smooth(ancestry: Ancestry, output: gs.Tensor) -> Kind:
    """Return the kind of a float output that is a smooth function of what is in front of it."""
    node = output.inputs[0] if output.inputs else None
    while node is not None and node.op in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast") and node.inputs:
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if node is not None and is_standard(node) and node.op in ("Softmax", LOGARITHMIC):
        if node.op == "Softmax":
            return Kind("scores", "Softmax makes it", layout=Layout(whole=True))
        logits = node.inputs[0]
        if ancestry.deep(logits):
            name = str(logits.name)
            return Kind(
                "scores", f"logarithms of probabilities, measured at '{name}'", (name,), False, Layout(whole=True)
            )
        return Kind("scores", "logarithms of probabilities", layout=Layout(centred=True, whole=True))
    return Kind(layout=_parts(ancestry.view, output))


def _container(output: gs.Tensor) -> Kind:
    node = output.inputs[0] if output.inputs else None
    if node is not None and node.op == "ZipMap":
        return Kind("scores", "ZipMap makes it: its values are compared, not its keys", layout=Layout(whole=True))
    return Kind("values", "a sequence or a map: its values are compared" if node is not None else "")


def _parts(view: View, output: gs.Tensor) -> Layout:
    """Return the parts that a Concat in front of the output puts side by side, else the axis of its channels."""
    node = output.inputs[0] if output.inputs else None
    perm: list[int] | None = None
    while node is not None and is_standard(node):
        shape = view.shape(node.outputs[0])
        if node.op == "Concat":
            axis = int(node.attrs.get("axis", 0)) % len(shape) if shape else None
            if axis is not None and shape is not None:
                return _joined(view, node, axis, axis if perm is None else perm.index(axis), len(shape))
            break
        if node.op in ("Conv", "ConvTranspose", "BatchNormalization") and perm is None:
            return Layout(1)
        if node.op == "Reshape" and perm is None:
            before = view.shape(node.inputs[0])
            if before is None or shape is None or len(shape) < 3 or before[1:2] != shape[1:2] or len(before) < 3:
                break
        elif node.op == "Transpose" and perm is None:
            perm = [int(i) for i in node.attrs.get("perm", ())] or None
            if perm is None:
                break
        elif node.op not in ALONG or sum(view.value(t) is None for t in node.inputs) != 1:
            break
        tensor = node.inputs[0] if node.op == "Reshape" else next(t for t in node.inputs if view.value(t) is None)
        node = tensor.inputs[0] if tensor.inputs else None
    return Layout()


def _joined(view: View, node: gs.Node, axis: int, seen: int, rank: int) -> Layout:
    members = list(_members(view, node, axis, rank))
    shape = view.shape(node.outputs[0]) or ()
    sizes = [size for _, size in members]
    others = [d for i, d in enumerate(shape) if i not in (0, axis) and isinstance(d, int)]
    if axis == 0 or not all(isinstance(size, int) for size in sizes) or len(members) < 2:
        return Layout()
    if rank > 2 and others and sum(int(s or 0) for s in sizes) > max(others):
        return Layout()  # places side by side, not channels
    return Layout(seen, tuple(int(s or 0) for s in sizes), tuple(name for name, _ in members))


def _members(view: View, node: gs.Node, axis: int, rank: int) -> Iterator[tuple[str, int | None]]:
    for tensor in node.inputs:
        inner = tensor.inputs[0] if tensor.inputs else None
        if inner is not None and inner.op == "Concat" and int(inner.attrs.get("axis", 0)) % rank == axis:
            yield from _members(view, inner, axis, rank)
            continue
        shape = view.shape(tensor)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        yield str(tensor.name), size if isinstance(size, int) else None


def _chooser(region: Sequence[gs.Node]) -> str:
    return next(str(node.op) for node in region if node.op in ROWS)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _word(dtype: np.dtype[np.generic]) -> str:
    return "true or false" if dtype.kind == "b" else "text" if dtype.kind in "OUS" else "whole numbers"
