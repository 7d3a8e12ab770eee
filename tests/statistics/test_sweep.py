from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxsqueeze.errors import UnmeasuredError
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.runtime.session import Instrument
from onnxsqueeze.statistics import sweep
from onnxsqueeze.statistics.histogram import BINS, Histogram, stride
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.statistics.needs import Channels, Mean, Need, Range
from onnxsqueeze.statistics.store import load_statistics, save_statistics
from onnxsqueeze.statistics.sweep import collect

Array = npt.NDArray[Any]
Feeds = list[dict[str, Array]]
NEEDS: list[Need] = [Range("y"), Range("z"), Mean("y", 1), Mean("z", -1), Range("x")]


def chain(rank: int = 4, opset: int = 17) -> Graph:
    """Return x -> Identity -> y -> Relu -> z, of dynamic shape."""
    dims = [f"d{axis}" for axis in range(rank)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("x", "z")]
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
    return decode(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def feeds_of(shapes: Sequence[Sequence[int]], seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for shape in shapes]


def both_ways(graph: Graph, needs: Sequence[Need], feeds: Feeds) -> tuple[Statistics, Statistics]:
    """Return what is found where ONNX Runtime reduces, and where it hands over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxsqueeze.statistics.sweep.SMALL", 0)
        reduced = collect(graph, needs, feeds)
        patch.setattr("onnxsqueeze.statistics.sweep.SMALL", 1 << 62)
        return reduced, collect(graph, needs, feeds)


def assert_alike(one: Statistics, two: Statistics, sampled: bool = True) -> None:
    assert one.ranges.keys() == two.ranges.keys() and one.moments.keys() == two.moments.keys()
    for need, range_ in one.ranges.items():
        other = two.ranges[need]
        for part in ("low", "high", "low_sum", "high_sum", "elements", "samples", "exponent", "masked"):
            assert getattr(range_, part) == getattr(other, part), part
        assert not sampled or (np.array_equal(range_.counts, other.counts) and range_.zeros == other.zeros)
    for key, moments in one.moments.items():
        same = two.moments[key]
        assert (moments.n, moments.runs) == (same.n, same.runs)
        assert np.allclose(moments.total / max(same.n, 1), same.total / max(same.n, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 18, 22])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4), (2, 3, 5, 7), (1, 2, 3, 4, 5)])
def test_reducing_in_the_graph_finds_what_handing_over_finds(opset: int, shape: tuple[int, ...]) -> None:
    graph = chain(len(shape), opset)
    needs = [need for need in NEEDS if not isinstance(need, Mean) or len(shape) > 1]

    assert_alike(*both_ways(graph, needs, feeds_of([shape] * 5)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.just(3), st.integers(1, 6)), min_size=1, max_size=5), st.integers(0, 9))
def test_feeds_of_different_shapes_are_reduced_alike(shapes: list[tuple[int, ...]], seed: int) -> None:
    needs = [need for need in NEEDS if need != Mean("z", -1)]

    assert_alike(*both_ways(chain(3), needs, feeds_of(shapes, seed)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e35, -3e38])
@pytest.mark.parametrize("where", [0, 1, 3500, 8999])
def test_a_mask_in_one_feed_is_left_out_and_counted(value: float, where: int) -> None:
    feeds = feeds_of([(1, 9, 1000)] * 4)
    feeds[2]["x"].flat[where] = value
    found = collect(chain(3), NEEDS, feeds)

    rest = np.concatenate([-feed["x"].ravel() for feed in feeds])
    rest = rest[np.abs(rest) < 1e30]
    y = found.ranges[Range("y")]
    assert (y.low, y.high, y.masked, y.elements) == (rest.min(), rest.max(), 1, 35999)
    assert np.isfinite(found.moments[Mean("y", 1)].total).all()


def test_a_nan_that_neither_a_mean_nor_a_sample_meets_is_seen() -> None:
    feeds = feeds_of([(1, 1, 200003)] * 2)
    feeds[1]["x"][0, 0, 5] = np.nan
    found = collect(chain(3), [Range("y")], feeds)

    assert found.ranges[Range("y")].masked == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 5000))
def test_the_sample_sees_every_index_of_every_axis(shape: list[int], count: int) -> None:
    step = stride(shape, count)
    taken = np.unravel_index(np.arange(0, prod(shape), step), shape)

    for size, seen in zip(shape, taken, strict=True):
        if len(seen) >= prod(shape[shape.index(size) :]):
            assert len(set(seen.tolist())) == size
    assert all(np.gcd(step, size) == 1 for size in shape)


def test_the_sample_of_a_picture_sees_all_columns_and_channels() -> None:
    for shape in ((1, 172, 264), (1, 64, 80, 80), (8, 128, 384), (1, 96, 240, 240)):
        taken = np.unravel_index(np.arange(0, prod(shape), stride(shape, 4096)), shape)

        assert [len(np.unique(seen)) for seen in taken[1:]] == list(shape[1:])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1), st.integers(0, 40))
def test_float32_and_float64_values_fall_into_the_same_bins(values: list[float], cut: int) -> None:
    one, two, apart = Histogram(), Histogram(), Histogram()
    array = np.array(values, np.float32)
    one.update(array)
    two.update(array.astype(np.float64))
    for part in (array[:cut], array[cut:]):
        apart.update(part)

    assert np.array_equal(one.counts, two.counts) and one.zeros == two.zeros == int((array == 0).sum())
    assert np.array_equal(one.counts, apart.counts) and one.counts.sum() + one.zeros == array.size
    assert one.counts.shape == (BINS,)


def test_each_tensor_is_reduced_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[onnx.ModelProto] = []
    real = Instrument

    def session(graph: Graph, threads: int) -> Any:
        opened.append(encode(graph))
        return real(graph, threads)

    monkeypatch.setattr("onnxsqueeze.statistics.sweep.Instrument", session)
    collect(chain(3), NEEDS, feeds_of([(1, 9, 1000)]))

    reads = [node.input[0] for node in opened[0].graph.node if node.op_type == "ReduceMin"]
    assert reads == ["z", "y"]


def test_memory_does_not_grow_with_the_feeds() -> None:
    graph, peaks = chain(3), []
    feeds = feeds_of([(1, 9, 20000)])
    needs: list[Need] = [Range("y"), Mean("y", 1), Channels("z", 1, gram=True)]
    collect(graph, needs, feeds)
    for count in (16, 256):
        tracemalloc.start()
        collect(graph, needs, feeds * count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.3 * peaks[0]


def test_pooled_rows_make_the_gram_matrix_of_all_rows() -> None:
    feeds = feeds_of([(40, 6)] * 20)
    found = collect(chain(2), [Channels("y", 1, gram=True)], feeds).moments[Channels("y", 1, gram=True)]
    rows = np.concatenate([-feed["x"] for feed in feeds]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    assert found.gram is not None and found.squares is not None and found.n == 800 and found.runs == 20
    assert np.allclose(np.diag(rows.T @ rows), found.squares, rtol=1e-4)
    assert np.allclose(rows.T @ rows, found.gram, atol=1e-3)


def test_saved_statistics_come_back_with_their_number_of_feeds(tmp_path: Path) -> None:
    found = collect(chain(3), NEEDS, feeds_of([(2, 9, 1000)] * 6))
    save_statistics(tmp_path / "s.npz", {"": found})
    back = load_statistics([tmp_path / "s.npz"])[""]

    assert back.moments[Mean("y", 1)].runs == 6
    assert_alike(back, found)


def test_a_tensor_with_which_the_model_does_not_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep._session
    bad = "z"

    def session(graph: Graph, group: Any, reduced: Any, wanted: Any, count: int, threads: int) -> Any:
        if bad in wanted:
            raise UnmeasuredError("it does not run")
        return real(graph, group, reduced, wanted, count, threads)

    monkeypatch.setattr(sweep, "_session", session)
    found = collect(chain(3), NEEDS, feeds_of([(1, 9, 1000)]))
    assert {need.tensor for need in found.ranges} == {"x", "y"}
