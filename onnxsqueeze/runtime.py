"""The only door to ONNX Runtime: opening sessions, running feeds, timing, and words for what goes wrong."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import comb, inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxsqueeze import codec
from onnxsqueeze.codec import Graph
from onnxsqueeze.cost import file_size
from onnxsqueeze.errors import FeedError, ModelError

__all__ = ["Latency", "Session", "first_samples", "latency", "profile"]

_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_PROTO_LIMIT = 2**31 - 1
IN_MEMORY = 1 << 26
"""Bytes; a larger graph from a file is written to a temporary folder, from which ONNX Runtime maps its weights."""
_SOURCE_LINE = r"\S+\.(cc|h|cpp|hpp):\d+ ([\w:<>&*, ~]*::[\w~]+\([^()]*\)( const)?|\S+)( \[\w+\])? ?"
"""Where in ONNX Runtime an error arose: file, line, and the name or the whole signature of a C++ function."""
CONFIDENCE = 0.999
"""How sure the interval of a ratio of times is."""
LEAST = 11
"""Rounds that are timed at least, unless a run takes over half a second: from 11 on there is an interval."""
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter
"""Seconds of this thread, where the system counts them finely enough."""
_UNRUN = 'without calibration data, validate="none" squeezes it without running it'
_SENTENCES = (
    (
        r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)",
        r"its opset \1 of \2 is newer than the \3 that it knows; export the model with opset \3, or update onnxruntime",
    ),
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        r"its IR version \1 is newer than the \2 that it knows; export the model again, or update onnxruntime",
    ),
    (
        r"(?:Fatal error: )?([\w.]*):?\b(\w+)\(-?\d+\) is not a registered function/op",
        rf"it has no operator '\2' of domain '\1'; {_UNRUN}",
    ),
    (
        r"No Op registered for (\w+) with domain_version of (\d+)",
        rf"it has no operator '\1' in opset \2; {_UNRUN}",
    ),
    (
        r"(?:NOT_IMPLEMENTED : )?Could not find an implementation for (\w+)\((\d+)\)",
        rf"it has no kernel for the operator '\1' (since opset \2) on these types; {_UNRUN}",
    ),
)
"""What ONNX Runtime says to its developers, and what it means to a user."""


class Session:
    """An ONNX Runtime session on the CPU provider.

    ``folder`` is where external weights lie; a graph and a path know that themselves. ``optimize`` is ``all`` (as users
    run it), ``basic`` or ``none``. ``threads`` is the number of intra-op threads, 0 for all cores. ``optimized`` names
    a file that receives the graph as ONNX Runtime has rewritten it, ``profile`` the beginning of the name of the file
    that ``end_profile`` writes. ``exact_sums`` keeps integer sums from saturating on every processor, at a price in
    speed. Raises ModelError with ONNX Runtime's reason in one sentence.
    """

    def __init__(
        self,
        model: Graph | onnx.ModelProto | bytes | Path,
        folder: Path | None = None,
        *,
        optimize: str = "all",
        threads: int = 0,
        optimized: Path | None = None,
        profile: Path | None = None,
        exact_sums: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimize]
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        # threads that wait by spinning take from others, and from this process's own algebra, what they do not use
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if exact_sums:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if isinstance(model, Graph):
            folder = model.folder
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        with ExitStack() as stack:
            source = _source(model, stack)
            try:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise ModelError(f"ONNX Runtime {ort.__version__} does not load the model: {explain(error)}") from error
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())
        self.inputs: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())

    def run(self, feed: Mapping[str, NDArray[np.generic]], outputs: Sequence[str] | None = None) -> dict[str, object]:
        """Return the named outputs (all if None) for one feed; values are arrays, or lists for sequences."""
        names = list(self.outputs if outputs is None else outputs)
        if not names:  # ONNX Runtime takes no names for all names
            return {}
        try:
            values = self._session.run(names, dict(feed))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
            raise FeedError(f"the model does not run on the feed ({shapes}): {explain(error)}") from error
        return dict(zip(names, values, strict=True))

    def end_profile(self) -> str:
        """Stop measuring and return the path of the file with the times, as JSON."""
        return str(self._session.end_profiling())


def _source(model: Graph | onnx.ModelProto | bytes | Path, stack: ExitStack) -> bytes | str:
    """Return the model as ONNX Runtime takes it: bytes, or the path of a file that lives as long as ``stack``."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, Path):
        return str(model)
    if isinstance(model, Graph):
        if file_size(model) > (IN_MEMORY if model.file is not None else _PROTO_LIMIT):
            folder = stack.enter_context(TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True))
            codec.save(model, Path(folder, "model.onnx"))
            return str(Path(folder, "model.onnx"))
        model = codec.encode(model)
    if model.ByteSize() > _PROTO_LIMIT:
        raise ModelError("a model over 2 GB cannot be run from a ModelProto: save it and give its path")
    return bytes(model.SerializeToString())


def explain(error: Exception) -> str:
    """Return what ONNX Runtime said, without its codes and C++ source lines, in at most 240 characters."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(_SOURCE_LINE, "", text)
    text = re.sub(r"(Load model from .* failed:|Exception during initialization: )", "", text).strip()
    text = text or type(error).__name__
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, text):
            return found.expand(sentence)
    return text if len(text) <= 240 else text[:239] + "…"


def first_samples(
    session: Session,
    feed: Mapping[str, NDArray[np.generic]],
    count: int,
    further: Mapping[str, NDArray[np.generic]] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Return the first ``count`` samples of a feed if its arrays share a first axis and the model runs on them.

    ``further`` are inputs that the model needs besides; they are not cut and not returned.
    """
    lengths = {value.shape[0] for value in feed.values() if value.ndim}
    if len(lengths) != 1 or next(iter(lengths)) <= count:
        return dict(feed)
    cut = {name: value[:count] if value.ndim else value for name, value in feed.items()}
    try:
        session.run({**cut, **(further or {})})
    except FeedError:
        return dict(feed)
    return cut


@dataclass(frozen=True)
class Latency:
    """The processor time of sessions that ran in turn: ``milliseconds`` of each for a feed, the mean over the feeds of
    the least time of each, and the last over the first, which is ``ratio``.

    With ``CONFIDENCE`` the median ratio of a round lies from ``low`` to ``high``, whatever the distribution: the
    interval between two order statistics of the rounds (the sign test).
    """

    milliseconds: tuple[float, ...]
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """The last session's time over the first's."""
        return self.milliseconds[-1] / self.milliseconds[0]


def latency(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, NDArray[np.generic]]], seconds: float = 1.0
) -> Latency:
    """Time sessions of one thread in turn on the same feeds, by the processor time of this thread.

    That time does not run while the machine does something else. Each round times every session on one feed, best of
    three (once, if a run takes over 20 ms). Each feed has at least three rounds, two feeds if a run takes over 20 ms;
    one round is all if a run takes over 2 s. ``seconds`` are processor time.
    """
    rounds: list[list[float]] = []
    first = max(_milliseconds(session, feeds[0]) for session in sessions)
    repeat = 3 if first < 20 else 1
    used = feeds if first < 20 else feeds[:2]
    least = max(3 * len(used), LEAST) if first < 500 else 3 * len(used) if first < 2000 else 1
    spent = 0.0
    while (spent < 1000 * seconds and len(rounds) < 500) or len(rounds) < least:
        feed = used[len(rounds) % len(used)]
        runs = [[_milliseconds(session, feed) for _ in range(repeat)] for session in sessions]
        rounds.append([min(times) for times in runs])
        spent += sum(map(sum, runs))
    best = [
        [min(times) for times in zip(*rounds[i :: len(used)], strict=True)] for i in range(min(len(used), len(rounds)))
    ]
    low, high = _interval([times[-1] / times[0] for times in rounds])
    return Latency(tuple(sum(times) / len(best) for times in zip(*best, strict=True)), low, high)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return order statistics between which the median lies with ``CONFIDENCE``; all numbers if there are too few."""
    ordered, count = sorted(values), len(values)
    outside, chance = -1, 0.0
    while 2 * (chance := chance + comb(count, outside + 1) / 2**count) <= 1 - CONFIDENCE:
        outside += 1
    return (ordered[outside], ordered[-1 - outside]) if outside >= 0 else (0.0, inf)


def _milliseconds(session: Session, feed: Mapping[str, NDArray[np.generic]]) -> float:
    start = _clock()
    session.run(feed)
    return (_clock() - start) * 1000


def profile(
    model: onnx.ModelProto, folder: Path | None, feeds: Sequence[Mapping[str, NDArray[np.generic]]], runs: int = 8
) -> tuple[dict[tuple[str, str], float], float]:
    """Run the model with ONNX Runtime's profiler; return median milliseconds per (name, operator), and of a run.

    The nodes are those that ONNX Runtime has made of the model: a fused one carries the name of one of its nodes, or
    of the tensor that it makes. Two runs more are made to warm up, and not counted.
    """
    with tempfile.TemporaryDirectory() as where:
        session = Session(model, folder, threads=1, profile=Path(where) / "profile")
        for i in range(runs + 2):
            session.run(feeds[i % min(len(feeds), runs)])
        events = json.loads(Path(session.end_profile()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = {}
    whole: list[float] = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            whole.append(event["dur"] / 1000)
        elif event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = re.sub(r"(_token_\d+|_nchwc)*$", "", name.removesuffix("_kernel_time"))
            nodes.setdefault((name, str(event["args"].get("op_name", ""))), []).append(event["dur"] / 1000)
    return {key: median(_per_run(times, runs + 2)[2:]) for key, times in nodes.items()}, median(whole[2:])


def _per_run(times: Sequence[float], runs: int) -> list[float]:
    """Sum what one node took in each run, in which it may run several times; fewer runs count as none at all."""
    parts = max(1, len(times) // runs)
    sums = [sum(times[i : i + parts]) for i in range(0, len(times), parts)]
    return sums + [0.0] * (runs - len(sums))
