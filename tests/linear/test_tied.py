from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shared_models import SHARED

from onnxsqueeze.feeds.reading import read
from onnxsqueeze.feeds.types import inputs_of
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load
from onnxsqueeze.linear.layers import Linear
from onnxsqueeze.linear.tied import together
from onnxsqueeze.statistics.store import load_statistics, save_statistics
from onnxsqueeze.statistics.sweep import collect


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


def test_the_rows_of_all_readers_add_up_in_one_matrix(tmp_path: Path) -> None:
    graph = load(SHARED["recurrent"]().proto)
    layer = found("recurrent", "a0")
    assert isinstance(layer, Linear)
    feeds = list(read("random", inputs_of(encode(graph))))
    together_, apart = collect(graph, [layer.gram], feeds), collect(graph, layer.gram.each, feeds)
    one, many = together_.of(layer.gram), apart.of(layer.gram)
    assert one is not None and many is not None
    assert one.gram is not None and many.gram is not None

    assert list(together_.moments) == [layer.gram]
    assert (one.n, one.runs) == (many.n, len(feeds))
    np.testing.assert_allclose(one.gram, many.gram, atol=1e-6 * float(np.abs(many.gram).max()))  # products in float32
    assert one.held is not None and many.held is not None
    assert one.held.n == many.held.n
    save_statistics(tmp_path / "s.npz", {"": together_})
    assert load_statistics([tmp_path / "s.npz"])[""].of(layer.gram) is not None
