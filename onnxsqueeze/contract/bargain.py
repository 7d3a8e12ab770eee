"""What a pass leaves alone because it would save too little for the error that it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from onnxsqueeze.contract.plan import Site, Skip, W
from onnxsqueeze.measure.answers import decibels

__all__ = ["forgone"]


def forgone(
    mild: Iterable[Site[W] | Skip], full: Iterable[Site[W] | Skip], saved: float, error: float
) -> Iterator[Site[W] | Skip]:
    """Yield a mild plan; what only the full one would rewrite is skipped, since it saves too little for its error.

    ``saved`` is the share of the cost that the full plan saves, ``error`` the relative squared error of its answers.
    """
    reason = (
        f"saving {saved:.1%} is not worth answers at {decibels(error):.0f} dB: ask for it with ratio= or max-error="
    )
    gone = {entry.key for entry in full if isinstance(entry, Site)}
    for entry in mild:
        yield replace(entry, reason=reason) if isinstance(entry, Skip) and entry.key in gone else entry
