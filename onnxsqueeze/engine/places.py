"""Where a run reads and writes: all of it is known before any work, and no output takes the place of an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from onnxsqueeze.errors import ModelError, UsageError
from onnxsqueeze.feeds.reading import beside, files_of
from onnxsqueeze.files import refuse_to_overwrite
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph

__all__ = ["refuse_places", "statistics_files"]

WORDS = {
    "--output": "the squeezed model",
    "output=": "the squeezed model",
    "--report": "the report",
    "--html": "the page",
    "the data file of --output": "the data of the squeezed model",
}
"""Outputs by what the user writes, and what they are."""


def refuse_places(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    models: Mapping[str, object],
    *,
    calibration: object = None,
    recipe: str | os.PathLike[str] | None = None,
    stats: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Raise UsageError if an output cannot be written, or would overwrite an input of the run or another output.

    ``outputs`` are paths by the words of the user ("--report"), ``models`` paths or graphs by what they are ("the
    model"). ``calibration`` is a path or anything; if None, what lies beside the first model counts. Of ``stats`` the
    file that is not there is an output.
    """
    known, new = statistics_files(stats)
    places = {said: Path(path) for said, path in outputs.items() if path is not None}
    places |= {"stats=": new} if new is not None else {}
    first = next(iter(models.values()), None)
    if calibration is None and isinstance(first, (str, os.PathLike)):
        calibration = beside(Path(first))
    taken = any(path.exists() for path in places.values())
    inputs = {what: [*_files(model, taken)] for what, model in models.items()}
    inputs |= {"the recipe": [Path(recipe)] if recipe is not None else []}
    inputs |= {"the calibration data": files_of(calibration), "the statistics": known}
    refuse_to_overwrite(places, inputs, WORDS)


def statistics_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], Path | None]:
    """Return the files of statistics that are there, and the one that is to be written; UsageError if several are."""
    files = [Path(p) for p in paths]
    new = [p for p in files if not p.exists()]
    if len(new) > 1:
        raise UsageError(f"of the statistics files at most one may be new, but {', '.join(map(str, new))} do not exist")
    return [p for p in files if p not in new], new[0] if new else None


def _files(model: object, taken: bool) -> Iterable[Path]:
    """Yield the files of a model: its own, and those with its data if something that is there is to be written to."""
    if isinstance(model, (str, os.PathLike)):
        yield Path(model)
        try:
            model = load(model) if taken else None
        except ModelError:
            return  # said by whoever needs the model
    if isinstance(model, Graph) and model.file is not None:
        yield from (model.file.path, *model.file.others)
