from __future__ import annotations

from itertools import pairwise, product
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsqueeze.budget.spend import Option, combined, hull, spend, uniform, within

costs = st.integers(1, 100).map(float)
errors = st.integers(0, 1000).map(lambda n: n / 100)
options = st.lists(st.builds(Option, costs, errors), min_size=1, max_size=6)
layers = st.lists(options, min_size=1, max_size=4)


def total(chosen: list[Option]) -> tuple[float, float]:
    return sum(o.cost for o in chosen), sum(o.error for o in chosen)


@given(options)
def test_the_hull_keeps_the_cheapest_and_the_most_exact_option_and_bends_one_way(items: list[Option]) -> None:
    kept = hull(items)

    assert kept[-1].cost == min(o.cost for o in items)
    assert kept[0].error == min(o.error for o in items)
    slopes = [(b.error - a.error) / (a.cost - b.cost) for a, b in pairwise(kept)]
    assert all(one < two for one, two in pairwise(slopes))
    for option in kept:
        assert not any(o.cost < option.cost and o.error <= option.error for o in items)


@given(layers, st.floats(0, 1))
@settings(max_examples=120)
def test_a_cost_budget_is_kept_and_never_spent_worse_than_on_all_layers_alike(
    items: list[list[Option]], share: float
) -> None:
    low = sum(min(o.cost for o in each) for each in items)
    high = sum(hull(each)[0].cost for each in items)
    budget = low + share * (high - low)

    chosen = spend(items, cost=budget)

    assert total(chosen)[0] <= budget + 1e-9
    alike = uniform(items, budget)
    if alike is not None:
        assert total(chosen)[1] <= total(alike)[1] + 1e-9


@given(layers, st.floats(0, 1))
@settings(max_examples=120)
def test_an_error_budget_is_kept_and_buys_what_it_can(items: list[list[Option]], share: float) -> None:
    least = sum(min(o.error for o in each) for each in items)
    budget = least + share * 10

    chosen = spend(items, error=budget)

    assert total(chosen)[1] <= budget + 1e-9
    assert total(chosen)[0] <= sum(hull(each)[0].cost for each in items) + 1e-9


@given(st.lists(options, min_size=2, max_size=3))
def test_layers_taken_together_reach_the_hull_of_all_their_choices(items: list[list[Option]]) -> None:
    every = [Option(sum(o.cost for o in pick), sum(o.error for o in pick)) for pick in product(*items)]

    found = combined(items)

    reached = {(round(o.cost, 6), round(o.error, 6)) for o in found}
    assert {(round(o.cost, 6), round(o.error, 6)) for o in hull(every)} <= reached
    assert all(len(o.choice) == len(items) for o in found)  # type: ignore[arg-type]


def test_the_layer_that_matters_less_is_squeezed_more() -> None:
    curve = [(100.0, 0.0), (50.0, 1.0), (25.0, 3.0)]
    important = [Option(c, 10 * e, "important") for c, e in curve]
    other = [Option(c, e, "other") for c, e in curve]

    chosen = spend([important, other], cost=130.0)

    assert chosen[0].cost == 100.0
    assert chosen[1].cost == 25.0


def test_when_nothing_fits_the_cheapest_options_are_returned() -> None:
    chosen = spend([[Option(10, 0), Option(5, 1)], [Option(8, 0)]], cost=1.0)

    assert [o.cost for o in chosen] == pytest.approx([5, 8])
    assert uniform([[Option(10, 0)]], 1.0) is None


def test_the_limit_shrinks_by_what_the_measured_error_is_over_the_budget() -> None:
    limits: list[float] = []

    def solve(limit: float) -> float:
        limits.append(limit)
        return limit

    found, _ = within(0.1, solve, lambda found: 2 * found, -1.0, tries=5)

    assert found == limits[-1]
    assert limits == pytest.approx([0.1, 0.04])


@pytest.mark.parametrize("error", [nan, inf])
def test_an_error_that_is_no_number_shrinks_the_limit_tenfold(error: float) -> None:
    found, _ = within(0.1, lambda limit: limit, lambda found: error if found > 0.05 else found, -1.0, tries=5)

    assert found == pytest.approx(0.01)


@pytest.mark.parametrize(("lossless", "wanted"), [(0.05, 0.0), (0.2, -1.0)])
def test_what_was_not_measured_is_never_taken(lossless: float, wanted: float) -> None:
    measured: list[float] = []

    def error_of(found: float) -> float:
        measured.append(found)
        return 1.0 if found else lossless

    found, _ = within(0.1, lambda limit: limit, error_of, -1.0, tries=2)

    assert measured == pytest.approx([0.1, 0.008, 0.0])
    assert found == wanted


def test_a_limit_that_uses_little_of_the_budget_grows_while_that_holds() -> None:
    limits: list[float] = []

    def solve(limit: float) -> float:
        limits.append(limit)
        return limit

    found, error = within(0.1, solve, lambda found: found / 4, -1.0, tries=5, grow=2)
    assert limits == pytest.approx([0.1, 0.38])
    assert (found, error) == pytest.approx((0.38, 0.095))

    steep, error = within(0.1, solve, lambda found: 0.01 if found <= 0.1 else 1.0, -1.0, tries=5, grow=2)
    assert (steep, error) == (0.1, 0.01)
    assert limits[2:] == pytest.approx([0.1, 0.95, (0.1 * 0.95) ** 0.5])
    assert within(0.1, solve, lambda found: found / 4, -1.0, tries=5) == (0.1, 0.025)
