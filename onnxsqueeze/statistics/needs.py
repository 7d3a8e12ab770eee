"""What a pass may ask to be measured on calibration feeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Channels", "Gram", "Mean", "Need", "Range"]


@dataclass(frozen=True)
class Range:
    """Asks for the power-of-two histogram, minimum and maximum of the float tensor ``tensor``."""

    tensor: str


@dataclass(frozen=True)
class Mean:
    """Asks for the mean of ``tensor`` per index of ``axis`` (its channels)."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Channels:
    """Asks for minimum, maximum, mean and mean square of ``tensor`` per index of ``axis``; ``gram``: and products."""

    tensor: str
    axis: int
    gram: bool = False


@dataclass(frozen=True)
class Gram:
    """Asks for ``n``, ``Σx`` and ``Σxxᵀ`` over the input rows ``x`` that a linear operator reads from ``tensor``.

    ``axis`` is the contracted axis of a Gemm or MatMul (-1: the last). With ``kernel`` set the rows are the
    im2col patches of a Conv of one group, ordered channel-major like its weight: ``x[(c·kh + i)·kw + j]``; ``pads``
    are all the beginnings, then all the ends, unless ``auto_pad`` is SAME_UPPER or SAME_LOWER. With ``others`` the
    rows of all of them add up in one matrix.
    """

    tensor: str
    axis: int = -1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = ""
    others: tuple[Gram, ...] = ()

    @property
    def each(self) -> tuple[Gram, ...]:
        """The same for each of the tensors alone."""
        return (replace(self, others=()), *self.others)


Need = Range | Mean | Channels | Gram
