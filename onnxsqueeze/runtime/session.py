"""The only door to ONNX Runtime: opening sessions, running feeds, timing, and words for what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxsqueeze.errors import FeedError, ModelError, UnmeasuredError, UsageError
from onnxsqueeze.ir.encode import encode
from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.packed import is_packed
from onnxsqueeze.ir.reading import mapped
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.runtime.in_memory import InMemory, in_memory
from onnxsqueeze.runtime.messages import explain
from onnxsqueeze.runtime.threads import SESSION_THREADS

__all__ = ["Instrument", "Session", "first_samples", "nameable", "session", "shortened"]

_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_PROTO_LIMIT = 2**31 - 1
IN_MEMORY = 1 << 26
"""Bytes; a larger graph from a file is written to a temporary folder, from which ONNX Runtime maps its weights."""


class Session:
    """An ONNX Runtime session on the CPU provider.

    ``folder`` is where external weights lie; a graph and a path know that themselves. ``optimize`` is ``all`` (as users
    run it), ``basic`` or ``none``. ``threads`` is the number of intra-op threads, 0 for all cores (or what
    ``SESSION_THREADS`` says). ``optimized`` names
    a file that receives the graph as ONNX Runtime has rewritten it, ``profile`` the beginning of the name of the file
    that ``end_profile`` writes. ``exact_sums`` keeps integer sums from saturating on every processor, at a price in
    speed where they would; by default that is so for graphs whose target adds up in 32 bits, so that a plan for it does
    not hang on the processor that makes it. Raises ModelError with ONNX Runtime's reason in one sentence.
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
        exact_sums: bool | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimize]
        options.intra_op_num_threads = threads or SESSION_THREADS.get()
        options.log_severity_level = 4
        # memory planned in one block for each shape of inputs pays where one feed runs again and again, as timing does
        options.enable_mem_pattern = threads != 0
        # threads that wait by spinning take from others, and from this process's own algebra, what they do not use
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if exact_sums is None:
            exact_sums = isinstance(model, Graph) and _adds_in_32_bits(model)
        if exact_sums:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if isinstance(model, Path):
            model = nameable(model)
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
        self._halves = {value.name for value in self._session.get_inputs() if value.type == "tensor(float16)"}

    def run(self, feed: Mapping[str, NDArray[np.generic]], outputs: Sequence[str] | None = None) -> dict[str, object]:
        """Return the named outputs (all if None) for one feed; values are arrays, or lists for sequences.

        Inputs that a pass has made float16 take the float32 of the feeds.
        """
        names = list(self.outputs if outputs is None else outputs)
        if not names:  # ONNX Runtime takes no names for all names
            return {}
        given = {
            name: value.astype(np.float16) if name in self._halves and value.dtype == np.float32 else value
            for name, value in feed.items()
        }
        try:
            values = self._session.run(names, given)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
            raise FeedError(f"the model does not run on the feed ({shapes}): {explain(error)}") from error
        return dict(zip(names, values, strict=True))

    def end_profile(self) -> str:
        """Stop measuring and return the path of the file with the times, as JSON."""
        return str(self._session.end_profiling())


class Instrument:
    """A session of a graph that was instrumented, with outputs, switches or a rewrite that its user's does not have.

    What ONNX Runtime folds or fuses in the user's model it may not in this one, and then refuse: where the graph does
    not run with the optimizations asked for it is tried with fewer. Raises UnmeasuredError if it runs with none; the
    feed is not to blame.
    """

    def __init__(self, model: Graph | onnx.ModelProto, threads: int = 0, optimize: str = "all") -> None:
        self._model, self._threads = model, threads
        self._left = list(_LEVELS)[: list(_LEVELS).index(optimize) + 1]
        self._session: Session | None = None

    def run(self, feed: Mapping[str, NDArray[np.generic]], outputs: Sequence[str] | None = None) -> dict[str, object]:
        """Return the named outputs (all if None) for one feed."""
        while True:
            try:
                return self._opened().run(feed, outputs)
            except (ModelError, FeedError) as error:
                if len(self._left) < 2:
                    raise UnmeasuredError(f"a model that was instrumented does not run: {error}") from error
                self._left.pop()
                self._session = None

    def _opened(self) -> Session:
        if self._session is None:
            self._session = Session(self._model, optimize=self._left[-1], threads=self._threads)
        return self._session


def _adds_in_32_bits(graph: Graph) -> bool:
    """Return whether the target of a graph does, and exact sums can show it: ONNX Runtime then adds zero points of no
    axes to weights of int8 that have none, and does not run those with scales per channel.
    """
    return not graph.target.integers.pairs and not any(
        node.op == "DequantizeLinear" and len(node.inputs) < 3 and node.inputs[0].dtype == np.int8
        for node in graph.nodes
    )


def nameable(path: Path) -> Graph | Path:
    """Return the path, or the model in it where ONNX Runtime cannot be told the path: it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return load(path)
    return path


def session(
    model: str | os.PathLike[str], options: ort.SessionOptions | None = None, providers: Sequence[str] | None = None
) -> ort.InferenceSession:
    """Return a session of ONNX Runtime for a model file, or for a container that ``pack`` has written.

    A container is unpacked in memory and no file is written. ``options`` and ``providers`` are those of
    ``onnxruntime.InferenceSession``; the CPU is the default. Without ``options`` large tables are not copied, which
    takes less memory. Raises ModelError if the file is damaged or ONNX Runtime does not load it, with its reason in one
    sentence.

    >>> session("models/mlp.onnx").get_inputs()[0].name
    'input'
    """
    path = Path(model)
    wanted = list(providers or ["CPUExecutionProvider"])
    packed, able = (
        is_packed(mapped(path)),
        hasattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory"),
    )
    held = in_memory(path, share=options is None) if packed and able else None
    options = ort.SessionOptions() if options is None else options
    source = bytes(encode(load(path)).SerializeToString()) if packed and not able else str(path)
    try:
        if held is not None:
            return _InMemory(held, options, wanted)
        return ort.InferenceSession(source, options, providers=wanted)
    except Exception as error:
        raise ModelError(f"ONNX Runtime {ort.__version__} does not load {path}: {explain(error)}") from error


class _InMemory(ort.InferenceSession):  # type: ignore[misc]
    """A session of a container, with the tables that it reads where they were unpacked."""

    def __init__(self, held: InMemory, options: ort.SessionOptions, providers: list[str]) -> None:
        names, files = list(held.files), list(held.files.values())
        options.add_external_initializers_from_files_in_memory(names, files, [data.nbytes for data in files])
        self.tables = {name: ort.OrtValue.ortvalue_from_numpy(table) for name, table in held.tables.items()}
        options.add_external_initializers(list(self.tables), list(self.tables.values()))
        for name, table in self.tables.items():
            options.add_initializer(name, table)
        super().__init__(held.model, options, providers=providers)
        held.forget()

    def set_providers(self, *_: object, **__: object) -> None:
        """Refuse: ONNX Runtime would load the model once more, from memory that is not there any more."""
        raise UsageError("the session of a container keeps its providers: open another one with onnxsqueeze.session")


def _source(model: Graph | onnx.ModelProto | bytes | Path, stack: ExitStack) -> bytes | str:
    """Return the model as ONNX Runtime takes it: bytes, or the path of a file that lives as long as ``stack``."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, Path):
        return str(model)
    if isinstance(model, Graph):
        if file_size(model) > (IN_MEMORY if model.file is not None else _PROTO_LIMIT):
            folder = stack.enter_context(TemporaryDirectory(prefix="onnxsqueeze-", ignore_cleanup_errors=True))
            save(model, Path(folder, "model.onnx"))
            return str(Path(folder, "model.onnx"))
        model = encode(model)
    if model.ByteSize() > _PROTO_LIMIT:
        raise ModelError("a model over 2 GB cannot be run from a ModelProto: save it and give its path")
    return bytes(model.SerializeToString())


def first_samples(feed: Mapping[str, NDArray[np.generic]], count: int) -> Mapping[str, NDArray[np.generic]]:
    """Return the first ``count`` samples of a feed whose arrays share a first axis, of another one the feed itself."""
    lengths = {value.shape[0] for value in feed.values() if value.ndim}
    if len(lengths) != 1 or next(iter(lengths)) <= count:
        return feed
    return {name: value[:count] if value.ndim else value for name, value in feed.items()}


def shortened(
    session: Session, feed: Mapping[str, NDArray[np.generic]], count: int
) -> Mapping[str, NDArray[np.generic]]:
    """Return the first samples of a feed if the model runs on them, else the feed."""
    cut = first_samples(feed, count)
    if cut is feed:
        return feed
    try:
        session.run(cut)
    except FeedError:
        return feed
    return cut
