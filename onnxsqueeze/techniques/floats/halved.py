"""Weights stored as 16-bit floats behind a Cast, which ONNX Runtime folds when it loads the model."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.graph import edit
from onnxsqueeze.ir.dtypes import element_type
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Derived, peek

__all__ = ["HALVES", "exact_half", "halve"]

HALVES: tuple[np.dtype[Any], ...] = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
"""The 16-bit floats of ONNX."""
CHUNK = 1 << 16
"""Elements that are looked at before more are."""


def exact_half(values: NDArray[np.float32]) -> np.dtype[Any] | None:
    """Return the 16-bit type of which all values are values, float16 first, None if there is none.

    NaN is of neither: what becomes of its payload is left to the runtime.
    """
    flat = values.reshape(-1)
    for dtype in HALVES:
        if all(_exact(flat[start : start + CHUNK], dtype) for start in range(0, len(flat), CHUNK)):
            return dtype
    return None


def _exact(values: NDArray[np.float32], dtype: np.dtype[Any]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((values.astype(dtype).astype(np.float32) == values).all())


def halve(graph: Graph, scope: Graph, tensor: gs.Constant, dtype: np.dtype[Any]) -> None:
    """Put a Cast of 16-bit values in the place of a float32 weight for all that read it.

    Values that are too large for float16 become infinite: whoever rounds has looked for them.
    """
    home = edit.home(graph, scope, tensor)

    def narrow() -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.asarray(peek(tensor).astype(dtype))

    held = edit.constant(graph, f"{tensor.name}_{dtype.name}", Derived(tensor.shape, dtype, narrow))
    to = {"to": element_type(np.float32)}
    edit.redirect(tensor, edit.insert(graph, home, "Cast", [held], f"{tensor.name}_float", to, before=home.nodes[0]))
