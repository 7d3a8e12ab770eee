"""What leaves a graph together, where it is read, and what else must then be said anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anchor", "Consequence", "Group", "Indices", "Kind", "Role", "Slot"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Consequence:
    """What a node says about an axis of ``tensor``, and must say anew when indices of it are gone.

    ``number``: element ``index`` of an attribute, or of the constant at the end of the input slots ``where``, becomes
    the count of indices under ``values[0]`` that are left. ``indices``: the constant of a Gather picks ``values`` of
    the axis. ``group``: the attribute is the length of the axis over ``values[0]``. ``sizes``: a Split cuts the axis
    into parts of the sizes ``values``.
    """

    kind: Literal["number", "indices", "group", "sizes"]
    node: str
    tensor: str
    axis: int
    where: tuple[int, ...] | str
    index: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Anchor:
    """Where a constant is read: the key and operator of a node, and the input slot."""

    key: str
    op: str
    slot: int


Kind = Literal["channels", "neurons", "heads", "residual"]


Role = Literal["producer", "consumer", "carrier"]


@dataclass(frozen=True, eq=False)
class Slot:
    """An axis of a constant that follows a group.

    ``indices`` is (units, k): which k indices of the axis each unit owns. The rows of a producer make the channels, the
    columns of a consumer read them; a carrier (bias, BatchNormalization, depthwise weight) acts on each by itself.
    ``nodes`` are the keys of the nodes that read the constant.
    """

    constant: str
    axis: int
    indices: NDArray[np.int64]
    role: Role
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Units, such as channels or heads, each of which takes its part of all ``slots`` and ``tensors`` along.

    ``name`` is the key of the first producer, with the channels in brackets where it has several groups. ``tensors``
    are the activations that the channels run through: axis and (units, k) indices. ``residual`` channels are made by
    several layers joined by an Add, ``heads`` run through products of activations, ``neurons`` are those of Gemm and
    MatMul. ``blocked`` says why nothing may be removed.
    """

    name: str
    kind: Kind
    size: int
    slots: tuple[Slot, ...]
    tensors: Mapping[str, tuple[int, NDArray[np.int64]]]
    blocked: str = ""

    @property
    def producers(self) -> tuple[str, ...]:
        """The keys of the nodes that make the channels."""
        return tuple(dict.fromkeys(node for slot in self.slots if slot.role == "producer" for node in slot.nodes))
