"""A layer's weight with the covariance of its inputs, from which output errors follow."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxsqueeze.arrays import Matrix
from onnxsqueeze.linear.layers import Linear

__all__ = ["Fitting", "relative_error"]


@dataclass
class Fitting:
    """A layer's weight W (O, K) with the covariance S (K, K) and mean μ (K) of its input rows; S = I without feeds."""

    layer: Linear
    weight: Matrix
    covariance: Matrix | None = None
    mean: Matrix | None = None
    _cache: dict[str, tuple[Matrix, ...]] = field(default_factory=dict, repr=False)

    def output_covariance(self) -> Matrix:
        """W S Wᵀ."""
        image = (
            self.weight @ self.weight.T if self.covariance is None else self.weight @ self.covariance @ self.weight.T
        )
        return np.asarray((image + image.T) / 2)

    def shift(self, approximation: Matrix) -> Matrix | None:
        """Return ``(W − Ŵ) μ``, what the bias has to take over; None without feeds."""
        return None if self.mean is None else (self.weight - approximation) @ self.mean


def relative_error(fitting: Fitting, approximation: Matrix) -> float:
    """Return ``tr[ΔW S ΔWᵀ] / tr[W S Wᵀ]``, 0 for a layer that answers nothing."""
    change = fitting.weight - approximation
    image = change if fitting.covariance is None else change @ fitting.covariance
    total = float(np.trace(fitting.output_covariance()))
    return float(np.sum(image * change)) / total if total > 0 else 0.0
