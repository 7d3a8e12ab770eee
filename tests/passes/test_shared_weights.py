"""A weight that several nodes read is in the file once, whatever a pass does to it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from shared_models import SHARED, Model

from onnxsqueeze import squeeze
from onnxsqueeze.engine.result import Result
from onnxsqueeze.graph.walk import walk
from onnxsqueeze.runtime.session import Session

each_model = pytest.mark.parametrize("name", SHARED)


def size(proto: onnx.ModelProto) -> int:
    return int(proto.ByteSize())


def worst_db(model: Model, result: Result) -> float:
    before, after = Session(model.proto), Session(result.model)
    pairs = [(before.run(feed)["y"], after.run(feed)["y"]) for feed in model.feeds]
    one, other = (np.concatenate([np.asarray(pair[i], np.float64).ravel() for pair in pairs]) for i in (0, 1))
    return float(10 * np.log10(np.square(one - one.mean()).sum() / max(np.square(one - other).sum(), 1e-30)))


def weights(result: Result, *kinds: type[np.generic]) -> list[gs.Constant]:
    found = {id(t): t for node, _ in walk(result.graph) for t in node.inputs if isinstance(t, gs.Constant)}
    return [t for t in found.values() if np.dtype(t.dtype) in kinds and np.prod(t.shape) > 4096]


@each_model
@pytest.mark.parametrize("data", [False, True], ids=["without data", "with data"])
def test_int8_keeps_one_integer_copy_of_a_weight(name: str, data: bool) -> None:
    model = SHARED[name]()
    result = squeeze(model.proto, "int8", model.feeds if data else None)

    assert size(result.model) < model.share * size(model.proto)
    assert weights(result, np.float32) == []
    assert worst_db(model, result) > 26


@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("name", ["tokens", "branches", "siamese"])
def test_factors_of_a_shared_weight_are_shared(name: str, by: str) -> None:
    model = SHARED[name]()
    result = squeeze(model.proto, f"lowrank{{ratio=0.5 by={by} refit=false}}", model.feeds)

    assert result.report.steps[-1].done
    assert size(result.model) < 0.75 * size(model.proto)
    assert worst_db(model, result) > 8


@pytest.mark.parametrize("name", ["recurrent", "tokens", "branches", "loop", "siamese"])
def test_a_shared_weight_becomes_sparse_for_all_readers(name: str) -> None:
    model = SHARED[name]()
    result = squeeze(model.proto, "sparsify{ratio=0.5}", model.feeds)
    after = weights(result, np.float32)

    assert len(after) == len(weights(squeeze(model.proto, "clean"), np.float32))
    assert sum(np.count_nonzero(w.values) for w in after) < 0.75 * sum(w.values.size for w in after)


@each_model
@pytest.mark.parametrize(
    "pipeline", ["clean", "sparsify", "lowrank{ratio=0.5}", "lowrank{ratio=0.5 by=params}", "prune{ratio=0.7}"]
)
def test_no_pass_makes_a_shared_weight_two(name: str, pipeline: str) -> None:
    model = SHARED[name]()
    result = squeeze(model.proto, pipeline, model.feeds)

    assert size(result.model) <= 1.02 * size(model.proto)
