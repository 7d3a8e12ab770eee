"""``exits``: a model that answers early where it is sure, as two models and a router between them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxsqueeze.engine.places import refuse_places
from onnxsqueeze.engine.run import Progress
from onnxsqueeze.errors import FeedError, UsageError
from onnxsqueeze.feeds.reading import beside
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.files import Files
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.measure.cost import macs
from onnxsqueeze.measure.output_kinds import kinds, parse
from onnxsqueeze.runtime.session import Session
from onnxsqueeze.runtime.threads import one_blas_thread
from onnxsqueeze.techniques.exits.bound import missing, threshold, upper_bound
from onnxsqueeze.techniques.exits.cuts import cuts
from onnxsqueeze.techniques.exits.gather import depths, gathered, seen_at
from onnxsqueeze.techniques.exits.head import Answers, fit
from onnxsqueeze.techniques.exits.shares import times
from onnxsqueeze.techniques.exits.split import joined, rest, stem

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Exits", "exits"]

PLACES = 12
"""Tensors that an exit is tried at, at most."""
AHEAD = 0.2
"""The share of the arithmetic that has to lie behind an exit."""
PAYS = 0.1
"""The share of the expected time that an exit has to save, measured."""
TIMED = 3
"""Exits that are timed, the most promising first."""
RATES = np.linspace(0.025, 1.0, 40)


@dataclass(frozen=True)
class Exits:
    """What ``exits`` has found: where, what share of inputs leave there, and what that is worth.

    ``rate`` and ``disagreement`` are shares of ``confirmed`` inputs that neither the head nor the choice has seen,
    ``bound`` is what the disagreement does not exceed with 95 % confidence. ``latency`` is the expected time as a share
    of that of the whole model, ``stem`` and ``rest`` those of the parts. ``early`` and ``late`` are numbers of inputs
    that leave surest, and those least sure.
    """

    folder: str
    tensor: str
    threshold: float
    rate: float
    disagreement: float
    bound: float
    confirmed: int
    fitted: int
    latency: float
    stem: float
    rest: float
    arithmetic: float
    early: tuple[int, ...]
    late: tuple[int, ...]
    scores: bool
    seconds: float


@one_blas_thread
def exits(
    model: AnyModel,
    calibration: Any = None,
    *,
    output: str | os.PathLike[str],
    max_disagreement: float = 0.01,
    at_least: float = 0.2,
    one_file: bool = False,
    outputs: str | Mapping[str, str] | None = None,
    seed: int = 0,
    mean: Any = None,
    std: Any = None,
    scale: float | None = None,
    progress: Progress | None = None,
) -> Exits:
    """Cut the model where many inputs can be answered early, and write both parts and a router to a new folder.

    A linear map from pooled features in front of the cut, and of up to two earlier tensors, is fitted to the answers of
    the whole model on one half of ``calibration``; no labels are needed. How sure its answer has to be is found on the
    other half: with 95 % confidence at most ``max_disagreement`` of all inputs then get an early answer that is another
    than the whole model's (another largest score; for outputs that are no scores, an error over 5 % of their variance).
    At least ``at_least`` of the inputs have to leave early, and the expected time has to fall by a tenth, measured.

    The folder holds ``stem.onnx``, ``rest.onnx``, ``router.py``, ``router.js`` and ``exits.json``; with ``one_file``
    ``exits.onnx`` besides, in which the rest stands in an If. Raises UsageError with the reason where it does not pay,
    is not shown by so few inputs, or the model has no place for it; FeedError and ModelError.
    """
    start = time.perf_counter()
    progress = progress or (lambda stage, done, total: None)
    if not 0 < max_disagreement < 1 or not 0 < at_least <= 1:
        raise UsageError("max_disagreement and at_least are shares between 0 and 1, such as 0.01 or 1%")
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    folder = Path(output)
    source = calibration if calibration is not None or path is None else beside(path)
    if source is None:
        raise FeedError("early answers are fitted to those of the model: give calibration= a path or feeds")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--output {folder} is there and not empty: name a new folder")
    refuse_places(
        {"--output": folder / "stem.onnx"} if folder.is_dir() else {}, {"the model": model}, calibration=source
    )
    progress("loading", 0, 1)
    graph = load(model)
    inputs = inputs_of(encode(graph, skeleton=True))
    data = read_feeds(source, inputs, mean=mean, std=std, scale=scale, seed=seed, model_path=path)
    view = View(graph)
    told = parse(outputs) if outputs is not None else None
    scores, logits = _kind(view, None if told is None else kinds(view, told))
    first = data[0]
    counts = macs(graph, first)
    places = [cut for cut in cuts(view, counts) if cut.share <= 1 - AHEAD]
    if not places:
        raise UsageError(
            "there is no place for an exit: no single tensor crosses in front of the last fifth of the arithmetic"
        )
    places = [places[i] for i in sorted({round(i) for i in np.linspace(0, len(places) - 1, min(PLACES, len(places)))})]
    found_at = depths(graph, view, places, first)
    features, rows = gathered(graph, found_at, data, progress)
    half = np.arange(len(rows)) % 2 == 0
    if lacking := missing(int((~half).sum()), max_disagreement):
        raise UsageError(
            f"{(~half).sum()} inputs cannot show that at most {max_disagreement:.2%} disagree: give {2 * lacking} more"
        )
    seen = Answers(rows[half], scores, logits)
    tried = []
    for number, cut in enumerate(places):
        progress("fitting", number, len(places))
        chosen = [depth for depth in seen_at(found_at, number) if depth in features]
        if not chosen or chosen[-1] != found_at[number]:
            continue
        x = np.concatenate([features[depth] for depth in chosen], axis=1)
        head, sure, wrong = fit(x[half].astype(np.float64), seen)
        leaving = float((sure >= _limit(sure, wrong, max_disagreement)).mean())
        tried.append(
            (cut.share + (1 - leaving) * (1 - cut.share), cut, chosen, head, sure, x[~half].astype(np.float64))
        )
    tried.sort(key=lambda each: each[0])
    best: tuple[float, Any] | None = None
    held = Answers(rows[~half], scores, logits)
    reasons: list[str] = []
    for _, cut, chosen, head, sure, x in tried[:TIMED]:
        progress("timing", len(reasons), TIMED)
        limits = [float(np.quantile(sure, 1 - rate)) for rate in RATES]
        own = head.confidence(x)
        wrong = held.disagree(head.answer(x))
        limit = threshold(own, wrong, limits, max_disagreement)
        rate = 0.0 if limit is None else float((own >= limit).mean())
        if limit is None or rate < at_least:
            reasons.append(f"at '{cut.tensor}' {rate:.0%} of the inputs can leave")
            continue
        parts = stem(graph, chosen, head, scores and not logits)
        behind = rest(graph, cut.tensor, chosen[-1][1])
        shares = times(graph, parts, behind, data)
        expected = shares[0] + (1 - rate) * shares[1]
        if expected > 1 - PAYS:
            reasons.append(f"at '{cut.tensor}' {rate:.0%} can leave, which takes {expected:.2f} of the time")
            continue
        if best is None or expected < best[0]:
            best = expected, (cut, head, limit, rate, own, wrong, parts, behind, shares)
    if best is None:
        why = "; ".join(reasons) or "its tensors give no features"
        raise UsageError(f"early exits do not pay on this model: {why}. Nothing was written")
    expected, (cut, head, limit, rate, own, wrong, parts, behind, shares) = best
    gone = own >= limit
    bad = int((wrong & gone).sum())
    order = np.flatnonzero(~half)[np.argsort(-own, kind="stable")]
    found = Exits(
        folder=str(folder),
        tensor=cut.tensor,
        threshold=float(np.float32(limit)),
        rate=rate,
        disagreement=bad / len(own),
        bound=upper_bound(bad, len(own)),
        confirmed=len(own),
        fitted=int(half.sum()),
        latency=expected,
        stem=shares[0],
        rest=shares[1],
        arithmetic=cut.share,
        early=tuple(map(int, order[:5])),
        late=tuple(map(int, order[::-1][:5])),
        scores=scores,
        seconds=time.perf_counter() - start,
    )
    _write(folder, found, parts, behind, one_file)
    return found


def _kind(view: View, told: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Return whether the one output holds scores, and whether those are logits; UsageError if there is no such one."""
    if len(view.graph.outputs) != 1:
        raise UsageError(f"the model has {len(view.graph.outputs)} outputs, and an early exit answers one")
    output = view.graph.outputs[0]
    shape, dtype = view.shape(output), view.dtype(output)
    if dtype != np.float32 or shape is None or len(shape) != 2:
        raise UsageError(f"the output '{output.name}' is no float32 tensor of one row an input: early exits need that")
    maker = output.inputs[0] if output.inputs else None
    name = (told or kinds(view))[str(output.name)].name
    soft = maker is not None and maker.op == "Softmax"
    linear = maker is not None and maker.op in ("Gemm", "MatMul", "Add", "DequantizeLinear")
    scores = name == "scores" or (told is None and name == "values" and linear)
    return scores, not soft


def _limit(sure: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any], share: float) -> float:
    """Return how sure an answer has to be for the share of wrong early answers to be as it may be, on these rows."""
    order = np.argsort(-sure, kind="stable")
    fine = np.flatnonzero(np.cumsum(wrong[order]) <= share * len(sure))
    return float(sure[order[fine[-1]]]) if len(fine) else float("inf")


def _write(folder: Path, found: Exits, parts: tuple[Graph, dict[str, str]], behind: Graph, one_file: bool) -> None:
    """Write the models, the routers and the manifest, all or nothing."""
    first, names = parts
    manifest = {**asdict(found), "outputs": names, "answer": str(behind.outputs[0].name)}
    del manifest["folder"], manifest["seconds"]
    models = {"stem.onnx": encode(first), "rest.onnx": encode(behind)}
    if one_file:
        models["exits.onnx"] = joined(models["stem.onnx"], models["rest.onnx"], names, found.threshold)
        Session(models["exits.onnx"])
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Files(f"the folder {folder}") as written:
            for name, model in models.items():
                with written.create(folder / name) as file:
                    file.write(model.SerializeToString())
            for name in ("router.py", "router.js"):
                with written.create(folder / name) as file:
                    file.write(files("onnxsqueeze.techniques.exits").joinpath("routers").joinpath(name).read_bytes())
            with written.create(folder / "exits.json") as file:
                file.write(json.dumps(manifest, indent=2).encode() + b"\n")
    except BaseException:
        if made:
            folder.rmdir()
        raise
