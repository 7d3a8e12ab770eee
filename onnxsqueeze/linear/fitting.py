"""A layer's weight with the covariance of its inputs, from which output errors follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.layers import Linear, covariance, regular
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.moments import Moments

__all__ = ["Fitting", "few_rows", "fitting", "relative_error", "unsure"]

WANTED = 2
"""Rows per column, under which the report asks for more feeds."""
NAMED = 3
"""Layers that it names."""
LEAST = 32
"""Rows under which even the error on unseen ones says little: a whole kind of input may be missing among them."""


@dataclass
class Fitting:
    """A layer's weight W (O, K) with the covariance S (K, K) and mean μ (K) of its input rows; S = I without feeds.

    Where rows are few, ``early`` is the layer with S and μ of three feeds in four, and ``unseen`` with the moments of
    the fourth about that μ: what is fitted to ``early`` is judged on ``unseen``. Both come out of ``rows``.
    """

    layer: Linear
    weight: Matrix
    covariance: Matrix | None = None
    mean: Matrix | None = None
    rows: Moments | None = None
    """The input rows, where they are few and some of them are kept apart."""
    unsure: str = ""
    """Why no promise of an error can be kept, if that is so."""
    _cache: dict[str, tuple[Matrix, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def early(self) -> Fitting | None:
        """The layer without the feeds that are kept apart."""
        parts = None if self.rows is None else self.rows.parts()
        return None if parts is None else Fitting(self.layer, self.weight, *regular(parts[0]))

    @cached_property
    def unseen(self) -> Fitting | None:
        """The layer with these feeds alone."""
        parts = None if self.rows is None else self.rows.parts()
        return None if parts is None else Fitting(self.layer, self.weight, parts[1].about(parts[0].mean))

    def forget(self) -> None:
        """Let go of ``early`` and ``unseen``, each of which takes as much memory as S, until they are asked for."""
        for name in ("early", "unseen"):
            vars(self).pop(name, None)

    def output_covariance(self) -> Matrix:
        """W S Wᵀ."""
        image = (
            self.weight @ self.weight.T if self.covariance is None else self.weight @ self.covariance @ self.weight.T
        )
        return np.asarray((image + image.T) / 2)

    @cached_property
    def energy(self) -> float:
        """tr W S Wᵀ."""
        image = self.weight if self.covariance is None else self.weight @ self.covariance
        return float(np.einsum("ok,ok->", image, self.weight))

    def shift(self, approximation: Matrix) -> Matrix | None:
        """Return ``(W − Ŵ) μ``, what the bias has to take over; None without feeds."""
        return None if self.mean is None else (self.weight - approximation) @ self.mean


def fitting(stats: Statistics, layer: Linear, weight: Matrix) -> Fitting:
    """Return the layer with what was measured of its input, and how its fits are to be judged."""
    known = stats.derived.get(("fitting", layer))
    if isinstance(known, Fitting) and np.array_equal(known.weight, weight):
        return known
    shared = stats.derived.setdefault(("covariance", layer.gram), {})  # layers that read the same have it once
    if layer.columns not in shared:
        shared[layer.columns] = covariance(stats, layer)
    made = Fitting(layer, weight, *shared[layer.columns])
    found = stats.of(layer.gram)
    made.rows = found if found is not None and made.covariance is not None and found.parts() is not None else None
    made.unsure = unsure(stats, layer)
    stats.derived["fitting", layer] = made
    return made


def unsure(stats: Statistics, layer: Linear) -> str:
    """Return why rows are too few to promise an error, so that a budget of error leaves the layer alone, or ""."""
    found = stats.of(layer.gram)
    if found is None or found.n >= LEAST:
        return ""
    feeds = given(-(-WANTED * layer.columns * found.runs // found.n))
    return f"feeds gave it {found.n} input rows, too few to promise an error: give more feeds, {feeds} would do"


def given(wanted: int) -> int:
    """Return how many feeds leave so many: one in eight is held out, at least one, and at most 64."""
    return next(n for n in count(wanted + 1) if n - min(64, max(1, round(n / 8))) >= wanted)


def few_rows(stats: Statistics, layers: Iterable[Linear]) -> Iterator[str]:
    """Yield, if layers have seen fewer than two rows a column, one line that names them and how many feeds would do."""
    few: dict[str, tuple[int, int, int]] = {}
    for layer in layers:
        found = stats.of(layer.gram)
        if found is not None and found.gram is not None and found.n < WANTED * layer.columns:
            few[layer.key] = -(-WANTED * layer.columns * found.runs // found.n), found.n, layer.columns
    if not few:
        return
    wanted = max(feeds for feeds, _, _ in few.values())
    worst = sorted(few, key=lambda key: few[key][1] / few[key][2])
    named = ", ".join(f"{key} {few[key][1]} for {few[key][2]}" for key in worst[:NAMED])
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    yield f"few input rows for the columns of {len(few)} layers ({named}{more}): {given(wanted)} feeds would do"


def relative_error(fitting: Fitting, approximation: Matrix) -> float:
    """Return ``tr[ΔW S ΔWᵀ] / tr[W S Wᵀ]``, 0 for a layer that answers nothing."""
    change = fitting.weight - approximation
    image = change if fitting.covariance is None else change @ fitting.covariance
    return float(np.einsum("ok,ok->", image, change)) / fitting.energy if fitting.energy > 0 else 0.0
