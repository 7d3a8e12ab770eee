from __future__ import annotations

import pytest

from onnxsqueeze.targets.profiles import default, find, names
from onnxsqueeze.targets.times import Shape

TIMES = default().times


def ratio(op: str, weight: tuple[int, ...], group: int = 1) -> float:
    one, other = TIMES.layer(op, weight, 1000.0, group)
    return other / one


def test_a_dense_conv_gains_the_more_the_more_it_reads() -> None:
    ratios = [ratio("Conv", (64, c, 3, 3)) for c in (3, 16, 64, 256)]

    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.35


def test_a_depthwise_conv_loses() -> None:
    assert ratio("Conv", (96, 1, 3, 3), group=96) > 2
    assert ratio("Conv", (96, 48, 3, 3), group=2) < 1


def test_a_matrix_is_read_along_its_inputs() -> None:
    assert TIMES.layer("MatMul", (512, 64), 100.0) == TIMES.layer("Gemm", (64, 512), 100.0, transposed=True)


@pytest.mark.parametrize("op", ["Add", "Mul", "Concat", "Sigmoid"])
def test_times_are_in_proportion_to_what_is_made(op: str) -> None:
    one, other = TIMES.carried(op, 1000.0), TIMES.carried(op, 2000.0)

    assert other == (2 * one[0], 2 * one[1])
    assert one[1] < one[0]


def test_the_integer_kernel_of_average_pooling_is_far_slower() -> None:
    one, other = TIMES.carried("AveragePool", 1e4)

    assert other > one + 2 * (TIMES.quantize + TIMES.dequantize) * 1e4


def test_what_is_not_known_costs_nothing_either_way() -> None:
    assert TIMES.carried("Flatten", 1e6) == (0.0, 0.0)


def test_a_border_costs_more_than_an_elementwise_operator_gains_in_int8() -> None:
    size = 1e4
    one, other = TIMES.carried("Add", size)

    assert one - other < 2 * TIMES.call + (TIMES.quantize + TIMES.dequantize) * size


def test_work_rounds_channels_up_to_whole_blocks() -> None:
    work = default().work

    assert work.of([Shape(1, 1)], None) == work.of([Shape(1, work.block)], None)
    assert work.of([Shape(1, 1)], None) < work.of([Shape(1, work.block + 1)], None)
    assert work.of([Shape(1, 1)], 1) == work.of([Shape(1, 1)], None) + work.node


@pytest.mark.parametrize("name", names())
def test_a_target_says_that_dense_integers_win_by_its_gain_where_they_do(name: str) -> None:
    times = find(name).times
    one, other = times.layer("Conv", (256, 256, 1, 1), 1000.0)

    assert other < one
    assert other == times.gain * 1000.0 * (times.conv[1][0] + times.conv[1][1] * 256)


def test_a_weight_that_is_read_for_one_row_costs_more_than_its_products() -> None:
    web = find("ort-web").times
    one, eight = (web.layer("Gemm", (256, 256), rows * 256, transposed=True) for rows in (1, 8))

    assert one[1] > 1.2 * one[0]
    assert eight[1] < 0.8 * eight[0]
    shares = find("ort-web").parallel.on(1)
    assert web.on(shares, 8.0).weight[1] == pytest.approx(web.weight[1] / 8)
