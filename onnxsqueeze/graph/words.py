"""What tensors are, in words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

__all__ = ["described", "type_name"]


def described(tensor: gs.Tensor) -> str:
    """Return type and shape as text: ``float32[N, 3, 224, 224]``."""
    dtype = "?" if tensor.dtype is None or isinstance(tensor.dtype, int) else type_name(tensor.dtype)
    shape = tensor.shape
    return f"{dtype}[{'...' if shape is None else ', '.join('?' if d in (None, '') else str(d) for d in shape)}]"


def type_name(dtype: npt.DTypeLike) -> str:
    """Return the name of an element type as ONNX has it: texts, which NumPy calls objects, are strings."""
    found = np.dtype(dtype)
    return "string" if found.kind in "OUS" else found.name
