from __future__ import annotations

import numpy as np
import onnx
import pytest
from linear_models import conv_model, correlated
from numpy.typing import NDArray

from onnxsqueeze import squeeze
from onnxsqueeze.errors import UsageError


def separable_weight(channels: int, rank: int) -> NDArray[np.float64]:
    """A weight that is a sum of ``rank`` depthwise-separable ones, and of no low rank otherwise."""
    rng = np.random.default_rng(0)
    mixing, kernels = rng.normal(size=(rank, channels, channels)), rng.normal(size=(rank, channels, 3, 3))
    return np.asarray(np.einsum("roc,rcij->ocij", mixing, kernels)) / channels


def conv(weight: NDArray[np.float64]) -> onnx.ModelProto:
    return conv_model(weight, [10, 10], np.ones(len(weight)), pads=[1, 1, 1, 1])


def test_a_separable_convolution_is_found_without_being_told() -> None:
    result = squeeze(conv(separable_weight(64, 2)), "depthwise", correlated(12, (64, 10, 10)))

    (site,) = result.report.steps[-1].done
    assert site.detail["rank"] == 2
    assert site.detail["form"] == "depthwise"
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 60
    assert result.report.after.macs / result.report.before.macs < 0.3  # type: ignore[operator]


def test_branches_are_depthwise_and_pointwise_convolutions_added_up_with_one_bias() -> None:
    result = squeeze(conv(separable_weight(64, 2)), "depthwise{rank=2}", correlated(12, (64, 10, 10)))

    nodes = result.graph.nodes
    assert sorted(n.op for n in nodes) == ["Add", "Conv", "Conv", "Conv", "Conv"]
    assert sorted(int(n.attrs.get("group", 1)) for n in nodes if n.op == "Conv") == [1, 1, 64, 64]
    assert sum(len(n.inputs) == 3 for n in nodes) == 1
    assert all(n.inputs[1].shape[2:] in ([1, 1], (1, 1)) for n in nodes if len(n.inputs) == 3)


def test_a_convolution_that_low_rank_does_better_is_left_to_it() -> None:
    rng = np.random.default_rng(0)
    weight = np.einsum("orj,rci->ocij", rng.normal(size=(48, 8, 3)), rng.normal(size=(8, 48, 3))) / 20

    step = squeeze(conv(weight), "depthwise", correlated(8, (48, 10, 10))).report.steps[-1]

    assert not step.done
    assert [skip.reason for skip in step.skipped] == ["low-rank factors have less error at the same time"]


def test_layers_without_a_kernel_or_with_groups_are_skipped_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    flat = conv_model(rng.normal(size=(32, 32, 1, 1)), [8, 8])
    grouped = conv_model(rng.normal(size=(32, 16, 3, 3)), [8, 8], group=2)
    reasons = [
        squeeze(m, "depthwise", correlated(4, (32, 8, 8))).report.steps[-1].skipped[0].reason for m in (flat, grouped)
    ]

    assert reasons == ["it has no kernel to separate", "it is a grouped convolution"]


@pytest.mark.parametrize("stride", [1, 2])
def test_few_branches_answer_in_the_neighbourhood_and_more_of_them_nearer(stride: int) -> None:
    rng = np.random.default_rng(2)
    proto = conv_model(rng.normal(size=(48, 48, 3, 3)) / 20, [20, 20], strides=[stride, stride], pads=[1, 1, 1, 1])
    feeds = correlated(8, (48, 20, 20))
    found = [squeeze(proto, f"depthwise{{rank={r}}}", feeds).report.sqnr_db for r in (1, 2, 4)]

    assert found[0] is not None
    assert 3 < found[0] < found[1] < found[2]  # type: ignore[operator]


@pytest.mark.parametrize("text", ["ratio=0.5 rank=2", "ratio=0", "rank=0", "max-error=1"])
def test_contradictory_and_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        squeeze(conv(separable_weight(16, 1)), f"depthwise{{{text}}}")
