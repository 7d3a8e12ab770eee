"""Times one-operator models on the device that this runs on, and writes them as a target's profile.

This file runs by itself with onnxruntime and numpy alone: ``python device.py my-device.toml [BASE]``. It writes the
models itself, byte by byte, runs each in turn with a reference operator, so that other load on the machine matters
little, and fits what ``onnxsqueeze.targets.times`` predicts by: ``outputs·(element + read·reads)`` for each kind of
layer in float and in int8. How far each is off for points left out, and what is left of it on all threads, is told.
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

SECONDS, ROUNDS, ROUNDS_OF_ALL = 150.0, 31, 15  # what all of it may take, and how often a point is timed
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int8": INT8, "int64": INT64}


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
        self.nodes.append(node(op, inputs, name := self.name(), **attrs))
        return name

    def keep(self, value: np.ndarray) -> str:
        self.constants[name := "c" + self.name()] = value
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
        attrs: dict[str, int | list[int]] = {"pads": [kernel // 2] * 4, "group": channels if depthwise else 1}
        return chain.add("Conv", x, chain.weight((channels, 1 if depthwise else channels, kernel, kernel), 0), **attrs)

    return step


def matmul(size: int) -> Layer:
    """Return a MatMul with a square weight."""
    return lambda chain, x: chain.add("MatMul", x, chain.weight((size, size), 1))


def elementwise(op: str) -> Layer:
    """Return an operator of one or two inputs; two are the same tensor twice."""
    return lambda chain, x: chain.add(op, *([x, x] if op in ("Add", "Mul") else [x]))


def pool(op: str) -> Layer:
    """Return a pooling of 3 by 3 behind a Conv: alone it would get another kernel in int8 than between layers."""
    return lambda chain, x: chain.add(op, chain.pair(conv(64, 1)(chain, x)), kernel_shape=[3, 3], pads=[1] * 4)


SHAPE, BEFORE_POOLS = (1, 64, 40, 40), 3
POINTS: tuple[tuple[str, int, Sequence[int], Layer], ...] = (
    *(("conv", c * k * k, (1, c, s, s), conv(c, k)) for c, k, s in (
        (16, 1, 80), (16, 3, 80), (32, 1, 80), (64, 1, 40), (64, 3, 40), (128, 3, 20), (256, 3, 10), (384, 1, 20))),
    *(("depthwise", k * k, (1, c, s, s), conv(c, k, True)) for c, k, s in (
        (32, 3, 80), (96, 3, 40), (192, 5, 20), (128, 3, 20), (64, 5, 40))),
    *(("matmul", n, (128, n), matmul(n)) for n in (64, 128, 256, 512, 1024)),
    *(("matmul", n, (m, n), matmul(n)) for m, n in ((1, 256), (1, 1024), (8, 512), (32, 256))),
    *((op, 1, SHAPE, elementwise(op)) for op in ("Add", "Mul", "Sigmoid", "LeakyRelu", "HardSigmoid")),
    *((op, 9, SHAPE, pool(op)) for op in ("MaxPool", "AveragePool")),
)  # fmt: skip
"""Kind, input values per output, shape and operator of what is timed."""


def session(data: bytes, threads: int = 1) -> ort.InferenceSession:
    """Return a session on so many threads, on the provider that is really there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take time from the others
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
        return max(float(np.diff(np.median(rounds, axis=0))[0]) / 4, 0.0)


def fit(rows: Sequence[Sequence[float]], times: Sequence[float]) -> tuple[list[float], float]:
    """Return what each column of the rows costs, none negative, with the least relative error, and the median error of
    points left out."""

    def solve(kept: list[int]) -> np.ndarray:
        x = np.array([rows[i] for i in kept]) / np.array([times[i] for i in kept])[:, None]
        used, found = list(range(x.shape[1])), np.zeros(x.shape[1])
        while used:
            found[used] = part = np.linalg.lstsq(x[:, used], np.ones(len(kept)), rcond=None)[0]
            if (part >= 0).all():
                break
            found[used.pop(int(part.argmin()))] = 0
        return found

    every = list(range(len(rows)))
    left_out = [float(np.dot(solve([j for j in every if j != i]), rows[i])) for i in every]
    return [float(each) for each in solve(every)], float(np.median(np.abs(np.divide(left_out, times) - 1)))


Point = tuple[str, int, float, list[float]]
"""Kind, input values and what else of an output, its nanoseconds in float and in int8 on one thread, and on all."""


def beside(kind: str, reads: int, shape: Sequence[int]) -> float:
    """Return the share of an output in the taps of a Conv, which int8 gathers, or in the weights of a MatMul."""
    if kind == "conv" and (taps := reads // shape[1]) > 1:
        return taps / shape[1] * (1 if shape[1] % 4 == 0 else 2)
    return reads / shape[0] if kind == "matmul" else 0.0


def measured(report: Callable[[str], None]) -> list[Point]:
    """Return every point, measured."""
    found: list[Point] = []
    clocks, start = [Clock(), Clock(CORES)], time.monotonic()
    for kind, reads, shape, step in POINTS:
        if time.monotonic() - start > SECONDS:
            raise SystemExit(f"stopped after {SECONDS:.0f} s: the device is too slow or too busy to measure")
        times = [float(clock.of(shape, step, int8) / np.prod(shape)) for clock in clocks for int8 in (False, True)]
        if kind.endswith("Pool"):  # less the Conv in front of it, which is a point as well
            times = [max(one - other, 0.0) for one, other in zip(times, found[BEFORE_POOLS][3], strict=True)]
        found.append((kind, reads, beside(kind, reads, shape), times))
        report(f"{kind:12} {reads:6} {' '.join(f'{each:8.3f}' for each in times)} ns per output")
    return found


def left(points: Sequence[list[float]]) -> str:
    """Return the median share of the time of one thread that is left on all, in float and in int8, as TOML."""
    parts = (np.median([each[2 + i] / max(each[i], 1e-6) for each in points]) for i in (0, 1))
    return f"[{', '.join(f'{min(float(part), 1.0):.3g}' for part in parts)}]"


def profile(found: Sequence[Point], name: str, base: str, borders: tuple[float, float], clock: str = "") -> str:
    """Return the TOML of a profile that changes the times of ``base`` to these, and its clock if one is named."""
    lines, errors, shares = [], [], []
    for kind in ("conv", "depthwise", "matmul"):
        points = [each for each in found if each[0] == kind]
        rows = [[[1, reads, more * (i or kind == "matmul")] for _, reads, more, _ in points] for i in (0, 1)]
        fits = [fit(rows[i], [max(each[3][i], 1e-6) for each in points]) for i in (0, 1)]
        lines.append(f"{kind} = [{', '.join(f'[{each[0]:.4g}, {each[1]:.4g}]' for each, _ in fits)}]")
        errors += [f"{kind} {100 * fits[i][1]:.0f} % in {what}" for i, what in enumerate(("float", "int8"))]
        shares.append(f"{kind} = {left([each[3] for each in points])}")
        (_, read, more), (_, read8, more8) = fits[0][0], fits[1][0]
        lines += [f"gather = {more8:.4g}"] if kind == "conv" else []
        lines += [f"run_time = [{read:.4g}, {read8:.4g}]", f"weight = [{more:.4g}, {more8:.4g}]"] * (kind == "matmul")
    others = [(kind, times) for kind, _, _, times in found if kind[0].isupper()]
    carry = [f"{kind} = [{times[0]:.4g}, {times[1]:.4g}]" for kind, times in others]
    shares.append(f"other = {left([times for _, times in others])}")
    provider = session(Chain(SHAPE, False).bytes(elementwise("Sigmoid"), 1)).get_providers()[0]
    told = f"{platform.processor() or platform.machine()} {' '.join(flags())}, {provider} of ONNX Runtime "
    told += f"{ort.__version__}, one thread and {CORES}; a point that a fit has not seen is off by {', '.join(errors)}"
    listed = ",\n".join(f'    ["{kind}", {reads}, {", ".join(f"{t:.5g}" for t in ts)}]' for kind, reads, _, ts in found)
    return "\n".join([
        "# Written by onnxsqueeze profile-target.", "", "[target]", f'name = "{name}"', "version = 1",
        f'summary = "{base} with times of this device"', f'runtime = "onnxruntime {ort.__version__}"',
        f'base = "{base}"', "", *["[verify]", f'clock = "{clock}"', ""] * bool(clock),
        "[times]", f"quantize = {borders[0]:.4g}", f"dequantize = {borders[1]:.4g}", *lines, "",
        "[times.carry]", *carry, "",
        "# The share of the time of one thread that is left on all.", "[parallel]", f"threads = {CORES}", *shares, "",
        "[sources]", *[f'{key} = "device"' for key in ("verify",) * bool(clock) + ("times", "parallel")], "",
        "[source.device]", f'text = "{told}"', f"date = {time.strftime('%Y-%m-%d')}", 'confidence = "measured"', "",
        "# kind, input values per output, nanoseconds per output in float and in int8 on one thread, and on all",
        "[points]", f"measured = [\n{listed},\n]", "",
    ])  # fmt: skip


def flags() -> list[str]:
    """Return what the processor says of itself that matters here."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(errors="replace").split() if path.is_file() else ())
    return sorted(words & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"})


def borders() -> tuple[float, float]:
    """Return nanoseconds per element of QuantizeLinear and DequantizeLinear, with the changes of layout beside them."""
    clock, step = Clock(), conv(64, 1)

    def mixed(chain: Chain, x: str) -> str:  # two float Convs, since one between pairs would be quantized
        chain.int8, x = True, chain.pair(x, True)
        x, chain.int8 = chain.pair(step(chain, x)), False
        return step(chain, step(chain, x))

    both = max(clock.of(SHAPE, mixed, False) - 2 * clock.of(SHAPE, step, False) - clock.of(SHAPE, step, True), 0.0)
    return 0.57 * both / float(np.prod(SHAPE)), 0.43 * both / float(np.prod(SHAPE))


if __name__ == "__main__":
    made = profile(measured(print), Path(sys.argv[1]).stem, (sys.argv[2:] or ["ort-x64"])[0], borders())
    Path(sys.argv[1]).write_text(made, encoding="utf-8")
