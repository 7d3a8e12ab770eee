"""``family``: a model in several sizes from one search, for machines and moments that can afford more or less."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxsqueeze.engine.places import refuse_places
from onnxsqueeze.engine.squeeze import closed
from onnxsqueeze.engine.versions import versions
from onnxsqueeze.errors import UsageError
from onnxsqueeze.files import whole
from onnxsqueeze.ir.files import save
from onnxsqueeze.plain import plain
from onnxsqueeze.report.run import Report
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.search.away import calls
from onnxsqueeze.search.hunt import EFFORTS, Hunt
from onnxsqueeze.search.start import opened_for
from onnxsqueeze.search.store import Store, kept_in
from onnxsqueeze.search.trials import Trials
from onnxsqueeze.search.wishes import Wish
from onnxsqueeze.workers import Executors, Share, Workers

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Family", "Member", "family"]

SMALLEST = 8.0
"""The largest member costs as many times as much as the smallest is to cost."""
MOST = 12
SAME = 1.02
"""Run times that differ by less are one: what loses less may be so much slower."""


@dataclass(frozen=True)
class Member:
    """One model of a family; ``share`` was asked for, ``size`` and ``latency`` are shares of the original's.

    ``error`` is the relative squared error of the worst output on all feeds that were held out.
    """

    file: str
    share: float
    pipeline: str
    recipe: str
    bytes: int
    milliseconds: float
    size: float
    latency: float
    error: float
    sqnr_db: float


@dataclass(frozen=True)
class Family:
    """The members of a family, from large and accurate to small, and why some that were asked for are not there."""

    model: str
    by: str
    made_by: str
    members: tuple[Member, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> str:
        """Return the manifest."""
        return json.dumps(plain(self), indent=2, allow_nan=False) + "\n"


@one_blas_thread
def family(
    model: AnyModel,
    output: str | os.PathLike[str],
    count: int = 4,
    calibration: Any = None,
    *,
    by: Literal["latency", "size"] = "latency",
    effort: str = "default",
    cache: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    stats: Iterable[str | os.PathLike[str]] = (),
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    outputs: str | Mapping[str, str] | None = None,
    target: str | os.PathLike[str] | None = None,
    executor: Executors = None,
    share: Share = None,
) -> Family:
    """Write ``count`` models to the folder ``output``, from all of the latency (or size) down to an eighth of it.

    For 4 that is 100, 50, 25 and 12 %; each has the least error that one search finds within its share, and is smaller,
    faster and less accurate than the one before. Beside each lies its recipe, and ``manifest.json`` has what was
    measured; ``pick(manifest, budget)`` chooses by it. A member that cannot be is left out, with a note.
    ``executor`` and ``share`` are those of ``calibrate``.
    """
    start = time.perf_counter()
    progress = progress or (lambda stage, done, total: None)
    if by not in ("latency", "size"):
        raise UsageError(f"by is latency or size, not {by!r}")
    if effort not in EFFORTS:
        raise UsageError(f"effort is {', '.join(EFFORTS)}, not {effort!r}")
    if not 2 <= count <= MOST:
        raise UsageError(f"a family has 2 to {MOST} members, not {count}")
    folder = Path(output)
    shares = [SMALLEST ** (-number / (count - 1)) for number in range(count)]
    files = [f"{_stem(model)}-{100 * part:.0f}" for part in shares]
    _make(folder)
    places = {f"output= {name}": folder / name for file in files for name in (f"{file}.onnx", f"{file}.toml")}
    refuse_places({**places, "the manifest": folder / "manifest.json"}, {"the model": model}, calibration=calibration)
    how = {
        "seed": seed, "stats": tuple(stats), "mean": mean, "std": std, "scale": scale, "outputs": outputs,
        "target": target,
    }  # fmt: skip
    opened = opened_for(model, calibration, progress, **how)
    with kept_in(cache) as kept, Workers(executor, share) as workers:
        store = Store.under(kept, opened)
        trials = Trials(opened, store, False, workers, calls(workers, opened, store, False, how))
        hunt = Hunt(trials, opened, [(Wish({by: part}), 1.0) for part in shares[1:]], EFFORTS[effort], start)
        hunt.go(progress)
        members: list[Member] = []
        notes: list[str] = []
        for part, file in zip(shares, files, strict=True):
            found = _member(hunt, part, by, members)
            if found is None:
                notes.append(f"no plan is smaller, faster and at {100 * part:.0f} % of the {by}: it is left out")
                continue
            report, graph = closed(opened, trials.course(found), progress)
            size = save(graph, folder / f"{file}.onnx")
            trials.recipe(found).save(folder / f"{file}.toml")
            members.append(_told(file, part, found, report, size))
        done = Family(
            "<memory>" if opened.path is None else opened.path.name, by, versions(), tuple(members),
            tuple(notes), time.perf_counter() - start,
        )  # fmt: skip
    with whole(folder / "manifest.json", "the manifest") as written:
        written.write(done.to_json().encode())
    return done


def _member(hunt: Hunt, share: float, by: str, before: list[Member]) -> str | None:
    """Return the pipeline with the least error at a share that costs less and loses more than all members so far."""
    limits = {by: share} if share < 1 else {}
    taken = {each.pipeline for each in before}
    last = before[-1] if before else None
    for pipeline in hunt.ranked(Wish(limits)):
        found = hunt.tries[pipeline].measured
        assert found is not None
        if pipeline in taken or Wish(limits).excess(found) > 0:
            continue
        smaller = last is None or (found.size <= last.size and found.latency <= SAME * last.latency)
        if smaller and (last is None or found.error >= last.error):
            return pipeline
    return None


def _told(file: str, share: float, pipeline: str, report: Report, size: int) -> Member:
    times = report.latency_ms or (0.0, 0.0)
    sqnr = report.sqnr_db if report.sqnr_db is not None else 0.0
    return Member(
        f"{file}.onnx", share, pipeline, f"{file}.toml", size, times[1], size / report.before.bytes,
        times[1] / times[0] if times[0] else 1.0, 10 ** (-sqnr / 10), sqnr,
    )  # fmt: skip


def _stem(model: Any) -> str:
    return Path(model).stem if isinstance(model, (str, os.PathLike)) else "model"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output= {folder} cannot be made: {error.strerror}; name another folder") from None
