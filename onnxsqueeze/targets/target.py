"""What a model is to run on, as data: which forms of numbers and operators it takes, and what they cost there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from onnxsqueeze.targets.times import Parallel, Times, Work

__all__ = [
    "Activations",
    "Bias",
    "Decoding",
    "GraphRules",
    "Integers",
    "Line",
    "Operators",
    "Spellings",
    "Target",
    "Verify",
    "Weights",
]


@dataclass(frozen=True)
class GraphRules:
    """What a graph may hold."""

    opset: tuple[int, int]
    """The lowest and the highest opset of ONNX."""
    contrib: bool
    """Whether operators of other domains than ONNX's run."""
    dynamic_shapes: bool
    """Whether axes of inputs may be of any size."""
    bodies: bool
    """Whether If, Loop and Scan run."""
    missing: tuple[str, ...]
    """Operators of ONNX that do not run."""
    operators: tuple[str, ...]
    """The only operators that run; none named: all but the missing ones."""
    largest: int
    """The most bytes of one initializer, 0 for any."""


@dataclass(frozen=True)
class Integers:
    """Which forms of integer arithmetic there are."""

    forms: tuple[Literal["static", "dynamic", "stored", "operators"], ...]
    """static: Q/DQ pairs around an operator; dynamic: DynamicQuantizeLinear and MatMulInteger; stored: weights in
    integers that are restored at load; operators: those that compute in integers themselves, QLinearConv for one."""
    placement: Literal["pays", "everywhere"]
    """Where pairs go: where integers are predicted to be faster, or around every operator that can take them."""
    pairs: bool
    """Whether two neighbouring products are added up in 16 bits, which saturate (``onnxsqueeze.targets.pairs``)."""
    gates: bool
    """Whether a HardSigmoid may be written as a pair of two scales."""


@dataclass(frozen=True)
class Weights:
    """Integers of weights under DequantizeLinear."""

    types: tuple[str, ...]
    symmetric: bool
    """Whether zero points have to be 0."""
    least: int
    """The least 8-bit value: -128, or -127 where the range is symmetric."""
    per_channel: tuple[str, ...]
    """Operators whose weight may have a scale per output channel."""
    blocks: tuple[int, ...]
    """Sizes of blocks that may share a scale."""
    kept: tuple[str, ...]
    """Operators whose weight stays integers in memory behind a DequantizeLinear, which restores it at every run."""


@dataclass(frozen=True)
class Decoding:
    """Layers that multiply a few rows at a time by a weight that stays in few bits, as decoders do."""

    form: Literal["dequantize", "operator", "none"]
    """dequantize: DequantizeLinear in blocks in front of MatMul, which the runtime fuses, from opset 21 on and where it
    does; operator: MatMulNBits; none: weights are restored when the model is loaded."""
    level: int
    """The accuracy level of MatMulNBits: with 4 it rounds its input to 8 bits in blocks."""
    rows: Mapping[str, int]
    """Up to how many rows that is no slower than float, by the bits of the weight."""
    least: int
    """Elements of a weight from which on it is."""


@dataclass(frozen=True)
class Spellings:
    """Ways to write quantized models that are valid, and slow or rounded more than they say."""

    slow: tuple[str, ...]
    """Those that are so here, by their names in ``onnxsqueeze.techniques.canonical.spellings``."""


@dataclass(frozen=True)
class Activations:
    """Integers of what flows between operators."""

    types: tuple[str, ...]
    """What they may be; the first is what is written."""
    zero_point: Literal["any", "middle"]
    """middle: 0 of signed integers, 128 of uint8."""


@dataclass(frozen=True)
class Bias:
    """Biases of layers in integers."""

    type: Literal["int32", "float", "any"]
    product: bool
    """Whether the scale of int32 has to be that of the input times that of the weight."""


@dataclass(frozen=True)
class Operators:
    """Operators between Q/DQ pairs that run in integers."""

    layers: tuple[str, ...]
    """Those with a weight."""
    same_scale: tuple[str, ...]
    """Those whose input and output share a scale."""
    own_scale: tuple[str, ...]
    """Those whose output has a scale of its own."""
    kernels: tuple[Literal["sum", "softmax", "mask"], ...]
    """Forms of float operators that are faster than what exporters write: Sum before a normalization, Softmax over an
    inner axis spelled out, masked scores bounded before Softmax."""


@dataclass(frozen=True)
class Verify:
    """How it is found out what a runtime makes of a result."""

    fusion: bool
    """Whether ONNX Runtime here shows what the target fuses."""
    clock: Literal["measured", "predicted"]
    """Whether int8 is given up where it measures as slower here."""


@dataclass(frozen=True)
class Line:
    """One line of a profile: where it stands, what it says, in which profile, and why it is believed."""

    key: str
    value: object
    profile: str
    source: str
    date: str
    confidence: str


@dataclass(frozen=True)
class Target:
    """A profile: the sections of its file, and every line with its source."""

    name: str
    version: int
    summary: str
    runtime: str
    base: str
    """The profile that it changes, "" for none."""
    graph: GraphRules
    integers: Integers
    weights: Weights
    decoding: Decoding
    spellings: Spellings
    activations: Activations
    bias: Bias
    operators: Operators
    verify: Verify
    work: Work
    times: Times
    parallel: Parallel
    lines: tuple[Line, ...]
    threads: int = 1
    """How many threads a plan is for, 0 for all."""
    batch: int | None = None
    """How many samples at once a plan is for, None for those of the calibration feeds."""

    @property
    def signed(self) -> bool:
        """Whether activations are written as signed integers."""
        return self.activations.types[0].startswith("int")

    @property
    def middle(self) -> bool:
        """Whether zero points of activations have to lie in the middle."""
        return self.activations.zero_point == "middle"

    def used(self, threads: int, batch: int | None, fed: int) -> Target:
        """Return the profile for so many threads (0: all) and samples at once, where feeds hold ``fed`` samples."""
        if threads == 1 and batch is None:
            return self
        shares = self.parallel.on(threads)
        share = 1.0 if batch is None else batch / fed
        work = replace(self.work, node=self.work.node / share)
        return replace(self, times=self.times.on(shares, share), work=work, threads=threads, batch=batch)

    @property
    def timed(self) -> bool:
        """Whether the profile has times of its own, not those of its base alone."""
        return any(line.key == "times.conv" and line.profile == self.name for line in self.lines)

    @property
    def use(self) -> str:
        """Say how many threads and samples a plan is for."""
        threads = {0: "all threads", 1: "one thread"}.get(self.threads, f"{self.threads} threads")
        return threads if self.batch is None else f"{threads}, {self.batch} sample{'s' * (self.batch > 1)} at once"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
