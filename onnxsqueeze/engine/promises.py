"""What the engine holds every pass to, with a sentence for each promise that a pass can break."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine import registry
from onnxsqueeze.errors import ContractError, PassError, PlaceError, SqueezeError, UsageError
from onnxsqueeze.graph.edit import tidy
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of, walk
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.weights import Weight
from onnxsqueeze.plain import plain
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Channels, Gram, Mean, Need, Range

__all__ = ["apply", "checked", "declared", "interface", "needs", "plan", "tidied", "words", "writable"]

T = TypeVar("T")
BUILT_IN = "onnxsqueeze.passes."
DECLARED = {
    "min_opset": int,
    "cleans_first": bool,
    "float_only": bool,
    "quantizes": bool,
    "repeats": bool,
    "lossless": bool,
}


def declared(pass_: Pass) -> None:
    """Raise ContractError unless what the class of the pass says of it is of the right type."""
    for name, type_ in DECLARED.items():
        if not isinstance(getattr(pass_, name), type_):
            raise _broken(pass_, f"{name} is {_shown(getattr(pass_, name))}: {type_.__name__} is expected")
    for name in ("requires", "forbids"):
        value = getattr(pass_, name)
        if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
            raise _broken(pass_, f"{name} is {_shown(value)}: a tuple of names of passes is expected")


def needs(pass_: Pass, view: View) -> list[Need]:
    """Return the statistics that the pass asks for; ContractError if they are none."""
    found = _listed(pass_, "needs", lambda: pass_.needs(view))
    for need in found:
        if not isinstance(need, (Range, Mean, Channels, Gram)):
            raise _broken(pass_, f"needs() yields {_shown(need)}: yield Range, Mean, Channels or Gram")
    return list(dict.fromkeys(found))


def plan(pass_: Pass, view: View, stats: Statistics) -> list[Site | Skip]:
    """Return the plan of the pass; ContractError if it is none, or if making it has changed the graph."""
    before = _Print(view.graph)
    found = checked(pass_, "plan", _listed(pass_, "plan", lambda: pass_.plan(view, stats)), view)
    changed = before.change()
    if changed is not None:
        raise _broken(
            pass_, f"plan() changes the graph at '{changed}': it may only look, so move the change to apply()"
        )
    return found


def checked(pass_: Pass, method: str, found: list[Site | Skip], view: View) -> list[Site | Skip]:
    """Return the entries; ContractError unless all are sites and skips of nodes that are there, no site twice."""
    keys = {key_of(node) for node in view.nodes}
    sites: set[str] = set()
    for entry in found:
        if not isinstance(entry, (Site, Skip)):
            raise _broken(pass_, f"{method}() yields {_shown(entry)}: yield Site(key, action) or Skip(key, reason)")
        if not isinstance(entry.key, str):
            raise _broken(pass_, f"{method}() yields the key {_shown(entry.key)}: use key_of(node)")
        if entry.key not in keys and not (entry.key.endswith("]") and entry.key.rpartition("[")[0] in keys):
            raise _broken(pass_, f"{method}() names {_shown(entry.key)}, which no node makes: use key_of(node)")
        if isinstance(entry, Site):
            if entry.key in sites and not view.ambiguous:
                raise _broken(pass_, f"{method}() yields two sites for '{entry.key}': make them one")
            sites.add(entry.key)
        problem = _wrong_field(entry)
        if problem is not None:
            raise _broken(pass_, f"{method}() yields a {type(entry).__name__} for '{entry.key}' whose {problem}")
    return found


def _wrong_field(entry: Site | Skip) -> str | None:
    """Return which field of an entry is of another type than the report can show, None if none is."""
    if isinstance(entry, Skip):
        return None if isinstance(entry.reason, str) else f"reason is {_shown(entry.reason)}: give a text"
    if not isinstance(entry.action, str):
        return f"action is {_shown(entry.action)}: give a text"
    if entry.error is not None and not isinstance(entry.error, Real):
        return f"error is {_shown(entry.error)}: give a number or None"
    detail: object = entry.detail
    if not isinstance(detail, Mapping) or not all(isinstance(key, str) for key in detail):
        return f"detail is {_shown(detail)}: give a dict of JSON values by text"
    try:
        plain(detail)
    except RecursionError:
        return "detail holds itself: give a dict of JSON values"
    histogram, curve = detail.get("histogram"), detail.get("curve")
    if histogram is not None and not _has_numbers(histogram, ("counts",), ("low", "high")):
        return "histogram is none: give counts, a list of numbers, low and high"
    if curve is not None and not _has_numbers(curve, ("x", "y"), tuple(key for key in ("chosen",) if key in curve)):
        return "curve is none: give x and y, lists of numbers, as many of one as of the other"
    return None


def _has_numbers(table: object, lists: Sequence[str], single: Sequence[str]) -> bool:
    """Return whether a table has lists of numbers of one length, and single numbers, under these names."""
    if not isinstance(table, Mapping):
        return False
    series = [np.asarray(table[key]) if key in table else np.zeros((0, 0), object) for key in lists]
    single_ones = all(isinstance(table.get(key), Real) for key in single)
    return (
        single_ones
        and len({one.shape for one in series}) == 1
        and all(one.ndim == 1 and (one.dtype.kind in "iuf" or not one.size) for one in series)
    )


def words(pass_: Pass, method: str, found: Iterable[str]) -> list[str]:
    """Return what a method says for the report; ContractError unless it is texts."""
    said = _listed(pass_, method, lambda: found)
    for text in said:
        if not isinstance(text, str):
            raise _broken(pass_, f"{method}() yields {_shown(text)}: yield texts")
    return said


def writable(pass_: Pass, graph: Graph) -> None:
    """Encode the graph without its weights; ContractError if it holds what a model file cannot."""
    try:
        encode(graph, skeleton=True).SerializeToString()
    except (SqueezeError, MemoryError):
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise _broken(pass_, f"apply() leaves what no model file can hold ({problem})") from error


def apply(pass_: Pass, site: Site, graph: Graph) -> None:
    """Rewrite one site; what goes wrong names the place."""
    try:
        pass_.apply(site, graph)
    except (ContractError, UsageError, PlaceError, MemoryError, OSError):
        raise
    except SqueezeError as error:
        raise PlaceError(str(error), site.key, site.action) from error
    except Exception as error:
        problem = f"{type(error).__name__}: {error} (ONNXSQUEEZE_DEBUG=1 shows where)"
        if type(pass_).__module__.startswith(BUILT_IN):
            raise PlaceError(f"a bug in onnxsqueeze, {problem}", site.key, site.action) from error
        raise _broken(pass_, f"apply() fails at '{site.key}' with {problem}") from error


def tidied(pass_: Pass, graph: Graph, given: tuple[list[str], list[str]]) -> None:
    """Tidy the graph that the pass has rewritten; ContractError if it is broken, or has other inputs or outputs."""
    for node, _ in walk(graph):
        for tensor in node.outputs:
            if tensor.name and len({id(maker) for maker in tensor.inputs}) > 1:
                raise _broken(pass_, f"apply() leaves two nodes that make '{tensor.name}': remove the one it replaces")
    try:
        tidy(graph)
    except PassError as error:
        raise _broken(pass_, f"apply() leaves a broken graph: {error}") from error
    for kind, old, new in zip(("inputs", "outputs"), given, interface(graph), strict=True):
        if old != new:
            missing = [name for name in old if name not in new] or [name for name in new if name not in old] or new
            raise _broken(
                pass_, f"apply() changes the {kind} of the model at '{missing[0]}': rewrite what is between them"
            )


def interface(graph: Graph) -> tuple[list[str], list[str]]:
    """Return the names of the inputs and of the outputs."""
    return [tensor.name for tensor in graph.inputs], [tensor.name for tensor in graph.outputs]


def _listed(pass_: Pass, method: str, call: Callable[[], Iterable[T]]) -> list[T]:
    found = call()
    if not isinstance(found, Iterable):
        raise _broken(pass_, f"{method}() returns {_shown(found)}: yield from it, or return a list")
    return list(found)


def _broken(pass_: Pass, what: str) -> ContractError:
    return ContractError(f"{_who(pass_)} breaks the contract: {what}")


def _who(pass_: Pass) -> str:
    """Name the pass and where it comes from."""
    try:
        origin = registry.origin(pass_.name)
    except SqueezeError:
        origin = f"the module {type(pass_).__module__}"
    return f"the pass '{pass_.name}'" + ("" if origin == "built-in" else f" of {origin}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


class _Print:
    """What a graph looks like, to see whether it changes; weights are compared by identity where that is enough."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = self._nodes()
        self.values = {
            id(tensor): (tensor, tensor._values)
            for node, _ in walk(graph)
            for tensor in node.inputs
            if isinstance(tensor, gs.Constant)
        }

    def change(self) -> str | None:
        """Return the place of the first change since then, None if there is none."""
        new = self._nodes()
        for (key, old), (other, now) in zip(self.nodes, new, strict=False):
            if old != now:
                return key or other
        if len(new) != len(self.nodes):
            return max(self.nodes, new, key=len)[min(len(self.nodes), len(new))][0]
        for tensor, values in self.values.values():
            if tensor._values is not values and not self._loaded(values, tensor._values):
                return str(tensor.name)
        return None

    def _nodes(self) -> list[tuple[str, object]]:
        return [
            (
                key_of(node),
                (
                    id(node), node.op, node.name, [(id(t), t.name) for t in node.inputs],
                    [(id(t), t.name) for t in node.outputs], [(key, repr(_plain(v))) for key, v in node.attrs.items()],
                ),
            )
            for node, _ in walk(self.graph)
        ]  # fmt: skip

    @staticmethod
    def _loaded(old: object, new: object) -> bool:
        """Whether a weight was only read: looking at ``Constant.values`` replaces what is lazy by the array."""
        return isinstance(old, Weight) and isinstance(new, np.ndarray) and np.array_equal(old.peek(), new)


def _plain(value: object) -> object:
    """Return an attribute's value in a form that is quick to write: graphs and arrays by identity."""
    simple = (int, float, str, bytes, bool, type(None))
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, simple) else id(value)
