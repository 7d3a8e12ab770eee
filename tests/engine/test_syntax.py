from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsqueeze.engine.syntax import Step, format, format_value, parse
from onnxsqueeze.errors import SpecError

NAMES = st.sampled_from(["a", "lowrank", "min-rank", "min_rank", "Bn_3", "x-", "true", "none", "inf", "e5"])
SCALARS = (
    st.sampled_from([None, True, False, "true", "false", "none", "nan", "inf", "1", "1e5", "-3", ".5", "", "/h*"])
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.text(",{}=\"'\\ \nn()", max_size=4)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3).map(tuple)
STEPS = st.builds(Step, NAMES, st.lists(st.tuples(NAMES, VALUES), max_size=2).map(dict))


def typed(steps: tuple[Step, ...]) -> object:
    """Equality that tells 1 from True and 1.0."""
    return [(step.name, [(key, repr(value)) for key, value in step.options.items()]) for step in steps]


def options(text: str) -> dict[str, object]:
    (step,) = parse(f"a{{{text}}}")
    return step.options


def message(text: str) -> str:
    with pytest.raises(SpecError) as error:
        parse(text)
    return str(error.value)


@settings(max_examples=2000, deadline=None)
@given(st.tuples(STEPS) | st.tuples(STEPS, STEPS))
def test_whatever_prints_parses(steps: tuple[Step, ...]) -> None:
    assert typed(parse(format(steps))) == typed(steps)


@settings(max_examples=2000, deadline=None)
@given(st.text("ab1.-=,{}\"'\\ n", max_size=16) | st.text(max_size=16))
def test_any_text_parses_or_is_refused_with_a_caret(text: str) -> None:
    try:
        steps = parse(text)
    except SpecError as error:
        lines = str(error).split("\n")

        assert len(lines) == 3
        assert lines[2].strip() == "^"
        assert len(lines[2]) <= len(lines[1]) + 1
    else:
        assert typed(parse(format(steps))) == typed(steps)


def test_a_pipeline_is_its_steps_in_order() -> None:
    assert parse("lowrank{energy=0.98}, int8") == (Step("lowrank", {"energy": 0.98}), Step("int8"))


def test_values_have_the_types_they_look_like() -> None:
    found = options("i=3 f=1e-3 g=.5 t=true n=none w=per-channel q=\"/head/*\" s='a b' l=1,2.5,x flag z=false")

    assert found == {
        "i": 3,
        "f": 0.001,
        "g": 0.5,
        "t": True,
        "n": None,
        "w": "per-channel",
        "q": "/head/*",
        "s": "a b",
        "l": (1, 2.5, "x"),
        "flag": True,
        "z": False,
    }
    assert type(found["i"]) is int


def test_words_in_quotes_are_text() -> None:
    assert options('a="1" b=\'true\' c="none"') == {"a": "1", "b": "true", "c": "none"}


def test_blanks_are_free_around_every_token() -> None:
    assert parse("\n a {\tx = 1 , 2\n y } , b{ } ") == (Step("a", {"x": (1, 2), "y": True}), Step("b"))


def test_keys_may_be_written_as_in_python() -> None:
    assert options("min_rank=4") == {"min-rank": 4}
    assert str(Step("a", {"min_rank": 4})) == "a{min-rank=4}"


def test_lists_of_one_and_of_none_are_values() -> None:
    assert Step("a", {"x": (1,), "y": ()}) == Step("a", {"x": 1, "y": None})


def test_numbers_that_look_like_python_numbers_are_printed_as_such() -> None:
    assert format_value(1e-7) == "1e-07"
    assert format_value(-math.inf) == "-inf"
    assert format_value(0.98) == "0.98"


def test_globs_and_odd_text_are_printed_in_quotes() -> None:
    step = Step("a", {"x": "/head/*", "y": 'a"b\\\n', "z": "plain/name:0"})

    assert str(step) == r'a{x="/head/*" y="a\"b\\\n" z=plain/name:0}'


@pytest.mark.parametrize("value", [object(), {"a": 1}, ((1,),), 10**400, b"x"])
def test_a_value_without_text_is_refused(value: object) -> None:
    with pytest.raises(SpecError, match="an option cannot hold"):
        Step("a", {"x": value})


@pytest.mark.parametrize("name", ["", "a b", "1a", "a.b", "ä", "-a"])
def test_a_name_without_text_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="is not a name"):
        Step(name)
    with pytest.raises(SpecError, match="is not a name"):
        Step("a", {name: "text"})


GOLDEN = [
    ("", "the pipeline is empty: name a pass, like lowrank,int8\n  \n  ^"),
    ("a,", "a pass is missing here\n  a,\n    ^"),
    (",a", "a pass is missing here\n  ,a\n  ^"),
    (
        "lowrank{energy=0.99,min-rank=2}",
        "a comma makes a list: separate options by blanks\n"
        "  lowrank{energy=0.99,min-rank=2}\n"
        "                              ^",
    ),
    ("a{x,y=1}", "a comma makes a list: separate options by blanks\n  a{x,y=1}\n     ^"),
    (
        "lowrankenergy=0.99",
        "options stand in braces, and the shell needs quotes around them: -p 'lowrank{energy=0.98}'\n"
        "  lowrankenergy=0.99\n"
        "               ^",
    ),
    (
        "lowrank(energy=0.98)",
        "options stand in braces, not in parentheses: 'lowrank{energy=0.98}'\n  lowrank(energy=0.98)\n         ^",
    ),
    (
        "lowrank{energy=0.99",
        "this brace is never closed (the shell needs quotes around a pipeline with blanks)\n"
        "  lowrank{energy=0.99\n"
        "         ^",
    ),
    ("a}", "this brace was never opened\n  a}\n   ^"),
    ("a b", "passes are separated by commas, and their options stand in braces\n  a b\n    ^"),
    ("a{x=1 x}", "the option x is given twice\n  a{x=1 x}\n        ^"),
    ("a{min-rank=1 min_rank=2}", "the option min-rank is given twice\n  a{min-rank=1 min_rank=2}\n               ^"),
    ("a{x=}", "a value is missing here\n  a{x=}\n      ^"),
    ("a{x=1,}", "a value is missing here\n  a{x=1,}\n        ^"),
    ("a{x=(1)}", "a value with such a character has to stand in quotes\n  a{x=(1)}\n      ^"),
    ('a{x="b', 'this quote is never closed\n  a{x="b\n      ^'),
    ('a{x="b"c}', 'separate options by blanks\n  a{x="b"c}\n         ^'),
    ("3a", "a pass has a name of letters, digits and '-'\n  3a\n  ^"),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_an_error_points_at_the_first_bad_character(text: str, expected: str) -> None:
    assert message(text) == expected


def test_an_error_in_a_long_pipeline_shows_the_part_around_it() -> None:
    shown, caret = message("a," * 100 + "!" + ",a" * 100).split("\n")[1:]

    assert len(shown) == 74
    assert shown[caret.index("^")] == "!"


def test_a_number_that_would_take_long_to_read_is_refused() -> None:
    assert message(f"a{{x={'9' * 100_000}}}").startswith("this number has more than 300 digits")
