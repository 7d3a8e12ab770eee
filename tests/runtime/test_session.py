from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear_models import constant, model
from onnx import helper

from onnxsqueeze.errors import FeedError, ModelError, UnmeasuredError
from onnxsqueeze.runtime.session import Instrument, Session, shortened

NODE = helper.make_node("MatMul", ["x", "w"], ["y"])
PROTO = model([NODE], [constant("w", np.eye(4))], {"x": ["n", 4]}, {"y": ["n", 4]})  # type: ignore[list-item]


def test_a_model_runs_from_a_message_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(PROTO.SerializeToString())
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}

    for source in (PROTO, PROTO.SerializeToString(), tmp_path / "m.onnx"):
        session = Session(source)
        assert (session.inputs, session.outputs) == (("x",), ("y",))
        assert np.array_equal(np.asarray(session.run(feed)["y"]), feed["x"])
    assert session.run(feed, []) == {}


def test_what_does_not_load_and_what_does_not_fit_are_sentences() -> None:
    with pytest.raises(ModelError, match=r"ONNX Runtime \S+ does not load the model: "):
        Session(b"nothing of the kind")
    with pytest.raises(FeedError, match=r"the model does not run on the feed \(x \[2, 3\]\)"):
        Session(PROTO).run({"x": np.zeros((2, 3), np.float32)})


def test_feeds_are_cut_to_samples_where_the_model_takes_fewer() -> None:
    feed = {"x": np.zeros((5, 4), np.float32)}

    assert shortened(Session(PROTO), feed, 2)["x"].shape == (2, 4)
    assert shortened(Session(PROTO), feed, 7)["x"].shape == (5, 4)


@pytest.mark.parametrize(("refused", "level"), [(["all"], "basic"), (["all", "basic"], "none")])
def test_an_instrument_runs_with_fewer_optimizations_where_it_must(
    refused: list[str], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Fussy(Session):
        def __init__(self, model: Any, optimize: str = "all", threads: int = 0) -> None:
            super().__init__(model, optimize=optimize, threads=threads)
            opened.append(optimize)

        def run(self, *arguments: Any) -> dict[str, object]:
            if opened[-1] in refused:
                raise FeedError("a node that only runs when it is folded")
            return super().run(*arguments)

    monkeypatch.setattr("onnxsqueeze.runtime.session.Session", Fussy)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    assert set(Instrument(PROTO).run(feed)) == {"y"}
    assert opened[-1] == level
    refused += ["basic", "none"]
    with pytest.raises(UnmeasuredError, match="a model that was instrumented does not run"):
        Instrument(PROTO).run(feed)
