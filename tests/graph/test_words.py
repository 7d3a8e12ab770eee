from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxsqueeze.graph.words import described, type_name


@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float32, "float32"), (np.object_, "string"), (np.str_, "string"), (np.int64, "int64")]
)
def test_types_have_the_names_that_onnx_gives_them(dtype: type, name: str) -> None:
    assert type_name(dtype) == name
    assert described(gs.Variable("x", dtype, ["N", 1])) == f"{name}[N, 1]"


def test_what_is_not_known_is_a_question_mark() -> None:
    assert described(gs.Variable("x")) == "?[...]"
    assert described(gs.Variable("x", np.float32, [None, "", 3])) == "float32[?, ?, 3]"
