"""Pipeline text, ``lowrank{energy=0.98}, int8``, to steps and back; whatever prints, parses.

.. code-block:: text

    pipeline = step ("," step)*
    step     = name [ "{" option* "}" ]             options are separated by blanks
    option   = key [ "=" value ("," value)* ]       a key alone is true; "-" and "_" in a key are the same
             | number                               the value of the first option of the pass: bits{4}
    value    = integer | number | true | false | none | word | "quoted" | 'quoted'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import NoReturn

from onnxsqueeze.errors import SpecError

__all__ = ["Step", "format", "format_value", "parse"]

ANY = re.compile(".", re.DOTALL)
BLANKS = re.compile(r"\s+")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
WORD = re.compile(r"[^\s,={}()\"'\\]+")
PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.:-]*")
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf|nan", re.IGNORECASE)
WORDS = {"true": True, "false": False, "none": None}
ESCAPES = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}
MAX_DIGITS = 300
WINDOW = 72


@dataclass(frozen=True)
class Step:
    """One pass of a pipeline by name, with the options that were written down.

    Values are int, float, bool, str, None or tuples of them. What the text cannot tell apart is one: a tuple of one is
    its element, an empty tuple is None, and ``min_rank`` is ``min-rank``. The key "" stands for the first option of the
    pass, with a number. Raises SpecError for anything else.
    """

    name: str
    options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = [key for key, value in self.options.items() if key or not _is_number(value)]
        for word in (self.name, *keys):
            if not NAME.fullmatch(word):
                raise SpecError(f"{word!r} is not a name: letters, digits, '-' and '_' make one")
        options = {key.replace("_", "-"): _canonical(value) for key, value in self.options.items()}
        object.__setattr__(self, "options", options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}{{{' '.join(_option(key, value) for key, value in self.options.items())}}}"


def parse(text: str) -> tuple[Step, ...]:
    """Return the steps that ``text`` names, at least one; SpecError points at the first bad character.

    >>> [step.name for step in parse("lowrank{ratio=0.6}, int8")]
    ['lowrank', 'int8']
    """
    return _Reader(text).pipeline()


def format(steps: Iterable[Step]) -> str:
    """Return text that parses back to ``steps``."""
    return ",".join(str(step) for step in steps)


def format_value(value: object) -> str:
    """Return the text of one option value, as it stands after ``key=``."""
    value = _canonical(value)
    if isinstance(value, tuple):
        return ",".join(format_value(each) for each in value)
    if isinstance(value, str):
        safe = PLAIN.fullmatch(value) and value not in WORDS and not NUMBER.fullmatch(value)
        return value if safe else f'"{_escape(value)}"'
    for word, meaning in WORDS.items():
        if value is meaning:
            return word
    return repr(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _option(key: str, value: object) -> str:
    if not key:
        return format_value(value)
    return key if value is True else f"{key}={format_value(value)}"


def _escape(text: str) -> str:
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escaped)
    return text


def _canonical(value: object) -> object:
    if isinstance(value, (tuple, list)):
        values = tuple(_scalar(each) for each in value)
        return values if len(values) > 1 else values[0] if values else None
    return _scalar(value)


def _scalar(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral) and abs(value) < 10 ** (MAX_DIGITS - 1):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    raise SpecError(f"an option cannot hold {value!r}: it takes numbers, text, true, false, none and lists of them")


class _Reader:
    """A recursive-descent parser that stands at ``text[at]``, never on a blank between two tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.take(BLANKS)

    def pipeline(self) -> tuple[Step, ...]:
        steps = [self.step()]
        while self.accept(","):
            steps.append(self.step())
        if self.next in ("(", ")"):
            self.refuse("options stand in braces, not in parentheses: 'lowrank{energy=0.98}'")
        if self.next == "}":
            self.refuse("this brace was never opened")
        if self.next:
            self.refuse("passes are separated by commas, and their options stand in braces")
        return tuple(steps)

    def step(self) -> Step:
        name = self.take(NAME)
        if not self.text.strip():
            self.refuse("the pipeline is empty: name a pass, like lowrank,int8")
        if not name:
            missing = self.next in ("", ",")
            self.refuse("a pass is missing here" if missing else "a pass has a name of letters, digits and '-'")
        if self.next == "=":
            self.refuse("options stand in braces, and the shell needs quotes around them: -p 'lowrank{energy=0.98}'")
        self.take(BLANKS)
        options: dict[str, object] = {}
        opened = self.at
        if self.accept("{"):
            while not self.accept("}"):
                if not self.next:
                    self.refuse(
                        "this brace is never closed (the shell needs quotes around a pipeline with blanks)", opened
                    )
                self.option(options)
        return Step(name, options)

    def option(self, options: dict[str, object]) -> None:
        start = self.at
        key = self.take(NAME).replace("_", "-")
        if not key and (not NUMBER.match(self.text, self.at) or options):
            self.refuse_option()
        if key in options:
            self.refuse(f"the option {key} is given twice", start)
        if not key:
            options[key] = self.value()
            if not _is_number(options[key]):
                self.refuse("a value without its key is a number", start)
            return
        options[key] = True
        self.take(BLANKS)
        if self.accept("="):
            values = [self.value()]
            while self.accept(","):
                values.append(self.value())
            options[key] = _canonical(values)
            if self.next == "=" and len(values) > 1:
                self.refuse("a comma makes a list: separate options by blanks")
        if self.next not in ("", "}") and not self.text[self.at - 1].isspace():
            self.refuse_option()

    def refuse_option(self) -> NoReturn:
        if self.next == ",":
            self.refuse("a comma makes a list: separate options by blanks")
        if NAME.match(self.next):
            self.refuse("separate options by blanks")
        self.refuse("an option is key or key=value; a value with such a character has to stand in quotes")

    def value(self) -> object:
        start = self.at
        if self.next in ('"', "'"):
            text = self.quoted()
            self.take(BLANKS)
            return text
        word = self.take(WORD)
        if not word:
            missing = self.next in ("", ",", "}")
            self.refuse(
                "a value is missing here" if missing else "a value with such a character has to stand in quotes"
            )
        self.take(BLANKS)
        if word in WORDS:
            return WORDS[word]
        if not NUMBER.fullmatch(word):
            return word
        if len(word) > MAX_DIGITS:
            self.refuse(f"this number has more than {MAX_DIGITS} digits", start)
        return int(word) if INTEGER.fullmatch(word) else float(word)

    def quoted(self) -> str:
        start = self.at
        quote = self.take(ANY)
        characters = []
        while (character := self.take(ANY)) != quote:
            if character == "\\":
                character = ESCAPES.get(self.take(ANY), "")
                if not character:
                    self.refuse(
                        "a backslash stands before \\ \" ' n r t only: write \\\\ for the backslash itself", self.at - 2
                    )
            if not character:
                self.refuse("this quote is never closed", start)
            characters.append(character)
        return "".join(characters)

    @property
    def next(self) -> str:
        """The character ahead, "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str]) -> str:
        """Step over what ``pattern`` matches here and return it, "" if it does not match."""
        match = pattern.match(self.text, self.at)
        if not match:
            return ""
        self.at = match.end()
        return match.group()

    def accept(self, token: str) -> bool:
        """Step over ``token`` and the blanks behind it if it stands here."""
        if self.next != token:
            return False
        self.at += 1
        self.take(BLANKS)
        return True

    def refuse(self, message: str, at: int | None = None) -> NoReturn:
        """Raise SpecError with a caret under ``at``, in a window of the text that fits a terminal."""
        at = self.at if at is None else at
        line = "".join(character if character.isprintable() else " " for character in self.text)
        start = max(0, min(at - WINDOW // 2, len(line) - WINDOW))
        raise SpecError(f"{message}\n  {line[start : start + WINDOW]}\n  {' ' * (at - start)}^")
