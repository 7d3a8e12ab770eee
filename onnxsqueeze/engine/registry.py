"""Names to passes: a built-in is a file of ``onnxsqueeze/passes``, a plug-in an entry point ``onnxsqueeze.passes``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module, metadata, util
from pkgutil import iter_modules

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine.options import Option, make, options, spec
from onnxsqueeze.engine.syntax import parse
from onnxsqueeze.errors import PassError, SqueezeError, UnknownPassError, UsageError

__all__ = ["GROUP", "Listing", "build", "find", "listing", "names", "origin"]

GROUP = "onnxsqueeze.passes"


@dataclass(frozen=True)
class Listing:
    """What a user sees of a pass; ``error`` says why it cannot be used, None if it can."""

    name: str
    origin: str
    summary: str
    options: tuple[Option, ...]
    error: str | None = None
    version: str | None = None
    """The version of the distribution that brings the pass, None if it is built in."""


def names() -> tuple[str, ...]:
    """Return the names of all passes in order; no pass is imported. UsageError if two have the same name."""
    return tuple(sorted(_sources()))


def find(name: str) -> type[Pass]:
    """Return the pass called ``name``; UnknownPassError suggests the nearest name."""
    sources = _sources()
    if name not in sources:
        raise _unknown(name, sources)
    source = sources[name]
    return _plug_in(source) if isinstance(source, metadata.EntryPoint) else _built_in(name, source)


def origin(name: str) -> str:
    """Return "built-in" or the distribution that brings the pass ``name``."""
    sources = _sources()
    if name not in sources:
        raise _unknown(name, sources)
    source = sources[name]
    return _distribution(source) if isinstance(source, metadata.EntryPoint) else "built-in"


def listing() -> tuple[Listing, ...]:
    """Import every pass and return what a user sees of it; a broken plug-in does not hide the others."""
    rows = []
    for name in names():
        source = _sources()[name]
        version = None if isinstance(source, str) or source.dist is None else source.dist.version
        try:
            pass_ = find(name)
            rows.append(Listing(name, origin(name), pass_.summary, options(pass_), version=version))
        except SqueezeError as error:
            rows.append(Listing(name, origin(name), "", (), str(error), version))
    return tuple(rows)


def build(pipeline: str | Pass | Sequence[str | Pass]) -> tuple[Pass, ...]:
    """Return the passes that ``pipeline`` describes, with every option converted to the type of its field.

    Raises SpecError for text that does not parse, UnknownPassError, and UsageError for options that do not fit.

    >>> build("lowrank{rank=16}")[0].rank
    16
    """
    items = list(pipeline) if isinstance(pipeline, Sequence) and not isinstance(pipeline, str) else [pipeline]
    if not items:
        raise UsageError("the pipeline is empty: name a pass, like lowrank,int8")
    passes: list[Pass] = []
    for item in items:
        if isinstance(item, str):
            passes += [make(find(step.name), step) for step in parse(item)]
        elif isinstance(item, Pass):
            if not isinstance(getattr(item, "name", None), str):
                raise UsageError(f"{type(item).__name__} is no pass: it has no name")
            make(type(item), spec(item))
            passes.append(item)
        elif isinstance(item, type) and issubclass(item, Pass):
            raise UsageError(f"a pipeline holds passes, not classes: write {item.__name__}()")
        else:
            raise UsageError(f"a pipeline holds text and passes, not {type(item).__name__}")
    return tuple(passes)


# Where passes come from


def _sources() -> dict[str, str | metadata.EntryPoint]:
    """Map each name to the module of a built-in or the entry point of a plug-in."""
    package = util.find_spec(GROUP)
    folders = package.submodule_search_locations if package else None
    sources: dict[str, str | metadata.EntryPoint] = {
        each.name.replace("_", "-"): f"{GROUP}.{each.name}"
        for each in iter_modules(folders or ())
        if not each.name.startswith("_")
    }
    for entry in metadata.entry_points(group=GROUP):
        other = sources.setdefault(entry.name, entry)
        if isinstance(other, str):
            raise UsageError(f"{_distribution(entry)} brings a pass {entry.name!r}, which is built in: uninstall it")
        if (other.value, _distribution(other)) != (entry.value, _distribution(entry)):
            raise UsageError(
                f"{_distribution(other)} and {_distribution(entry)} both bring a pass {entry.name!r}: uninstall one"
            )
    return sources


def _built_in(name: str, module: str) -> type[Pass]:
    public = [each for key, each in vars(import_module(module)).items() if not key.startswith("_")]
    classes = [each for each in public if isinstance(each, type) and each.__module__ == module]
    found = list(dict.fromkeys(each for each in classes if issubclass(each, Pass)))
    if [getattr(each, "name", None) for each in found] != [name]:
        raise PassError(f"{module} has to hold one public pass, with the name {name!r}; it holds {_classes(found)}")
    return found[0]


def _plug_in(entry: metadata.EntryPoint) -> type[Pass]:
    where = f"the pass {entry.name!r} of {_distribution(entry)}"
    try:
        found = entry.load()
    except Exception as error:
        raise UsageError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}; update or uninstall it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass)) or inspect.isabstract(found):
        raise UsageError(f"{where} is {entry.value}, which is no pass; update or uninstall it")
    if getattr(found, "name", None) != entry.name:
        raise UsageError(f"{where} calls itself {getattr(found, 'name', None)!r}; update or uninstall it")
    if "__dataclass_fields__" not in vars(found) or not isinstance(getattr(found, "summary", None), str):
        lack = "summary, a line of text" if "__dataclass_fields__" in vars(found) else "@dataclass(frozen=True)"
        raise UsageError(f"{where} lacks {lack}; update or uninstall it")
    return found


def _distribution(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else f"an unknown distribution ({entry.value})"


def _classes(found: Sequence[type[Pass]]) -> str:
    return ", ".join(each.__name__ for each in found) or "none"


def _unknown(name: str, known: Iterable[str]) -> UnknownPassError:
    if name == "auto":
        return UnknownPassError("auto is a search over pipelines, and no pass in one: call onnxsqueeze.auto()")
    near = get_close_matches(name, known, 1)
    return UnknownPassError(
        f"no pass {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}")
    )
