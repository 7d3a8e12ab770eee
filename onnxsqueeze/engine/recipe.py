"""Recipes: a run as a TOML file, complete enough to be repeated to the byte."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.selection import Selected
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import make, ordered, spec
from onnxsqueeze.engine.syntax import Step
from onnxsqueeze.engine.versions import versions
from onnxsqueeze.errors import SpecError, UsageError
from onnxsqueeze.files import open_regular, whole
from onnxsqueeze.measure.output_kinds import Name, parse
from onnxsqueeze.toml import is_number, known, lines, shown, table_of, typed, written

__all__ = ["FROM_PYTHON", "Ingredient", "Recipe"]

KEYS = (
    *("seed", "validate", "target", "threads", "batch", "min-sqnr"),
    *("outputs", "score", "max-score-drop", "calibration", "step"),
)
CALIBRATION = ("source", "stats", "mean", "std", "scale")
STEP = ("pass", "override", "chosen", "latency")
OVERRIDE = ("layers", "skip")
LARGEST = 16 << 20
"""Bytes of a recipe, which names every place that it rewrites."""
FROM_PYTHON = "from python"
"""What stands for calibration data that no file holds: whoever repeats the run has to bring them."""


@dataclass(frozen=True)
class Ingredient:
    """One pass of a recipe, and what it found when the recipe was saved.

    ``latency`` are the run-time ratios that it measured and decided by; a repeated run takes them instead of the
    clock. A negative first one is minus the seconds of a run that is so slow that measuring was bounded. ``chosen``
    maps each rewritten place to what was done there; a run that does otherwise says so.
    """

    pass_: Pass
    latency: tuple[float, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run makes of a model: passes, options, calibration, tolerance and seed.

    ``squeeze`` takes one in the place of a pipeline, and its result has one as ``result.recipe``.

    >>> from onnxsqueeze import Recipe
    >>> recipe = Recipe.parse('''
    ... seed = 7
    ... [[step]]
    ... pass = "lowrank"
    ... ratio = 0.6
    ... ''')
    >>> recipe.seed, recipe.pipeline
    (7, 'lowrank{ratio=0.6}')
    """

    steps: tuple[Ingredient, ...]
    calibration: Mapping[str, object] = field(default_factory=dict)
    """``source`` and ``stats`` (paths, or the words none and random), ``mean``, ``std`` and ``scale`` of images."""
    min_sqnr: float | None = None
    validate: str = "full"
    seed: int = 0
    outputs: Mapping[str, Name] = field(default_factory=dict)
    """Kinds of outputs that are told, by name (``onnxsqueeze.measure.output_kinds``)."""
    score: str | None = None
    """``module:function`` that scores answers, or the words from python."""
    max_score_drop: float | None = None
    target: str | None = None
    """The name or file of the profile of what the model is to run on; None: the default one."""
    threads: int = 1
    batch: int | None = None
    """On how many threads (0: all) and samples at once (None: as fed) it is to run."""

    @property
    def pipeline(self) -> str:
        """The passes as pipeline text."""
        return ",".join(str(spec(each.pass_)) for each in self.steps)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Return the recipe in a TOML file; its paths count from the folder of the file.

        Raises UsageError for a key or an option that does not exist, and for values of the wrong type.
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                data = file.read(LARGEST + 1)
            text = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UsageError(f"the recipe {path} cannot be read: {reason}") from None
        if len(data) > LARGEST:
            raise UsageError(f"the recipe {path} has more than {LARGEST >> 20} MiB: is it a recipe?")
        return cls.parse(text, str(path), path.parent)

    @classmethod
    def parse(cls, text: str, where: str = "the recipe", folder: Path | None = None) -> Recipe:
        """Return the recipe that ``text`` holds; errors begin with ``where``, paths count from ``folder``."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            table = tomllib.loads(text)
            return _recipe(table, folder or Path())
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not TOML: {error}") from None
        except UsageError as error:
            raise type(error)(f"{where}: {error}") from None
        except RecursionError:
            raise UsageError(
                f"{where} is nested too deeply: lists and tables of recipes hold one or two levels"
            ) from None
        except ValueError:  # Python reads no integer of thousands of digits
            raise UsageError(f"{where} holds a number of too many digits") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as TOML; paths are written from the folder of the file."""
        path = Path(path)
        try:
            text = self.to_toml(path.parent).encode()
        except UnicodeEncodeError as error:
            name = error.object[: error.end].rpartition('"')[2]
            problem = f"a recipe cannot hold a name that is not UTF-8, such as that of '{name}': rename the file"
            raise UsageError(problem) from None
        with whole(path, f"the recipe {path}") as file:
            file.write(text)

    def to_toml(self, folder: Path | None = None) -> str:
        """Return the text of the file; every option is written out, so that other defaults do not change it."""
        text = [f"# Made by {versions()}.", "", f"seed = {self.seed}", f"validate = {written(self.validate)}"]
        text += [] if self.target is None else [f"target = {written(_from(folder, self.target))}"]
        text += [] if self.threads == 1 else [f"threads = {self.threads}"]
        text += [] if self.batch is None else [f"batch = {self.batch}"]
        text += [] if self.min_sqnr is None else [f"min-sqnr = {written(self.min_sqnr)}"]
        text += [] if self.score is None else [f"score = {written(self.score)}"]
        text += [] if self.max_score_drop is None else [f"max-score-drop = {written(self.max_score_drop)}"]
        text += ["", "[outputs]", *lines(self.outputs)] if self.outputs else []
        text += ["", "[calibration]", *lines(_relative(self.calibration, folder))]
        for each in self.steps:
            text += ["", "[[step]]", f"pass = {written(each.pass_.name)}", *lines(_options(each.pass_))]
            text += [f"latency = {written(each.latency)}"] if each.latency else []
            text += ["[step.chosen]", *lines(each.chosen)] if each.chosen else []
        return "\n".join(text) + "\n"


# Reading


def _recipe(table: Mapping[str, Any], folder: Path) -> Recipe:
    known(table, KEYS, "")
    calibration = dict(table_of(table, "calibration"))
    known(calibration, CALIBRATION, "[calibration] ")
    source = typed(calibration, "source", str, "text")
    if source not in (None, "none", "random", FROM_PYTHON):
        calibration["source"] = str(folder / source)
    if "stats" in calibration:
        stats = calibration["stats"]
        if not isinstance(stats, list) or not all(isinstance(each, str) for each in stats):
            raise UsageError("[calibration] stats takes a list of paths")
        calibration["stats"] = [str(folder / each) for each in stats]
    for key in ("mean", "std", "scale"):
        values = calibration.get(key, 0.0)
        if not all(is_number(each) for each in (values if isinstance(values, list) else [values])):
            raise UsageError(f"[calibration] {key} takes a number or a list of them, not {shown(values)}")
    steps = table.get("step", [])
    if not isinstance(steps, list) or not steps or not all(isinstance(each, dict) for each in steps):
        raise UsageError('there are no steps: write [[step]] and under it pass = "..." for each pass')
    validate, seed = table.get("validate", "full"), typed(table, "seed", int, "an integer")
    if validate not in ("full", "none"):
        raise UsageError(f'validate is "full" or "none", not {shown(validate)}')
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"seed is 0 or more, not {seed}" if seed < 0 else f"seed is at most {2**63 - 1}")
    tolerance = table.get("min-sqnr")
    if tolerance is not None and not is_number(tolerance):
        raise UsageError(f"min-sqnr takes a number of dB, not {shown(tolerance)}")
    made = [ingredient for number, step in enumerate(steps, 1) for ingredient in _ingredients(step, number)]
    target = typed(table, "target", str, "the name of a target, or a file that ends with .toml")
    drop = table.get("max-score-drop")
    if drop is not None and not is_number(drop):
        raise UsageError(f"max-score-drop takes a share like 0.005, not {shown(drop)}")
    return Recipe(
        tuple(made),
        calibration,
        None if tolerance is None else float(tolerance),
        validate,
        seed or 0,
        parse({name: str(kind) for name, kind in table_of(table, "outputs").items()}),
        typed(table, "score", str, "text"),
        None if drop is None else float(drop),
        str(folder / target) if target is not None and target.endswith(".toml") else target,
        1 if (threads := typed(table, "threads", int, "an integer, 0 for all")) is None else threads,
        typed(table, "batch", int, "an integer"),
    )


def _ingredients(table: Mapping[str, Any], number: int) -> list[Ingredient]:
    """Return the pass of one step and, behind it, one pass for each override that does not skip its layers."""
    where = f"step {number}"
    name = table.get("pass")
    if not isinstance(name, str):
        raise UsageError(f'{where} names no pass: write pass = "lowrank" or another name')
    class_ = registry.find(name)
    overrides = table.get("override", [])
    if not isinstance(overrides, list) or not all(isinstance(each, dict) for each in overrides):
        raise UsageError(f"{where} ({name}): write its overrides as [[step.override]]")
    latency, chosen = table.get("latency", []), table.get("chosen", {})
    if not isinstance(latency, list) or not all(is_number(each) for each in latency):
        raise UsageError(f"{where} ({name}): latency takes a list of numbers")
    if not isinstance(chosen, dict) or not all(isinstance(each, str) for each in chosen.values()):
        raise UsageError(f"{where} ({name}): chosen is a table of texts by layer")
    options = {key: value for key, value in table.items() if key not in STEP}
    parts, excluded = [], _texts(options.get("exclude", ()))
    for each in overrides:
        layers = _texts(each.get("layers", ()))
        own = {key: value for key, value in each.items() if key not in OVERRIDE}
        if not layers:
            raise UsageError(f'{where} ({name}): an override says which layers it is for: layers = "/head/*"')
        skip = each.get("skip", False)
        if not isinstance(skip, bool):
            raise UsageError(f"{where} ({name}): skip takes true or false, not {shown(skip)}")
        if skip == bool(own):
            raise UsageError(f"{where} ({name}): an override either has skip = true or gives options")
        if own and class_.quantizes:
            raise UsageError(f"{where} ({name}): {name} runs once, so its overrides can only skip = true")
        excluded += layers
        parts += [Ingredient(_made(class_, name, {**options, **own, "only": layers}, where))] if own else []
    if excluded:
        options["exclude"] = excluded
    main = Ingredient(_made(class_, name, options, where), tuple(map(float, latency)), chosen)
    return [main, *(replace(each, pass_=_without(each.pass_)) for each in parts)]


def _made(class_: type[Pass], name: str, options: Mapping[str, Any], where: str) -> Pass:
    try:
        return make(class_, Step(name, {key: _scalars(key, value) for key, value in options.items()}))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _without(pass_: Pass) -> Pass:
    """Return the pass of an override without the layers that its step leaves out: ``only`` is enough."""
    return replace(pass_, exclude=()) if isinstance(pass_, Selected) else pass_


def _scalars(key: str, value: object) -> object:
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, (list, dict)) for each in value)):
        raise SpecError(f"the option {key} takes numbers, text, true, false and lists of them")
    return value


def _texts(value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(each, str) for each in values):
        raise UsageError(f"names of layers are text or a list of texts, not {shown(value)}")
    return [str(each) for each in values]


# Writing


def _options(pass_: Pass) -> dict[str, object]:
    """Return all options of a pass that TOML can say: it has no word for none."""
    values = {each.name.replace("_", "-"): getattr(pass_, each.name) for each in ordered(type(pass_))}
    return {key: value for key, value in values.items() if value is not None and value != ()}


def _relative(calibration: Mapping[str, object], folder: Path | None) -> dict[str, object]:
    found = {key: value for key, value in calibration.items() if value is not None and value != []}
    if folder is None:
        return found

    def path(value: object) -> str:
        return Path(os.path.relpath(str(value), folder)).as_posix()

    if found.get("source") not in (None, "none", "random", FROM_PYTHON):
        found["source"] = path(found["source"])
    if "stats" in found:
        found["stats"] = [path(each) for each in cast("Iterable[object]", found["stats"])]
    return found


def _from(folder: Path | None, target: str) -> str:
    """Return the target as a recipe in this folder names it."""
    is_file = target.endswith(".toml") and folder is not None
    return Path(os.path.relpath(target, folder)).as_posix() if is_file else target
