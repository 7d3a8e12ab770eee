"""Operators that ONNX's reference evaluator has no float64 for, or gets wrong: plain loops, by their definitions."""

from __future__ import annotations

from itertools import product
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

__all__ = ["OPERATORS"]

Array = NDArray[Any]


class Erf(OpRun):
    """The reference rounds to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(erf, otypes=[np.float64])(x),)


class Gelu(OpRun):
    """The reference computes in float32."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            return (x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,)
        return (x * (1 + np.vectorize(erf, otypes=[np.float64])(x / np.sqrt(2))) / 2,)


class ConvTranspose(OpRun):
    """The reference is wrong for groups."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attrs: Any) -> tuple[Array]:
        rank, group = x.ndim - 2, int(attrs.get("group") or 1)
        strides, dilations = (list(attrs.get(key) or [1] * rank) for key in ("strides", "dilations"))
        left, pads = list(attrs.get("output_padding") or [0] * rank), list(attrs.get("pads") or [0] * 2 * rank)
        taps, sizes = w.shape[2:], x.shape[2:]
        reach = [(sizes[i] - 1) * strides[i] + (taps[i] - 1) * dilations[i] + 1 + left[i] for i in range(rank)]
        per, inside = w.shape[1], x.shape[1] // group
        y = np.zeros((x.shape[0], per * group, *reach))
        for g in range(group):
            mine, its = x[:, g * inside : (g + 1) * inside], w[g * inside : (g + 1) * inside]
            for tap in product(*map(range, taps)):
                weight: Any = (slice(None), slice(None), *tap)
                first = [tap[i] * dilations[i] for i in range(rank)]
                last = [first[i] + strides[i] * (sizes[i] - 1) + 1 for i in range(rank)]
                at: Any = tuple(slice(first[i], last[i], strides[i]) for i in range(rank))
                where: Any = (slice(None), slice(g * per, (g + 1) * per), *at)
                y[where] += np.einsum("nc...,co->no...", mine, its[weight])
        cut: Any = (slice(None), slice(None), *(slice(pads[i], reach[i] - pads[i + rank]) for i in range(rank)))
        return (y[cut] if b is None else y[cut] + b.reshape(1, -1, *[1] * rank),)


class MaxPool(OpRun):
    """The reference has no places where windows are padded."""

    def _run(self, x: Array, **attrs: Any) -> tuple[Array, ...]:
        kernel, rank = attrs["kernel_shape"], x.ndim - 2
        strides, pads = attrs.get("strides") or [1] * rank, attrs.get("pads") or [0] * 2 * rank
        size = x.shape[2:]
        out = [(n + pads[i] + pads[i + rank] - kernel[i]) // strides[i] + 1 for i, n in enumerate(size)]
        y, where = np.empty((*x.shape[:2], *out)), np.empty((*x.shape[:2], *out), np.int64)
        for index in np.ndindex(*y.shape):
            low = [i * s - p for i, s, p in zip(index[2:], strides, pads[:rank], strict=True)]
            places = [
                place for place in product(*(range(b, b + k) for b, k in zip(low, kernel, strict=True)))
                if all(0 <= at < n for at, n in zip(place, size, strict=True))
            ]  # fmt: skip
            at: list[Any] = [(*index[:2], *place) for place in places]
            values = [x[each] for each in at]
            best = at[int(np.argmax(values))]
            y[index] = max(values)
            where[index] = np.ravel_multi_index(best, x.shape)
        return (y, where)[: len(self.onnx_node.output)]


class GroupNormalization(OpRun):
    """The reference computes in float32."""

    def _run(self, x: Array, scale: Array, bias: Array, **attrs: Any) -> tuple[Array]:
        flat = x.reshape(len(x), attrs["num_groups"], -1)
        hat = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + attrs["epsilon"])
        wide = (1, -1, *[1] * (x.ndim - 2))
        return (hat.reshape(x.shape) * scale.reshape(wide) + bias.reshape(wide),)


OPERATORS = [Erf, Gelu, ConvTranspose, MaxPool, GroupNormalization]
