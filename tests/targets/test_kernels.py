from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from onnxsqueeze.targets.kernels import CALL, DEQUANTIZE, QUANTIZE, carry_times, layer_times


def ratio(op: str, weight: tuple[int, ...], **attrs: object) -> float:
    one, other = layer_times(gs.Node(op, attrs=attrs), weight, 1000.0)
    return other / one


def test_a_dense_conv_gains_the_more_the_more_it_reads() -> None:
    ratios = [ratio("Conv", (64, c, 3, 3)) for c in (3, 16, 64, 256)]

    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.35


def test_a_depthwise_conv_loses() -> None:
    assert ratio("Conv", (96, 1, 3, 3), group=96) > 2
    assert ratio("Conv", (96, 48, 3, 3), group=2) < 1


def test_a_matrix_is_read_along_its_inputs() -> None:
    assert layer_times(gs.Node("MatMul"), (512, 64), 100.0) == layer_times(
        gs.Node("Gemm", attrs={"transB": 1}), (64, 512), 100.0
    )


@pytest.mark.parametrize("op", ["Add", "Mul", "Concat", "Sigmoid"])
def test_times_are_in_proportion_to_what_is_made(op: str) -> None:
    one, other = carry_times(op, 1000.0), carry_times(op, 2000.0)

    assert other == (2 * one[0], 2 * one[1])
    assert one[1] < one[0]


def test_the_integer_kernel_of_average_pooling_is_far_slower() -> None:
    one, other = carry_times("AveragePool", 1e4)

    assert other > one + 2 * (QUANTIZE + DEQUANTIZE) * 1e4


def test_what_is_not_known_costs_nothing_either_way() -> None:
    assert carry_times("Flatten", 1e6) == (0.0, 0.0)


def test_a_border_costs_more_than_an_elementwise_operator_gains_in_int8() -> None:
    size = 1e4
    one, other = carry_times("Add", size)

    assert one - other < 2 * CALL + (QUANTIZE + DEQUANTIZE) * size
