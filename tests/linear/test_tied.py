from __future__ import annotations

import pytest
from shared_models import SHARED

from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.linear.tied import together


def found(name: str, key: str, kept: str = "") -> Linear | str | None:
    view = View(load(SHARED[name]().proto))
    node = next(node for node in view.nodes if key_of(node) == key)
    return together(view, node, lambda each: key_of(each) != kept)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("recurrent", [f"a{i}" for i in range(6)]),
        ("branches", ["ea", "ta"]),
        ("siamese", ["zc1", "xc1"]),
        ("loop", ["a", "m"]),
    ],
)
def test_the_first_of_the_layers_on_one_weight_stands_for_all(name: str, keys: list[str]) -> None:
    first = found(name, keys[0])

    assert isinstance(first, Linear)
    assert first.keys == tuple(keys)
    assert len(first.gram.each) == len(keys)
    assert found(name, keys[1]) == f"it shares the weight of '{keys[0]}', and what is done about it"


def test_a_layer_with_a_weight_of_its_own_stands_for_itself() -> None:
    layer = found("embedding", "a")

    assert isinstance(layer, Linear)
    assert layer.keys == ("a",)


@pytest.mark.parametrize(("name", "key", "other"), [("embedding in a Gemm", "y", "e"), ("reshaped", "a", "other")])
def test_a_weight_that_no_layer_reads_too_is_left_alone(name: str, key: str, other: str) -> None:
    assert found(name, key) == f"its weight is shared with '{other}', which cannot be treated alike"


def test_a_reader_that_is_not_wanted_keeps_the_weight() -> None:
    assert found("recurrent", "a0", kept="a4") == "its weight is shared with 'a4', which cannot be treated alike"


def test_a_transposed_weight_is_shared() -> None:
    assert found("embedding", "y") == "its weight is shared"
