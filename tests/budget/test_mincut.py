from __future__ import annotations

from itertools import product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsqueeze.budget.mincut import Choice, cut

Border = dict[int, float]
Case = tuple[list[Choice], Border, Border]
costs = st.integers(0, 9).map(float)


def total(choices: list[Choice], quantize: Border, dequantize: Border, int8: set[int]) -> float:
    """The cost as the docstring of ``cut`` states it."""
    maker = {tensor: choice.key for choice in choices for tensor in choice.makes}
    in_int8 = {tensor for tensor, key in maker.items() if key in int8}
    cost = sum(c.as_int8 if c.key in int8 else c.as_float for c in choices)
    quantized = {t for c in choices if c.key in int8 for t in c.reads if t not in in_int8}
    restored = {t for c in choices if c.key not in int8 for t in c.reads if t in in_int8}
    return cost + sum(quantize[t] for t in quantized) + sum(dequantize[t] for t in restored)


@st.composite
def graphs(draw: st.DrawFn) -> Case:
    """Up to six nodes, node i making tensor 100 + i and reading earlier tensors or one of two inputs."""
    count = draw(st.integers(1, 6))
    choices = []
    for i in range(count):
        known = [50, 51, *range(100, 100 + i)]
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
        only_float = draw(st.integers(0, 5)) == 0
        choices.append(Choice(i, draw(costs), inf if only_float else draw(costs), reads, [100 + i]))
    tensors = [50, 51, *range(100, 100 + count)]
    return choices, {t: draw(costs) for t in tensors}, {t: draw(costs) for t in tensors}


@settings(max_examples=120, deadline=None)
@given(graphs())
def test_no_other_choice_costs_less(case: Case) -> None:
    choices, quantize, dequantize = case
    keys = [choice.key for choice in choices]
    chosen = cut(choices, quantize, dequantize)
    subsets = ({k for k, bit in zip(keys, bits, strict=True) if bit} for bits in product((0, 1), repeat=len(keys)))
    least = min(total(choices, quantize, dequantize, subset) for subset in subsets)

    assert total(choices, quantize, dequantize, chosen) == pytest.approx(least)


def test_a_node_that_is_slow_in_int8_follows_when_borders_around_it_cost_more() -> None:
    chain = [Choice(0, 10, 2, [50], [100]), Choice(1, 1, 3, [100], [101]), Choice(2, 10, 2, [101], [102])]
    cheap = dict.fromkeys((50, 100, 101, 102), 0.5)
    dear = dict.fromkeys((50, 100, 101, 102), 1.5)

    assert cut(chain, cheap, cheap) == {0, 2}
    assert cut(chain, dear, dear) == {0, 1, 2}


def test_a_tensor_is_quantized_once_for_all_its_readers() -> None:
    readers = [Choice(i, 2, 0, [50], [100 + i]) for i in range(3)]

    assert cut(readers, {50: 5.0}, {}) == {0, 1, 2}
    assert cut(readers, {50: 7.0}, {}) == set()


def test_a_node_that_cannot_run_in_int8_stays_in_float() -> None:
    assert cut([Choice(0, 1e9, inf, [50], [100])], {50: 0.0}, {100: 0.0}) == set()
