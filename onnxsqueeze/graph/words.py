"""What tensors are, in words."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

__all__ = ["described"]


def described(tensor: gs.Tensor) -> str:
    """Return type and shape as text: ``float32[N, 3, 224, 224]``."""
    dtype = "?" if tensor.dtype is None else np.dtype(tensor.dtype).name if not isinstance(tensor.dtype, int) else "?"
    shape = tensor.shape
    return f"{dtype}[{'...' if shape is None else ', '.join('?' if d in (None, '') else str(d) for d in shape)}]"
