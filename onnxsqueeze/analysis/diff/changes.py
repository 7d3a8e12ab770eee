"""What a difference is made of: changes with their nodes, attributes and weights, and renames."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.weights import peek

__all__ = ["AttributeChange", "Change", "NodeRef", "Rename", "WeightChange", "reference", "weight_change"]


@dataclass(frozen=True)
class NodeRef:
    """A node: its first output's name (``key``), its own name, which may be empty, and its operator."""

    key: str
    name: str
    op: str


@dataclass(frozen=True)
class AttributeChange:
    """An attribute with its values as text, None where it is absent or at its default."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class WeightChange:
    """A constant that a changed node reads; the fields are (before, after), None on the side that has none.

    ``values`` are those of up to eight elements, as text. ``relative`` is ``‖after − before‖ / ‖before‖`` where both
    have the same shape; sparsity is the share of zeros.
    """

    name: tuple[str | None, str | None]
    dtype: tuple[str | None, str | None]
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    sparsity: tuple[float | None, float | None]
    values: tuple[str | None, str | None]
    relative: float | None


@dataclass(frozen=True)
class Change:
    """One place where the graphs differ, between tensors that both have.

    ``kind`` is ``added``, ``removed``, ``replaced`` (``before`` became ``after``) or ``changed`` (one node that is
    still the same operator in the same place). ``scope`` says where: empty for the main graph, ``if_out/then_branch``
    in a body, the name of a local function. ``inputs`` are the names (before, after) of tensors that a changed node
    reads in place of others.
    """

    kind: str
    scope: str
    before: tuple[NodeRef, ...]
    after: tuple[NodeRef, ...]
    attributes: tuple[AttributeChange, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rename:
    """A ``node``, ``tensor`` or ``initializer`` that only has another name."""

    kind: str
    scope: str
    before: str
    after: str


def reference(node: gs.Node) -> NodeRef:
    """Return what a change says of a node."""
    op = node.op if not node.domain else f"{node.domain}::{node.op}"
    return NodeRef(key_of(node), node.name or "", op)


def weight_change(a: gs.Constant | None, b: gs.Constant | None) -> WeightChange:
    """Return what a change says of a weight before and after, either of which may be missing."""
    old, new = (None if c is None else _values(c) for c in (a, b))
    relative = None
    if old is not None and new is not None and old.shape == new.shape:
        norm = float(np.linalg.norm(old))
        distance = float(np.linalg.norm(new - old))
        relative = distance / norm if norm else float("inf") if distance else 0.0
    return WeightChange(
        name=tuple(None if c is None else str(c.name) for c in (a, b)),  # type: ignore[arg-type]
        dtype=tuple(None if c is None else str(np.dtype(c.dtype)) for c in (a, b)),  # type: ignore[arg-type]
        shape=tuple(None if c is None else tuple(map(int, c.shape)) for c in (a, b)),  # type: ignore[arg-type]
        sparsity=tuple(  # type: ignore[arg-type]
            None if v is None or not v.size else float(1 - np.count_nonzero(v) / v.size) for v in (old, new)
        ),
        values=tuple(None if c is None or prod(c.shape) > 8 else str(peek(c).tolist()) for c in (a, b)),  # type: ignore[arg-type]
        relative=relative,
    )


def _values(constant: gs.Constant) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Return the values of a constant of numbers as a vector of its shape in float64."""
    if np.dtype(constant.dtype).kind in "OVSU":
        return None
    try:
        return peek(constant).astype(np.float64)
    except (TypeError, ValueError):
        return None
