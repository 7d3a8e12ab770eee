"""Which member of a family to run, from its manifest alone: a file to copy to wherever the models run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["pick"]


def pick(manifest: Mapping[str, Any] | str | os.PathLike[str], budget: Mapping[str, float]) -> Path:
    """Return the file of the most accurate member within ``budget``, of the smallest one if none is.

    ``manifest`` is what ``manifest.json`` holds, or its path. ``budget`` has upper limits by the keys of a member:
    ``{"milliseconds": 5, "bytes": 2e6}``.
    """
    folder = Path()
    table: Any = manifest
    if not isinstance(manifest, Mapping):
        folder = Path(manifest).parent
        table = json.loads(Path(manifest).read_text(encoding="utf-8"))
    members = table["members"]  # from large and accurate to small
    fits = [each for each in members if all(each[key] <= most for key, most in budget.items())]
    return folder / str((fits[0] if fits else members[-1])["file"])
