"""Which places of a graph a pass may touch, by their names: ``only`` and ``exclude``, alike in all passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import W

__all__ = ["Selected"]


@dataclass(frozen=True, kw_only=True)
class Selected(Pass[W]):
    """A pass whose user says by name what it may touch, and whose recipes may treat some layers otherwise.

    A pass may declare the two fields again, behind ``_: KW_ONLY``: then they stand where it declares them, with its own
    words. Otherwise they come before its own options.
    """

    only: tuple[str, ...] = ()
    """Rewrite only the layers whose output or node name matches one of these patterns (* and ?)."""
    exclude: tuple[str, ...] = ()
    """Leave alone the layers whose output or node name matches one of these patterns."""

    def wanted(self, names: Iterable[str]) -> bool:
        """Return whether a place that goes by these names may be touched."""
        called = tuple(names)
        return self._asked(called) and not _matches(called, self.exclude)

    def excluded(self, names: Iterable[str]) -> bool:
        """Return whether the user asked for such places but for this one, which is worth a Skip."""
        called = tuple(names)
        return self._asked(called) and _matches(called, self.exclude)

    def _asked(self, names: tuple[str, ...]) -> bool:
        return not self.only or _matches(names, self.only)


def _matches(names: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
