"""What users may ask of ``auto``, as text, and what is best for it."""

from __future__ import annotations

import pytest

from onnxsqueeze.errors import SpecError, UsageError
from onnxsqueeze.report.search import Figures
from onnxsqueeze.search.wishes import Wish, is_auto, wish

HALF_FAST = Figures(0.5, 0.5, 0.01, 0.01)
SMALL_SLOW = Figures(0.2, 1.0, 0.001, 0.001)


@pytest.mark.parametrize(
    ("text", "limits", "best"),
    [
        ("auto", {"drop": 0.005}, "trade"),
        ("auto{0.5}", {"latency": 0.5}, "error"),
        ("auto{latency=50%}", {"latency": 0.5}, "error"),
        ("auto{size=0.15}", {"size": 0.15}, "error"),
        ("auto{packed=2MB}", {"packed": 0.5}, "error"),
        ("auto{size=400kB}", {"size": 0.1}, "error"),
        ("auto{drop=0.5%}", {"drop": 0.005}, "trade"),
        ("auto{sqnr=30}", {"error": 0.001}, "trade"),
        ("auto{latency=0.5 drop=1%}", {"latency": 0.5, "drop": 0.01}, "size"),
        ("auto{size=0.1 drop=1%}", {"size": 0.1, "drop": 0.01}, "latency"),
        ("auto{size=0.1 latency=0.5 best=packed}", {"size": 0.1, "latency": 0.5}, "packed"),
    ],
)
def test_text_says_what_is_limited_and_what_is_best(text: str, limits: dict[str, float], best: str) -> None:
    found = wish(text, 4_000_000, False, None, None)

    assert found.limits == pytest.approx(limits)
    assert found.best == best
    assert "at most" in found.words()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("auto{latency=2ms}", "latency takes a share like 0.5 or 50%, not 2ms"),
        ("auto{size=much}", "or an amount like 2MB, not much"),
        ("auto{size=0}", "size takes a share"),
        ("auto{drop=1% sqnr=30}", "drop one of them"),
        ("auto{time=1}", "no option 'time'"),
        ("auto{best=nothing}", "best takes"),
    ],
)
def test_what_cannot_be_asked_for_is_said(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        wish(text, 4_000_000, False, None, None)


def test_text_that_does_not_parse_points_at_the_place() -> None:
    with pytest.raises(SpecError):
        wish("auto{latency=}", 1, False, None, None)


def test_a_limit_of_a_score_counts_only_with_a_score() -> None:
    assert wish("auto", 1, True, 0.02, None).limits == {"drop": 0.02}
    assert wish("auto{latency=0.5}", 1, False, 0.02, None).limits == {"latency": 0.5}
    assert wish("auto{latency=0.5}", 1, False, None, 20.0).limits == pytest.approx({"latency": 0.5, "error": 0.01})


def test_auto_stands_alone() -> None:
    assert is_auto(" auto{size=0.1}")
    assert is_auto("auto")
    assert not is_auto("int8")
    assert not is_auto(None)
    with pytest.raises(UsageError, match="auto stands alone"):
        is_auto("auto,int8")
    with pytest.raises(UsageError, match="auto stands alone"):
        is_auto("lowrank, auto{size=0.1}")


def test_keeping_limits_comes_before_being_best() -> None:
    fast = Wish({"latency": 0.6}, "error")

    assert fast.excess(HALF_FAST) == 0 < fast.excess(SMALL_SLOW)
    assert fast.rank(HALF_FAST) < fast.rank(SMALL_SLOW)
    assert Wish({}, "error").rank(SMALL_SLOW) < Wish({}, "error").rank(HALF_FAST)
    assert Wish({}, "trade").value(SMALL_SLOW) == pytest.approx(0.2**0.5)
    assert fast.stricter(0.9).limits == pytest.approx({"latency": 0.54})
