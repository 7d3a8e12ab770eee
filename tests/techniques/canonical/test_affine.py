from __future__ import annotations

from small_models import parse

from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.passes.canonical import Canonical
from onnxsqueeze.statistics.measured import Statistics


def test_a_shift_of_what_an_operator_makes_of_a_constant_is_left_alone() -> None:
    """Such an operator has one input, which is no variable."""
    model = parse("""g (float[2, 4, 5, 5] x) => (float[2, 3, 5, 5] y) <float[4, 1, 1] c, float[3, 4, 3, 3] w> {
        r = Relu(c) s = Constant<value_float = 2.0>() a = Add(r, s) b = Mul(x, a)
        y = Conv<pads = [1, 1, 1, 1]>(b, w) }""")

    assert all(entry.key != "a" for entry in Canonical().plan(View(decode(model)), Statistics()))
