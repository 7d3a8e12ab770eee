"""What a run starts from: the model, its feeds in their parts, and what the original answers on those held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxsqueeze.engine.recipe import FROM_PYTHON, Recipe
from onnxsqueeze.engine.reference import prepare
from onnxsqueeze.engine.run import Progress, Run
from onnxsqueeze.engine.score import Score, keeping, scoring
from onnxsqueeze.engine.step import refuse_quantized
from onnxsqueeze.engine.use import made_for
from onnxsqueeze.errors import ModelError, PassError, UsageError
from onnxsqueeze.feeds.reading import beside
from onnxsqueeze.feeds.reading import read as read_feeds
from onnxsqueeze.feeds.types import Feed, Feeds, Input, inputs_of
from onnxsqueeze.graph.edit import sort
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.cost import Cost, cost
from onnxsqueeze.measure.rig import Rig, mount
from onnxsqueeze.statistics.store import load_statistics

if TYPE_CHECKING:
    from onnxsqueeze.ir.files import AnyModel

__all__ = ["Opened", "open_run"]

UNCOUNTED = "the multiply-accumulates of a feed are unknown: neither inference nor a run gives all shapes of its layers"


@dataclass
class Opened:
    """A model that is ready for passes, with all that a run knows before the first of them."""

    recipe: Recipe
    """What is to be done, with the place where the feeds were found."""
    path: Path | None
    original: Graph
    rig: Rig
    """The graph that passes work on, and the way back from it."""
    run: Run
    data: Feeds | None
    held: Sequence[Feed]
    """The feeds held out from calibration, as the user gave them."""
    scorer: Score | None
    before: Cost
    feed: Feed | None
    """One feed to count on, held out if one is."""
    known: bool
    """Whether statistics were read from files."""
    notes: list[str]


def open_run(
    model: AnyModel,
    recipe: Recipe,
    calibration: Any,
    scorer: Score | None,
    check: bool,
    stats: Sequence[Path],
    progress: Progress,
) -> Opened:
    """Load the model and its feeds, and run the original on the feeds that are held out if results are checked.

    ``calibration`` is what the user gave, which a recipe cannot hold if it came from Python. Raises UsageError,
    ModelError or FeedError for what cannot be read or run, and for passes that the model is no model for.
    """
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    original = load(model)
    _refuse_broken(original)
    original.made_for = made_for(recipe, ())
    for each in takewhile(lambda each: not each.pass_.restores, recipe.steps):
        refuse_quantized(each.pass_, original)
    inputs = inputs_of(encode(original, skeleton=True))
    read = {each.pass_.reads for each in recipe.steps} - {""}
    recipe, data = _feeds(recipe, calibration, inputs, path, scorer is not None or bool(read))
    calib, held = data.split() if data is not None else ((), ())
    if isinstance(calib, Feeds):
        for name in read:
            calib.label(0, name)  # what is not there is said before anything runs
    original.made_for = made_for(recipe, calib)
    for taps in (check, False):
        rig = mount(original, recipe.outputs, taps)
        drawn = [rig.feeds(part, recipe.seed) for part in (calib, held)]
        run = Run(drawn[0], drawn[1], load_statistics(stats), check, recipe.seed, progress, ruler=rig.ruler)
        run.invented = data is None or data.invented
        run.label = calib.label if isinstance(calib, Feeds) else None
        whole = path or original if rig.graph is original else rig.graph
        try:
            notes = prepare(run, whole, inputs, data, rig)
        except ModelError:
            if rig.graph is original:
                raise
            continue  # with further outputs it does not run; without them errors are measured at its own
        break
    if scorer is not None and run.reference and isinstance(held, Feeds):
        names = tuple(str(t.name) for t in original.outputs)
        run.score = scoring(scorer, held, names, len(run.reference))
        if recipe.max_score_drop is not None and isinstance(calib, Feeds):
            run.keeps = keeping(scorer, calib, drawn[0], names, rig.graph, recipe.max_score_drop)
    feed = next(iter(held or calib), None)
    before = cost(original, _size(original, model), feed)
    if feed is not None and before.macs is None:
        notes.append(UNCOUNTED)
    return Opened(recipe, path, original, rig, run, data, held, scorer, before, feed, bool(stats), notes)


def _refuse_broken(graph: Graph) -> None:
    """Raise ModelError for a graph that no runtime could run: a pass would be blamed for it."""
    for node, _ in walk(graph):
        for tensor in node.outputs:
            if tensor.name and len({id(maker) for maker in tensor.inputs}) > 1:
                raise ModelError(f"the model is broken: two nodes make '{tensor.name}'; export it again")
    try:
        sort(graph.copy())
    except PassError as error:
        raise ModelError(f"the model is broken: {error}; export it again") from None


def _feeds(
    recipe: Recipe, given: Any, inputs: tuple[Input, ...], path: Path | None, labels: bool
) -> tuple[Recipe, Feeds | None]:
    """Return the feeds, and the recipe with the place where they were found."""
    source: Any = recipe.calibration.get("source")
    if source is None and path is not None:
        source = beside(path)
    how = {key: recipe.calibration.get(key) for key in ("mean", "std", "scale")}
    if source is None or source == "none":
        if any(value is not None for value in how.values()):
            raise UsageError("mean=, std= and scale= are for images, and there are none: give calibration=")
        return replace(recipe, calibration={**recipe.calibration, "source": "none"}), None
    if source == FROM_PYTHON and (given is None or isinstance(given, str)):
        raise UsageError("the recipe was made with calibration data from Python: give them with calibration=")
    recipe = replace(recipe, calibration={**recipe.calibration, "source": str(source)})
    data = given if source == FROM_PYTHON else source
    return recipe, read_feeds(data, inputs, model_path=path, seed=recipe.seed, labels=labels, **how)  # type: ignore[arg-type]


def _size(graph: Graph, source: AnyModel) -> int:
    if isinstance(source, onnx.ModelProto):
        return int(source.ByteSize())
    in_one_file = isinstance(source, (str, os.PathLike)) and not graph.external
    return Path(source).stat().st_size if in_one_file else file_size(graph)
