"""What is told of answers besides their error: equal labels and argmaxes, matched rows, divergence of probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsqueeze.measure.output_kinds import Kind
from onnxsqueeze.measure.variation import Layout, as_float, ordinary_only

__all__ = ["Array", "Told", "agreeing", "interval", "kind_of", "leaves", "numbers", "told", "unlike"]

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Leaves = Mapping[str, Array]

NEAR = 0.1
"""How far a row may be from the one that it is matched with: the root of its mean squared difference, in standard
deviations of the columns."""
MATCHED = 2000
"""Rows that are matched at most; of more, the first ones."""
FEW = 30
"""Feeds under which the interval of a figure is told."""
DRAWS = 400


@dataclass(frozen=True)
class Told:
    """``agreement`` is the share of equal labels or matched rows, ``rows`` how many there were, ``kl`` the mean
    divergence of probabilities in nats."""

    cosine: float = 0.0
    max_abs: float = 0.0
    top1: float | None = None
    agreement: float | None = None
    kl: float | None = None
    rows: int = 0
    note: str = ""


def leaves(name: str, value: object) -> dict[str, Array]:
    """Return the plain tensors in an output: a tensor is one, a sequence several, an empty optional none.

    A map is its values in the order of its keys, and a list of maps with the same keys one matrix.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {name: np.asarray([value[key] for key in sorted(value)])}
    if isinstance(value, list):
        if value and all(isinstance(item, Mapping) and item.keys() == value[0].keys() for item in value):
            keys = sorted(value[0])
            return {name: np.asarray([[item[key] for key in keys] for item in value])}
        return {
            f"{key}[{i}]" if key == name else key.replace(name, f"{name}[{i}]", 1): leaf
            for i, item in enumerate(value)
            for key, leaf in leaves(name, item).items()
        }
    return {name: np.asarray(value)}


def numbers(value: Array | None) -> Array | None:
    """Return what can be subtracted: text counts as nothing."""
    return None if value is None or value.dtype.kind in "OUS" else value


def unlike(value: Array | None, other: Array | None) -> str:
    """Say what tells two tensors apart that cannot be subtracted."""
    if value is None or other is None:
        return "another number of tensors"
    return f"shape {list(other.shape)} instead of {list(value.shape)}"


def kind_of(values: Sequence[Array]) -> Kind:
    """Return the kind that data alone shows."""
    filled = [value for value in values if value.size]
    if not filled:
        return Kind()
    if all(value.dtype.kind in "bOUS" for value in filled):
        return Kind("labels", "it is true or false" if filled[0].dtype.kind == "b" else "it is text")
    if any(value.dtype.kind not in "f" or value.ndim < 2 or value.shape[-1] < 2 for value in filled):
        return Kind()
    if all(float(value.min()) >= 0 and _is_distribution(as_float(value)) for value in filled):
        return Kind("scores", "its rows add up to 1", layout=Layout(whole=True))
    if all(float(value.max()) <= 1e-3 and _is_logarithmic(as_float(value)) for value in filled):
        return Kind("scores", "its rows are logarithms of probabilities", layout=Layout(centred=True, whole=True))
    return Kind()


def _is_distribution(values: Floats) -> bool:
    return bool(np.all(values >= 0)) and bool(np.allclose(values.sum(-1), 1, atol=1e-2))


def _is_logarithmic(values: Floats) -> bool:
    return bool(np.isfinite(values).all()) and bool(np.allclose(np.exp(values).sum(-1), 1, atol=1e-2))


def agreeing(expected: Leaves, found: Leaves, kind: str) -> tuple[float, int]:
    """Return how many labels are equal, or how many rows have a partner, and how many there are on either side."""
    same, count = 0.0, 0
    for key in {**expected, **found}:
        one, other = expected.get(key), found.get(key)
        if one is None or other is None:
            count += max(0 if one is None else one.size, 0 if other is None else other.size, 1)
        elif kind == "rows" and one.dtype.kind not in "OUS":
            matched, whole = _matched(_as_rows(one), _as_rows(other))
            same, count = same + matched, count + whole
        elif one.shape == other.shape:
            same, count = same + int((one == other).sum()), count + one.size
        else:
            count += max(one.size, other.size, 1)
    return same, count


def _as_rows(value: Array) -> Floats:
    data = as_float(value)
    return data.reshape(-1, data.shape[-1]) if data.ndim > 1 else data.reshape(-1, 1)


def _matched(one: Floats, other: Floats) -> tuple[int, int]:
    """Match rows by value, the nearest pairs first; return the pairs that are near and the larger number of rows."""
    whole = max(len(one), len(other))
    if not len(one) or not len(other) or one.shape[1] != other.shape[1]:
        return 0, whole
    one, other = one[:MATCHED], other[:MATCHED]
    scale = np.maximum(one.std(0), 1e-3 * np.abs(one).max(0) + 1e-12)
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = one / scale, other / scale
        distance = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0.0) / one.shape[1]
    pairs = np.argwhere(distance <= NEAR**2 + 1e-9)
    order = np.argsort(distance[pairs[:, 0], pairs[:, 1]], kind="stable")
    left, right, matched = set[int](), set[int](), 0
    for i, j in pairs[order].tolist():
        if i not in left and j not in right:
            left.add(i)
            right.add(j)
            matched += 1
    return matched, min(whole, MATCHED)


def told(kind: Kind, expected: Sequence[Leaves], found: Sequence[Leaves]) -> Told:
    """Return what is told of an output over all feeds."""
    if kind.name in ("labels", "rows"):
        pairs = [agreeing(one, other, kind.name) for one, other in zip(expected, found, strict=False)]
        same, count = sum(a for a, _ in pairs), sum(b for _, b in pairs)
        share = same / count if count else 1.0
        return Told(1.0 if share == 1 else 0.0, 0.0 if share == 1 else 1.0, None, share, None, count)
    sums = _Sums(kind)
    for one, other in zip(expected, found, strict=False):
        sums.add(one, other)
    return sums.told()


class _Sums:
    """What one output of numbers adds up to over the feeds."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.dot = self.one = self.other = self.max_abs = self.kl = 0.0
        self.same = self.rows = 0
        self.scores = True
        self.text: list[int] = [0, 0]

    def add(self, expected: Leaves, found: Leaves) -> None:
        for key in {**expected, **found}:
            a, b = expected.get(key), found.get(key)
            if a is None or b is None or a.shape != b.shape:
                self.max_abs, self.scores = math.inf, False
            elif a.dtype.kind in "OUS":
                self.text[0] += int((a == b).sum())
                self.text[1] += a.size
            elif a.size:
                self._tensor(ordinary_only(a), as_float(a), as_float(b))

    def _tensor(self, usual: NDArray[np.bool_] | None, a: Floats, b: Floats) -> None:
        x, y = (a.reshape(-1), b.reshape(-1)) if usual is None else (a[usual], b[usual])
        if not math.isfinite(float(y.sum())) and not np.isfinite(y).all():
            self.max_abs, self.scores = math.inf, False
            return
        self.dot += float(x @ y)
        self.one += float(x @ x)
        self.other += float(y @ y)
        difference = x - y
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)), -float(difference.min(initial=0.0)))
        classes = a.shape[-1] if a.ndim == 2 or (a.ndim > 2 and self.kind.name == "scores") else 0
        self.scores = self.scores and 2 <= classes <= 100_000
        if self.scores:
            self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
            self.rows += a[..., 0].size
            if self.kind.name == "scores":
                self.kl += _divergence(a, b)

    def told(self) -> Told:
        norm = math.sqrt(self.one) * math.sqrt(self.other)
        scores = self.scores and self.rows > 0
        return Told(
            cosine=min(self.dot / norm, 1.0) if norm else 0.0,
            max_abs=self.max_abs,
            top1=self.same / self.rows if scores else None,
            agreement=self.text[0] / self.text[1] if self.text[1] else None,
            kl=self.kl / self.rows if scores and self.kind.name == "scores" else None,
            rows=self.rows or self.text[1],
        )


def _divergence(a: Floats, b: Floats) -> float:
    """Return Σ p·log(p/q) over rows of probabilities, of their logarithms or of logits."""
    p, q = (_logarithms(each) for each in (a, b))
    return max(float((np.exp(p) * (p - q)).sum()), 0.0)


def _logarithms(values: Floats) -> Floats:
    if bool(np.all(values >= 0)) and bool(np.all(np.abs(values.sum(-1) - 1) < 0.05)):
        return np.log(np.maximum(values, 1e-12))
    moved = np.maximum(values - values.max(-1, keepdims=True), -700.0)
    return np.asarray(moved - np.log(np.exp(moved).sum(-1, keepdims=True)))


def interval(errors: Floats) -> tuple[float | None, float | None]:
    """Return between which errors the aggregate lies with 95 %, by bootstrap over the feeds; None of many feeds.

    Feeds are drawn with a fixed seed. Of one feed nothing can be said.
    """
    if not 2 <= len(errors) < FEW or not np.isfinite(errors).all() or not errors.any():
        return None, None
    rng = np.random.default_rng(0)
    drawn = errors[rng.integers(0, len(errors), (DRAWS, len(errors)))]
    low, high = np.quantile(np.sqrt(np.mean(drawn**2, axis=1)), (0.025, 0.975))
    return float(low), float(high)
