"""Options of a pass: text values to the typed fields of its dataclass, and back."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine.syntax import Step, format_value
from onnxsqueeze.errors import PassError, SpecError, UsageError

__all__ = ["Option", "make", "options", "ordered", "spec"]

P = typing.TypeVar("P")
EXPECTS = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}


@dataclass(frozen=True)
class Option:
    """One option of a pass as it stands in pipeline text.

    ``default`` is its text, None if the option has to be given; ``meaning`` is the docstring under the field.
    """

    key: str
    expects: str
    default: str | None
    meaning: str


def make(pass_: type[P], step: Step) -> P:
    """Return ``pass_`` with the options of ``step``, each converted to the type of its field."""
    types_ = _types(pass_)
    known = {each.name.replace("_", "-"): each for each in ordered(pass_)}
    values: dict[str, object] = {}
    for key, value in step.options.items():
        key = key or next(iter(known), "")  # a number alone is the value of the first option
        if known and known.get(key) and known[key].name in values:
            raise UsageError(f"{step.name}: the option {key!r} is given twice")
        if key not in known:
            raise UsageError(f"{step.name}: no option {key!r}; {_known(key, list(known))}")
        expected = types_[known[key].name]
        try:
            values[known[key].name] = _convert(value, expected)
        except _Mismatch:
            raise UsageError(
                f"{step.name}: {key} takes {_expects(expected)}, not {format_value(value)}{_hint(value, expected)}"
            ) from None
    for key, each in known.items():
        if _default(each) is MISSING and each.name not in values:
            raise UsageError(f"{step.name}: the option {key!r} has to be given: {_expects(types_[each.name])}")
    try:
        return pass_(**values)
    except ValueError as error:
        raise UsageError(f"{step.name}: {error}") from error


def spec(pass_: Pass) -> Step:
    """Return the step that builds ``pass_`` again; options at their default are left out."""
    values = {
        each.name: getattr(pass_, each.name)
        for each in ordered(type(pass_))
        if (_default(each) is MISSING or getattr(pass_, each.name) != _default(each))
    }
    try:
        return Step(pass_.name, values)
    except SpecError as error:
        raise UsageError(f"{pass_.name}: {error}") from None


def options(pass_: type[Pass]) -> tuple[Option, ...]:
    """Return the options of a pass in their order."""
    types_, meanings = _types(pass_), _meanings(pass_)
    return tuple(
        Option(
            each.name.replace("_", "-"),
            _expects(types_[each.name]),
            None if _default(each) is MISSING else format_value(_default(each)),
            meanings.get(each.name, ""),
        )
        for each in ordered(pass_)
    )


def ordered(pass_: type[Any]) -> list[Field[Any]]:
    """Return the fields that are options in the order in which they were last declared.

    A dataclass keeps a field that is declared again where its base class had it.
    """
    known = {each.name: each for each in fields(pass_) if each.init}
    names = [name for class_ in pass_.__mro__ for name in reversed(inspect.get_annotations(class_))]
    return [known[name] for name in reversed(dict.fromkeys(names)) if name in known]


def _meanings(pass_: type[Pass]) -> dict[str, str]:
    """Return the strings that stand under the fields in the source; none where there is no source."""
    found: dict[str, str] = {}
    for class_ in reversed(pass_.__mro__):
        if issubclass(class_, Pass):
            found.update(_own_meanings(class_))
    return found


def _own_meanings(pass_: type[Pass]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(pass_))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(tree.body if isinstance(tree, ast.ClassDef) else [])
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


class _Mismatch(Exception):
    """The value does not fit the type."""


def _convert(value: object, expected: object) -> object:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        return tuple(_convert(each, arguments[0]) for each in values)
    if typing.get_origin(expected) is typing.Literal:
        for each in arguments:
            if type(each) is type(value) and each == value:
                return each
        raise _Mismatch
    if arguments:
        for each in arguments:
            try:
                return _convert(value, each)
            except _Mismatch:
                continue
        raise _Mismatch
    if expected is float and type(value) is int:
        return float(value)
    if expected is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not expected or value != value:
        raise _Mismatch
    return value


def _expects(expected: object) -> str:
    """Say in words what a type takes."""
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return {int: "integers", float: "numbers", bool: "true and false", str: "text"}[arguments[0]] + ", with commas"
    if typing.get_origin(expected) is typing.Literal:
        return " or ".join(format_value(each) for each in arguments)
    if arguments:
        return " or ".join(_expects(each) for each in arguments)
    return EXPECTS[typing.cast(type, expected)]


def _known(key: str, known: list[str]) -> str:
    if not known:
        return "it has none"
    near = get_close_matches(key, known, 1)
    return f"it has {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _hint(value: object, expected: object) -> str:
    if value is True:
        return " (write key=value)"
    if isinstance(value, tuple) and typing.get_origin(expected) is not tuple:
        return " (a comma makes a list: separate options by blanks)"
    if expected is str or str in typing.get_args(expected):
        return " (text that looks like a number stands in quotes)"
    if isinstance(value, str) and typing.get_origin(expected) is typing.Literal:
        near = get_close_matches(value, [str(each) for each in typing.get_args(expected)], 1)
        return f"; did you mean {near[0]}?" if near else ""
    return ""


def _types(pass_: type[Any]) -> dict[str, object]:
    """Return the type of each option; PassError for a type that pipeline text cannot hold."""
    try:
        hints = typing.get_type_hints(pass_)
    except Exception as error:
        raise PassError(f"{pass_.__name__}: the types of its fields cannot be resolved: {error}") from error
    types_ = {each.name: hints[each.name] for each in ordered(pass_)}
    for name, each in types_.items():
        if not _has_text(each):
            raise PassError(f"{pass_.__name__}.{name} has the type {each}, which pipeline text cannot hold")
    return types_


def _has_text(expected: object) -> bool:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and arguments[0] in (int, float, bool, str)
    if typing.get_origin(expected) is typing.Literal:
        return all(type(each) in (int, str, bool) for each in arguments)
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return all(typing.get_origin(each) is not tuple and _has_text(each) for each in arguments)
    return expected in EXPECTS


def _default(each: Any) -> object:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default
