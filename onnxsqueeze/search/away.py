"""What a worker does for a search: it opens the model as the search has, and runs pipelines on it."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from onnxsqueeze.engine.opening import Opened
from onnxsqueeze.engine.recipe import FROM_PYTHON
from onnxsqueeze.errors import UsageError
from onnxsqueeze.ir.files import save
from onnxsqueeze.runtime.threads import one_thread
from onnxsqueeze.search.start import opened_for
from onnxsqueeze.search.store import Store
from onnxsqueeze.search.trials import Call, Trials
from onnxsqueeze.workers import Workers

__all__ = ["calls"]


@dataclass(frozen=True)
class _Setting:
    """What a worker opens besides the model: the data, and whatever else ``opened_for`` takes.

    ``before`` are the bytes of the model as the user gave it. What was measured goes into ``folder``, or, where that is
    None, back. By ``key`` a worker knows the setting again.
    """

    key: str
    calibration: Any
    how: Mapping[str, Any]
    before: int
    packed: bool
    folder: Path | None


def calls(workers: Workers, opened: Opened, store: Store, packed: bool, how: Mapping[str, Any]) -> Call | None:
    """Return what a worker is to call with pipelines, None if there are no workers; ``how`` as ``opened_for`` has it.

    Raises UsageError for what cannot be sent to another process.
    """
    if not workers.away:
        return None
    with TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True) as folder:
        file = Path(folder, "model.onnx")
        save(opened.original, file)
        model = workers.lend(file.read_bytes())
    how = {
        **how,
        "stats": [str(Path(each).resolve()) for each in how["stats"] if Path(each).exists()],
        "target": _anywhere(how["target"]),
    }
    setting = _Setting(
        uuid.uuid4().hex, _data(opened), how, opened.before.bytes, packed,
        None if workers.folder is None else store.folder.resolve(),
    )  # fmt: skip
    try:
        pickle.dumps(how)
    except Exception as error:  # whatever the user's own objects raise
        problem = "score= cannot be sent to workers: give it as text, module:function, or as a function of a module"
        raise UsageError(problem) from error
    return _away, model, setting  # engines put in what was lent only for an argument itself


def _data(opened: Opened) -> Any:
    """Return the calibration data as a worker in another folder reads them: a path, or the feeds themselves."""
    source, data = str(opened.recipe.calibration["source"]), opened.data
    if data is None:
        return None
    if source == FROM_PYTHON:
        return [data.labelled(i) if data.labels else data[i] for i in range(len(data))]
    return source if source == "random" else _anywhere(source)


def _anywhere(place: Any) -> Any:
    """Return a path as it is found from any folder; what is no file or folder as it is."""
    is_path = isinstance(place, (str, os.PathLike)) and Path(place).exists()
    return str(Path(place).resolve()) if is_path else place


@one_thread
def _away(model: Any, setting: _Setting, pipelines: Sequence[str]) -> Mapping[str, bytes]:
    """Run pipelines, and return the files of a store with what came out, unless they could be written in its place."""
    if setting.folder is not None:
        _trials(model, setting, setting.folder).tried(pipelines)
        return {}
    with TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True) as folder:
        trials = _trials(model, setting, Path(folder))
        trials.tried(pipelines)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


_STATE = threading.local()


def _trials(model: Any, setting: _Setting, folder: Path) -> Trials:
    """Return trials on the model that keep what they find in ``folder``; a worker keeps the last one."""
    found: Trials | None = getattr(_STATE, "trials", None)
    if found is None or _STATE.key != setting.key:
        _STATE.trials = None
        model = onnx.load_from_string(model) if isinstance(model, bytes) else model
        opened = opened_for(model, setting.calibration, lambda *_: None, **setting.how)
        opened.before = replace(opened.before, bytes=setting.before)
        _STATE.trials = found = Trials(opened, Store(folder, opened), setting.packed)
        _STATE.key = setting.key
    found.store.folder = folder
    return found
