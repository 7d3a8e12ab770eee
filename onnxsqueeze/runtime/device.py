"""Times one-operator models on the device that this runs on, and writes them as a target's profile.

This file runs by itself with onnxruntime and numpy alone: ``python device.py my-device.toml [BASE]``. It writes the
models itself, byte by byte, runs each in turn with a reference operator, so that other load on the machine matters
little, and fits what ``onnxsqueeze.targets.times`` predicts by: ``outputs·(element + read·reads)`` for each kind of
layer in float and in int8. How far each fit is off where it has not seen a point (leave one out) stands in the file.
The same is timed on all threads; what share of the time of one thread is left there is in the file for each kind.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

SECONDS = 150.0
"""What all of it may take."""
ROUNDS, ROUNDS_OF_ALL = 31, 15
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int64": INT64}

# ------------------------------------------------------------------------------------- protobuf, as ONNX defines it


def varint(value: int) -> bytes:
    """Return an integer of 64 bits as protobuf writes it."""
    value, out = value & (1 << 64) - 1, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    """Return a field of a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, value: np.ndarray) -> bytes:
    """Return a TensorProto."""
    dims = b"".join(field(1, int(size)) for size in value.shape)
    return dims + field(2, _TYPES[value.dtype.name]) + field(8, name) + field(9, np.ascontiguousarray(value).tobytes())


def node(op: str, inputs: Sequence[str], output: str, **attrs: int | list[int]) -> bytes:
    """Return a NodeProto with attributes of integers."""
    made = b"".join(field(1, each) for each in inputs) + field(2, output) + field(4, op)
    for key, value in attrs.items():
        several = b"".join(field(8, each) for each in value) if isinstance(value, list) else field(3, value)
        made += field(5, field(1, key) + several + field(20, 7 if isinstance(value, list) else 2))
    return made


def model(nodes: Sequence[bytes], shape: Sequence[int], constants: dict[str, np.ndarray]) -> bytes:
    """Return a ModelProto from x, of this shape, to y."""
    dims = b"".join(field(1, field(1, size)) for size in shape)
    cut = b"".join(field(1, field(1, 1 if axis == 1 else size)) for axis, size in enumerate(shape))
    shapes = (("x", field(2, dims)), ("y", field(2, cut)))
    values = [field(1, name) + field(2, field(1, field(1, FLOAT) + more)) for name, more in shapes]
    graph = b"".join(field(1, each) for each in nodes) + field(2, "g")
    graph += b"".join(field(5, tensor(name, value)) for name, value in constants.items())
    graph += field(11, values[0]) + field(12, values[1])
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


# ------------------------------------------------------------------------------------- one-operator models

Layer = Callable[["Chain", str], str]


class Chain:
    """A model of ``length`` equal operators, in int8 with a Q/DQ pair behind each."""

    def __init__(self, shape: Sequence[int], int8: bool) -> None:
        self.shape, self.int8 = tuple(shape), int8
        self.nodes: list[bytes] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def name(self) -> str:
        return f"t{len(self.nodes)}_{len(self.constants)}"

    def add(self, op: str, *inputs: str, **attrs: int | list[int]) -> str:
        name = self.name()
        self.nodes.append(node(op, inputs, name, **attrs))
        return name

    def keep(self, value: np.ndarray) -> str:
        name = "c" + self.name()
        self.constants[name] = value
        return name

    def pair(self, x: str, always: bool = False) -> str:
        if not (self.int8 or always):
            return x
        scale, zero = self.keep(np.array(8 / 255, np.float32)), self.keep(np.array(128, np.uint8))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, scale, zero), scale, zero)

    def weight(self, shape: Sequence[int], axis: int) -> str:
        reads = np.prod(shape) / shape[axis]
        values = (self.rng.normal(size=tuple(shape)) / np.sqrt(reads)).astype(np.float32)
        if not self.int8:
            return self.keep(values)
        scale = np.full(shape[axis], np.abs(values).max() / 60, np.float32)
        q = np.rint(values / scale[0]).astype(np.int8)
        zero = self.keep(np.zeros(shape[axis], np.int8))
        return self.add("DequantizeLinear", self.keep(q), self.keep(scale), zero, axis=axis)

    def bytes(self, step: Layer, length: int) -> bytes:
        x = self.pair("x")
        for _ in range(length):
            x = self.pair(step(self, x))
        axes = (self.keep(np.array([value], np.int64)) for value in (0, 1, 1))
        self.nodes.append(node("Slice", [x, *axes], "y"))
        return model(self.nodes, self.shape, self.constants)


def conv(channels: int, kernel: int, depthwise: bool = False) -> Layer:
    """Return a Conv of as many channels out as in."""

    def step(chain: Chain, x: str) -> str:
        weight = chain.weight((channels, 1 if depthwise else channels, kernel, kernel), 0)
        attrs: dict[str, int | list[int]] = {"pads": [kernel // 2] * 4, "group": channels if depthwise else 1}
        return chain.add("Conv", x, weight, **attrs)

    return step


def matmul(size: int) -> Layer:
    """Return a MatMul with a square weight."""
    return lambda chain, x: chain.add("MatMul", x, chain.weight((size, size), 1))


def elementwise(op: str) -> Layer:
    """Return an operator of one or two inputs; two are the same tensor twice."""
    return lambda chain, x: chain.add(op, *([x, x] if op in ("Add", "Mul") else [x]))


def pool(op: str) -> Layer:
    """Return a pooling of 3 by 3."""
    return lambda chain, x: chain.add(op, x, kernel_shape=[3, 3], pads=[1] * 4)


SHAPE = (1, 64, 40, 40)
POINTS: tuple[tuple[str, int, Sequence[int], Layer], ...] = (
    *(("conv", c * k * k, (1, c, s, s), conv(c, k)) for c, k, s in (
        (16, 1, 80), (16, 3, 80), (32, 1, 80), (64, 1, 40), (64, 3, 40), (128, 3, 20), (256, 3, 10), (384, 1, 20))),
    *(("depthwise", k * k, (1, c, s, s), conv(c, k, True)) for c, k, s in (
        (32, 3, 80), (96, 3, 40), (192, 5, 20), (128, 3, 20), (64, 5, 40))),
    *(("matmul", n, (128, n), matmul(n)) for n in (64, 128, 256, 512, 1024)),
    *((op, 1, SHAPE, elementwise(op)) for op in ("Add", "Mul", "Sigmoid", "LeakyRelu", "HardSigmoid")),
    *((op, 9, SHAPE, pool(op)) for op in ("MaxPool", "AveragePool")),
)  # fmt: skip
"""Kind, input values per output, shape and operator of what is timed."""

# ------------------------------------------------------------------------------------- measuring


def session(data: bytes, threads: int = 1) -> ort.InferenceSession:
    """Return a session on so many threads, on the provider that is really there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Clock:
    """Nanoseconds of models, in turn with a reference whose time says how busy the machine is: those of the processor
    on one thread, of the clock on the wall on several."""

    def __init__(self, threads: int = 1) -> None:
        self.threads, self.clock = threads, time.thread_time_ns if threads == 1 else time.perf_counter_ns
        self.feed = {"x": np.random.default_rng(1).normal(size=(1, 64, 40, 40)).astype(np.float32)}
        self.reference = session(Chain(SHAPE, False).bytes(conv(64, 3), 1), threads)
        self.best = min(self._run(self.reference, self.feed) for _ in range(20))

    def _run(self, which: ort.InferenceSession, feed: dict[str, np.ndarray]) -> float:
        start = self.clock()
        which.run(None, feed)
        return float(self.clock() - start)

    def of(self, shape: Sequence[int], step: Layer, int8: bool) -> float:
        """Return the nanoseconds of one operator: five in a row less one, over four, at the reference's best speed."""
        pair = [session(Chain(shape, int8).bytes(step, length), self.threads) for length in (1, 5)]
        feed = {"x": np.random.default_rng(1).normal(size=tuple(shape)).astype(np.float32)}
        rounds = []
        for _ in range(ROUNDS if self.threads == 1 else ROUNDS_OF_ALL):
            busy = self._run(self.reference, self.feed) / self.best
            rounds.append([min(self._run(each, feed) for _ in range(2)) / max(busy, 1.0) for each in pair])
        one, five = np.median(rounds, axis=0)
        return max(float(five - one) / 4, 0.0)


def fit(reads: Sequence[float], times: Sequence[float]) -> tuple[tuple[float, float], float]:
    """Return (element, read) with the least relative error, none negative, and the median error of points left out."""

    def solve(kept: list[int]) -> tuple[float, float]:
        x = np.array([[1.0, reads[i]] for i in kept]) / np.array([times[i] for i in kept])[:, None]
        element, read = np.linalg.lstsq(x, np.ones(len(kept)), rcond=None)[0]
        if element < 0 or read < 0:
            column = x[:, 1] if element < 0 else x[:, 0]
            only = float(column.sum() / (column @ column))
            return (0.0, only) if element < 0 else (only, 0.0)
        return float(element), float(read)

    every = list(range(len(reads)))
    errors = []
    for i in every:
        element, read = solve([j for j in every if j != i])
        errors.append(abs(element + read * reads[i] - times[i]) / times[i])
    return solve(every), float(np.median(errors))


Point = tuple[str, int, list[float]]
"""Kind, input values per output, nanoseconds per output in float and in int8 on one thread, and on all."""


def measured(report: Callable[[str], None]) -> list[Point]:
    """Return every point, measured."""
    clocks, found, start = [Clock(), Clock(CORES)], [], time.monotonic()
    for kind, reads, shape, step in POINTS:
        if time.monotonic() - start > SECONDS:
            raise SystemExit(f"stopped after {SECONDS:.0f} s: the device is too slow or too busy to measure")
        times = [float(clock.of(shape, step, int8) / np.prod(shape)) for clock in clocks for int8 in (False, True)]
        found.append((kind, reads, times))
        report(f"{kind:12} {reads:6} {' '.join(f'{each:8.3f}' for each in times)} ns per output")
    return found


def left(points: Sequence[list[float]]) -> str:
    """Return the median share of the time of one thread that is left on all, in float and in int8, as TOML."""
    parts = (np.median([each[2 + i] / max(each[i], 1e-6) for each in points]) for i in (0, 1))
    return f"[{', '.join(f'{min(float(part), 1.0):.3g}' for part in parts)}]"


def profile(found: Sequence[Point], name: str, base: str, borders: tuple[float, float]) -> str:
    """Return the TOML of a profile that changes the times of ``base`` to these."""
    lines, errors, shares = [], [], []
    for kind in ("conv", "depthwise", "matmul"):
        points = [each for each in found if each[0] == kind]
        reads = [each[1] for each in points]
        fits = [fit(reads, [max(each[2][i], 1e-6) for each in points]) for i in (0, 1)]
        lines.append(f"{kind} = [{', '.join(f'[{e:.4g}, {r:.4g}]' for (e, r), _ in fits)}]")
        errors += [f"{kind} {100 * fits[i][1]:.0f} % in {what}" for i, what in enumerate(("float", "int8"))]
        shares.append(f"{kind} = {left([each[2] for each in points])}")
        if kind == "matmul":
            lines.append(f"run_time = [{fits[0][0][1]:.4g}, {fits[1][0][1]:.4g}]")
    carry = [f"{kind} = [{times[0]:.4g}, {times[1]:.4g}]" for kind, _, times in found if kind[0].isupper()]
    shares.append(f"other = {left([times for kind, _, times in found if kind[0].isupper()])}")
    provider = session(Chain(SHAPE, False).bytes(elementwise("Sigmoid"), 1)).get_providers()[0]
    processor = f"{platform.processor() or platform.machine()} {' '.join(flags())}"
    where = f"{processor}, {provider} of ONNX Runtime {ort.__version__}, one thread and {CORES}"
    told = f"{where}; a point that a fit has not seen is off by {', '.join(errors)}"
    rows = ",\n".join(f'    ["{kind}", {reads}, {", ".join(f"{t:.5g}" for t in ts)}]' for kind, reads, ts in found)
    return "\n".join([
        "# Written by onnxsqueeze profile-target.", "", "[target]", f'name = "{name}"', "version = 1",
        f'summary = "{base} with times of this device"', f'runtime = "onnxruntime {ort.__version__}"',
        f'base = "{base}"', "",
        "[times]", f"quantize = {borders[0]:.4g}", f"dequantize = {borders[1]:.4g}", "gather = 0", *lines, "",
        "[times.carry]", *carry, "",
        "# The share of the time of one thread that is left on all.", "[parallel]", f"threads = {CORES}", *shares, "",
        "[sources]", 'times = "device"', 'parallel = "device"', "", "[source.device]",
        f'text = "{told}"', f"date = {time.strftime('%Y-%m-%d')}", 'confidence = "measured"', "",
        "# kind, input values per output, nanoseconds per output in float and in int8 on one thread, and on all",
        "[points]", f"measured = [\n{rows},\n]", "",
    ])  # fmt: skip


def flags() -> list[str]:
    """Return what the processor says of itself that matters here."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return []
    return sorted(words & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"})


def borders() -> tuple[float, float]:
    """Return nanoseconds per element of QuantizeLinear and DequantizeLinear, which are timed together."""
    both = Clock().of(SHAPE, lambda chain, x: chain.pair(x, True), False) / np.prod(SHAPE)
    return 0.6 * float(both), 0.4 * float(both)


def text(name: str, base: str, report: Callable[[str], None] = print) -> str:
    """Measure, and return the profile of this name as TOML."""
    return profile(measured(report), name, base, borders())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(Path(sys.argv[1]).stem, (sys.argv[2:] or ["ort-x64"])[0]), encoding="utf-8")
