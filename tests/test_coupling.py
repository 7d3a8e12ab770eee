from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import MODELS, feeds, parse

from onnxsqueeze import codec, squeeze
from onnxsqueeze.channel_removal import disagreement
from onnxsqueeze.coupling import Coupling, Group, couple
from onnxsqueeze.view import View

SHIPPED = Path(__file__).parents[1] / "models"


def groups(model: onnx.ModelProto) -> tuple[codec.Graph, Coupling]:
    graph = codec.load(model)
    return graph, couple(View(graph))


def quarter(coupling: Coupling, seed: int = 0) -> dict[Group, list[int]]:
    """Random units, a quarter of each group that may be pruned."""
    rng = np.random.default_rng(seed)
    return {
        group: sorted(rng.choice(group.size, -(-group.size // 4), replace=False).tolist())
        for group in coupling.groups
        if not group.blocked
    }


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "dwcnn"])
def test_a_quarter_of_all_channels_of_a_shipped_model_leaves_as_if_nothing_read_them(name: str) -> None:
    graph = squeeze(str(SHIPPED / f"{name}.onnx"), "clean,canonical", validate="none").graph
    coupling = couple(View(graph))
    with np.load(SHIPPED / f"{name}.calib.npz", allow_pickle=False) as arrays:
        feed = {key: arrays[key][:4] for key in arrays}

    assert [group.blocked for group in coupling.groups if group.blocked] == ["it reaches the output 'logits'"]
    assert disagreement(graph, coupling, quarter(coupling), [feed]) < 1e-4


@pytest.mark.parametrize("name", list(MODELS))
def test_what_may_leave_a_small_model_leaves_as_if_nothing_read_it(name: str) -> None:
    model = MODELS[name]()
    graph, coupling = groups(model)

    assert disagreement(graph, coupling, quarter(coupling), feeds(model, 2)) < 1e-4


def test_a_chain_of_convolutions_has_a_group_for_each_but_the_last() -> None:
    _, coupling = groups(
        parse("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[8, 3, 1, 1] w1, float[8] b1, float[4, 8, 1, 1] w2> {
            a = Conv(x, w1, b1)
            r = Relu(a)
            y = Conv(r, w2)
        }""")
    )
    first, last = coupling.groups

    assert [(s.constant, s.axis, s.role) for s in first.slots] == [
        ("w1", 0, "producer"),
        ("b1", 0, "carrier"),
        ("w2", 1, "consumer"),
    ]
    assert (first.name, first.kind, first.size, first.blocked) == ("a", "channels", 8, "")
    assert {name: axis for name, (axis, _) in first.tensors.items()} == {"a": 1, "r": 1}
    assert last.blocked == "it reaches the output 'y'"
