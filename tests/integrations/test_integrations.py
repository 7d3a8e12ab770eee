"""The adapters do what they say; each test needs the package that the adapter is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from small_models import MODELS, feeds, parse

from onnxsqueeze import FeedError


def test_an_onnx_ir_pass_leaves_its_input_alone_and_says_whether_it_did_anything() -> None:
    ir = pytest.importorskip("onnx_ir")
    from onnxsqueeze.integrations.onnx_ir import Squeeze

    proto = MODELS["conv_bn_relu"]()
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    squeeze = Squeeze("int8", feeds(proto), seed=1)
    found = ir.passes.Sequential(squeeze)(model)
    again = Squeeze("clean")(found.model)

    assert found.modified
    assert found.model is not model
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert squeeze.result is not None
    assert squeeze.result.recipe.seed == 1
    assert not again.modified


@pytest.fixture
def two_inputs() -> onnx.ModelProto:
    return parse("g (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Add(a, b) }")


def test_batches_of_any_shape_become_feeds(two_inputs: onnx.ModelProto) -> None:
    torch = pytest.importorskip("torch")
    from onnxsqueeze.integrations.torch import batches

    a, b, label = torch.zeros(4, 2), torch.ones(4, 2), torch.zeros(4)
    kinds: list[Any] = [(a, b, label), [a, b], {"b": b, "a": a, "label": label}]
    for batch in kinds:
        (feed,) = batches([batch], two_inputs)

        assert list(feed) == ["a", "b"]
        assert np.array_equal(feed["b"], np.ones((4, 2)))
    assert len(list(batches(kinds, two_inputs, 2))) == 2


def test_a_batch_is_cut_where_the_model_fixes_its_size() -> None:
    torch = pytest.importorskip("torch")
    from onnxsqueeze.integrations.torch import batches

    model = parse("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")

    assert [feed["x"].shape for feed in batches([torch.zeros(5, 3), torch.zeros(2, 3)], model)] == [(2, 3)] * 3


def test_a_batch_that_lacks_an_input_is_refused(two_inputs: onnx.ModelProto) -> None:
    torch = pytest.importorskip("torch")
    from onnxsqueeze.integrations.torch import batches

    with pytest.raises(FeedError, match="a batch of 1 tensors is not enough for the inputs a, b"):
        list(batches([torch.zeros(4, 2)], two_inputs))
    with pytest.raises(FeedError, match="the batch has a, but the model also takes b"):
        list(batches([{"a": torch.zeros(4, 2)}], two_inputs))
