from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsqueeze import Depthwise, Int8, LowRank, Prune, Sparsify
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.contract.selection import Selected
from onnxsqueeze.engine.options import Option, make, options, spec
from onnxsqueeze.engine.registry import build
from onnxsqueeze.engine.syntax import parse
from onnxsqueeze.errors import PassError, UsageError


@dataclass(frozen=True)
class Nothing(Pass):
    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "do nothing"

    def plan(self, view: Any, stats: Any) -> Iterator[Site | Skip]:
        return iter(())

    def apply(self, site: Site, graph: Any) -> None:
        """Leave the graph alone."""


@dataclass(frozen=True)
class Sample(Nothing):
    name: ClassVar[str] = "sample"

    energy: float = 0.98
    """The share of the
    output energy to keep."""
    min_rank: int = 1
    flag: bool = True
    label: str = ""
    exclude: tuple[str, ...] = ("head",)
    sizes: tuple[int, ...] = field(default_factory=tuple)
    mode: Literal["svd", "ols", 3] = "svd"
    limit: int | None = 8
    choice: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy is a share in (0, 1], not {self.energy:g}")


@dataclass(frozen=True)
class Demanding(Nothing):
    name: ClassVar[str] = "demanding"

    ratio: float


@dataclass(frozen=True)
class Choosy(Selected):
    name: ClassVar[str] = "choosy"
    summary: ClassVar[str] = "for a test"

    rank: int = 1
    _: KW_ONLY
    exclude: tuple[str, ...] = ()
    """Own words."""
    last: bool = False

    def plan(self, view: Any, stats: Any) -> Iterator[Site | Skip]:
        return iter(())

    def apply(self, site: Site, graph: Any) -> None:
        """Leave the graph alone."""


def built(text: str, pass_: type[Pass] = Sample) -> Any:
    (step,) = parse(text)
    return make(pass_, step)


TEXTS = st.sampled_from(["", "none", "1", "true", "a b", ",", '"', "/head/*", "nan"])
SAMPLES = st.builds(
    Sample,
    energy=st.sampled_from([0.98, 1.0, 1e-7, 1 / 3]),
    min_rank=st.integers(),
    flag=st.booleans(),
    label=TEXTS,
    exclude=st.sampled_from([(), ("head",), ("none",), ("1", "a,b"), ("", "", "x y")])
    | TEXTS.map(lambda text: (text,)),
    sizes=st.sampled_from([(), (1,), (0, -3)]),
    mode=st.sampled_from(["svd", "ols", 3]),
    limit=st.sampled_from([None, 8, 0, -1]),
    choice=st.sampled_from(["auto", 0.5, 2.0, float("inf")]),
)


@settings(max_examples=300, deadline=None)
@given(SAMPLES)
def test_the_text_of_a_pass_builds_the_same_pass(sample: Sample) -> None:
    again = built(str(spec(sample)))

    assert again == sample
    assert repr(again) == repr(sample)


def test_options_at_their_default_are_not_written() -> None:
    assert str(spec(Sample())) == "sample"
    assert str(spec(Sample(min_rank=4, exclude=()))) == "sample{min-rank=4 exclude=none}"
    assert str(spec(Demanding(0.5))) == "demanding{ratio=0.5}"


def test_values_are_converted_to_the_type_of_the_field() -> None:
    sample = built("sample{energy=1 min-rank=1e3 exclude=body sizes=1,2 limit=none flag=false choice=2}")

    assert sample == Sample(1.0, 1000, False, "", ("body",), (1, 2), "svd", None, 2.0)
    assert type(sample.energy) is float
    assert type(sample.min_rank) is int


GOLDEN = [
    (
        "sample{rank=3}",
        "sample: no option 'rank'; it has energy, min-rank, flag, label, exclude, sizes, mode, limit, choice; "
        "did you mean 'min-rank'?",
    ),
    ("sample{energy=high}", "sample: energy takes a number, not high"),
    ("sample{energy}", "sample: energy takes a number, not true (write key=value)"),
    ("sample{energy=nan}", "sample: energy takes a number, not nan"),
    (
        "sample{energy=0.9,min-rank}",
        "sample: energy takes a number, not 0.9,min-rank (a comma makes a list: separate options by blanks)",
    ),
    ("sample{min-rank=1.5}", "sample: min-rank takes an integer, not 1.5"),
    ("sample{min-rank=inf}", "sample: min-rank takes an integer, not inf"),
    ("sample{flag=1}", "sample: flag takes true or false, not 1"),
    ("sample{label=3}", "sample: label takes text, not 3 (text that looks like a number stands in quotes)"),
    (
        "sample{exclude=a,3}",
        "sample: exclude takes text, with commas, not a,3 (text that looks like a number stands in quotes)",
    ),
    ("sample{sizes=a}", "sample: sizes takes integers, with commas, not a"),
    ("sample{mode=sdv}", "sample: mode takes svd or ols or 3, not sdv; did you mean svd?"),
    ("sample{limit=x}", "sample: limit takes an integer or none, not x"),
    ("sample{energy=2}", "sample: energy is a share in (0, 1], not 2"),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_an_error_names_the_option_the_value_and_the_way_out(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        built(text)

    assert str(error.value) == expected


def test_a_pass_without_options_says_so() -> None:
    with pytest.raises(UsageError, match=r"^nothing: no option 'x'; it has none$"):
        built("nothing{x}", Nothing)


def test_an_option_without_a_default_has_to_be_given() -> None:
    with pytest.raises(UsageError, match=r"^demanding: the option 'ratio' has to be given: a number$"):
        built("demanding", Demanding)
    assert built("demanding{ratio=1}", Demanding) == Demanding(1.0)


def test_a_field_that_text_cannot_hold_is_a_bug_of_the_pass() -> None:
    @dataclass(frozen=True)
    class Odd(Nothing):
        table: dict[str, int] = field(default_factory=dict)

    with pytest.raises(PassError, match=r"Odd.table has the type .*, which pipeline text cannot hold"):
        make(Odd, parse("odd")[0])


def test_options_are_listed_with_their_meaning() -> None:
    listed = options(Sample)

    assert listed[0] == Option("energy", "a number", "0.98", "The share of the output energy to keep.")
    assert listed[1] == Option("min-rank", "an integer", "1", "")
    assert [each.default for each in listed][3:6] == ['""', "head", "none"]
    assert options(Demanding) == (Option("ratio", "a number", None, ""),)


def test_an_option_that_is_declared_again_stands_where_that_is_and_a_meaning_is_inherited() -> None:
    found = {each.key: each.meaning for each in options(Choosy)}

    assert list(found) == ["only", "rank", "exclude", "last"]
    assert found["only"].startswith("Rewrite only the layers")
    assert found["exclude"] == "Own words."
    assert str(spec(Choosy(2, last=True, only=("a",), exclude=("b",)))) == "choosy{only=a rank=2 exclude=b last}"
    assert built("choosy{only=a rank=2 exclude=b last}", Choosy) == Choosy(2, only=("a",), exclude=("b",), last=True)


@pytest.mark.parametrize(
    ("only", "exclude", "names", "found"),
    [
        ((), (), ("a", "b"), (True, False)),
        (("a*",), (), ("a1",), (True, False)),
        (("a*",), (), ("b", "c"), (False, False)),
        (("a*",), ("b",), ("a1", "b"), (False, True)),
        (("a*",), ("b",), ("b",), (False, False)),
        ((), ("[ab]",), ("", "b"), (False, True)),
    ],
)
def test_places_are_chosen_by_any_of_their_names(
    only: tuple[str, ...], exclude: tuple[str, ...], names: tuple[str, ...], found: tuple[bool, bool]
) -> None:
    pass_ = Choosy(only=only, exclude=exclude)

    assert (pass_.wanted(names), pass_.excluded(names)) == found


@pytest.mark.parametrize(
    ("pass_", "text"),
    [
        (Prune(0.5, only=("a",), steps=2, heads=True), "prune{ratio=0.5 heads only=a steps=2}"),
        (LowRank(refit=False, only=("a",), rank=8), "lowrank{rank=8 only=a refit=false}"),
        (Depthwise(refit=False, exclude=("a",), rank=8), "depthwise{rank=8 exclude=a refit=false}"),
        (Sparsify(0.3, only=("a",), exclude=("b",)), "sparsify{ratio=0.3 only=a exclude=b}"),
        (Int8(0.1, symmetric=True, only=("a",)), "int8{max-drop=0.1 only=a symmetric}"),
    ],
)  # fmt: skip
def test_options_of_the_passes_keep_their_order_in_text(pass_: Pass, text: str) -> None:
    assert str(spec(pass_)) == text


def test_a_number_alone_is_the_value_of_the_first_option() -> None:
    assert build("bits{3}") == build("bits{weights=3}")
    assert str(parse("bits{3 activations=8}")[0]) == "bits{3 activations=8}"
    with pytest.raises(UsageError, match="given twice"):
        build("bits{3 weights=3}")
    with pytest.raises(UsageError, match="an option is key or key=value"):
        build("bits{activations=8 3}")
