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
        rank = x.ndim - 2
        strides, dilations, left, group = (
            attrs.get(key) or default
            for key, default in (
                ("strides", [1] * rank), ("dilations", [1] * rank), ("output_padding", [0] * rank), ("group", 1)
            )
        )  # fmt: skip
        pads = attrs.get("pads") or [0] * 2 * rank
        reach = [
            (n - 1) * s + (k - 1) * d + 1 + o
            for n, s, k, d, o in zip(x.shape[2:], strides, w.shape[2:], dilations, left, strict=True)
        ]
        per, inside = w.shape[1], x.shape[1] // group
        y = np.zeros((x.shape[0], per * group, *reach))
        for g in range(group):
            mine, its = x[:, g * inside : (g + 1) * inside], w[g * inside : (g + 1) * inside]
            for tap in product(*map(range, w.shape[2:])):
                part = np.einsum("nc...,co->no...", mine, its[(slice(None), slice(None), *tap)])
                at = tuple(
                    slice(t * d, t * d + s * (n - 1) + 1, s)
                    for t, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
                )
                y[(slice(None), slice(g * per, (g + 1) * per), *at)] += part
        cut = tuple(slice(pads[i], size - pads[i + rank]) for i, size in enumerate(reach))
        y = y[(slice(None), slice(None), *cut)]
        return (y if b is None else y + b.reshape(1, -1, *[1] * rank),)


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
            best = max(places, key=lambda place: x[(*index[:2], *place)])
            y[index] = x[(*index[:2], *best)]
            where[index] = np.ravel_multi_index((*index[:2], *best), x.shape)
        return (y, where)[: len(self.onnx_node.output)]


class GroupNormalization(OpRun):
    """The reference computes in float32."""

    def _run(self, x: Array, scale: Array, bias: Array, **attrs: Any) -> tuple[Array]:
        flat = x.reshape(len(x), attrs["num_groups"], -1)
        hat = (flat - flat.mean(-1, keepdims=True)) / np.sqrt(flat.var(-1, keepdims=True) + attrs["epsilon"])
        wide = (1, -1, *[1] * (x.ndim - 2))
        return (hat.reshape(x.shape) * scale.reshape(wide) + bias.reshape(wide),)


OPERATORS = [Erf, Gelu, ConvTranspose, MaxPool, GroupNormalization]
