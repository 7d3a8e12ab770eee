"""What ONNX Runtime makes of a quantized graph: which layers it fused, and whether it still computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from onnxsqueeze.errors import FeedError, ModelError
from onnxsqueeze.graph import edit
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.ir.sizes import file_size
from onnxsqueeze.measure.answers import compare, worst
from onnxsqueeze.measure.saturation import Saturation, saturating, warning
from onnxsqueeze.measure.switches import Feeds
from onnxsqueeze.runtime.session import Session, shortened

__all__ = ["Audit", "audit"]

LARGE = 1 << 30
"""Bytes; larger graphs are not audited, since ONNX Runtime would write them out for it."""
FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
INTEGER = ("QLinear", "QGemm", "DynamicQuantizeMatMul", "MatMulInteger")


@dataclass(frozen=True)
class Audit:
    """``unfused`` are those layers that ONNX Runtime computes in float although they are quantized.

    ``fused`` counts its integer operators, ``borders`` the Q and DQ nodes that are left between integers and floats,
    and ``drift`` is the SQNR in dB between its answers with all optimizations and with none, None where it does not run
    with none. ``saturating`` are the
    layers whose sums can be wrong on a processor without VNNI.
    """

    unfused: frozenset[str]
    fused: Counter[str]
    borders: int
    drift: float | None
    saturating: tuple[Saturation, ...] = ()

    def __str__(self) -> str:
        parts = ", ".join(f"{count} {op}" for op, count in sorted(self.fused.items(), key=lambda each: -each[1]))
        drift = "agree exactly" if self.drift == float("inf") else f"agree at {self.drift or 0:.0f} dB"
        drift = "cannot be compared, since the model runs only with" if self.drift is None else drift
        sums = warning(self.saturating) or "no sum can saturate, on any processor"
        return (
            f"ONNX Runtime fuses all of it ({parts}), {self.borders} Q and DQ are left at borders; "
            f"its answers with and without optimizations {drift}; {sums}"
        )


def audit(graph: Graph, layers: Collection[str], feeds: Feeds) -> Audit | None:
    """Return what becomes of the ``layers``, named by the first outputs of their nodes; None for a huge graph."""
    if file_size(graph) > LARGE:
        return None
    with TemporaryDirectory(prefix="onnxsqueeze-") as folder:
        path = Path(folder, "optimized.onnx")
        session = Session(graph, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    left = {n.name.removesuffix("_nchwc") for n in nodes if n.op_type in FLOAT and n.name}
    left |= {name for n in nodes if n.op_type in FLOAT for name in n.output}
    found = Counter(n.op_type for n in nodes)
    small = [shortened(session, feed, 1) for feed in feeds]
    try:
        plain = Session(graph, optimize="none")
        drift = worst(compare([plain.run(feed) for feed in small], [session.run(feed) for feed in small]))
    except (ModelError, FeedError):  # some nodes run only as ONNX Runtime folds them
        drift = None
    return Audit(
        frozenset(key for key in layers if key in left or edit.find(graph, key)[0].name in left),
        Counter({op: count for op, count in found.items() if op.startswith(INTEGER)}),
        found["QuantizeLinear"] + found["DequantizeLinear"],
        drift,
        saturating(graph),
    )
