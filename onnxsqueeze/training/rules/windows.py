"""Where the windows of a convolution or a pooling lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Windows", "windows"]

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """Kernel, strides, dilations and padding per axis; ``left`` are the places behind the last window's reach."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    begin: Sizes
    end: Sizes
    left: Sizes


def windows(attrs: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> Windows:
    """Return the windows over an input of ``size`` that give ``out`` outputs, by the attributes of a node."""
    rank = len(kernel)
    strides, dilations = (tuple(attrs.get(key) or [1] * rank) for key in ("strides", "dilations"))
    pads = list(attrs.get("pads") or [0] * 2 * rank)
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, strides, kernel, dilations, strict=True)]
    auto = attrs.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        whole = [max(r - n, 0) for r, n in zip(reach, size, strict=True)]
        small = [total // 2 for total in whole]
        large = [total - half for total, half in zip(whole, small, strict=True)]
        begin, end = (small, large) if auto == b"SAME_UPPER" else (large, small)
    elif auto == b"VALID":
        begin, end = [0] * rank, [0] * rank
    else:
        begin, end = pads[:rank], pads[rank:]
    left = tuple(n + b + e - r for n, b, e, r in zip(size, begin, end, reach, strict=True))
    return Windows(tuple(kernel), strides, dilations, tuple(begin), tuple(end), left)
