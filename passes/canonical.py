"""``canonical``: say with one operator what exporters spell out, and fold scales and shifts into the next layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxsqueeze.plugin import Graph, Pass, Site, Skip, Statistics, View, edit, is_standard, key_of
from onnxsqueeze.techniques.canonical import affine, einsum, fused, hard_sigmoid, kernel_forms, regressor, spellings

__all__ = ["Canonical"]

Work = Callable[[Graph, Graph, gs.Node], None]
"""What rewrites a node of a graph, given with the graph that holds it."""


@dataclass(frozen=True)
class Canonical(Pass[Work]):
    """Rewrite the graph to the operators that the runtime is fast on, without changing its answers.

    * ``k·Clip(x + b, 0, c)`` becomes ``c·k·HardSigmoid(x; 1/c, b/c)``: HardSwish, spelled as Add, Clip, Mul and Div,
      becomes ``x·HardSigmoid(x)``.
    * ``W·(s∘x)`` becomes ``(W·diag(s))·x`` and, without padding, ``W·(x + t) + b`` becomes ``W·x + (b + W·t)``.
    * ``s·x + t`` becomes ``s·(x + t/s)`` where only the scale can be folded.
    * Einsum with a weight becomes MatMul; FusedMatMul, FusedGemm and FusedConv of ONNX Runtime become the layer and
      its activation, which it fuses again.
    * Add in front of LayerNormalization becomes Sum, Softmax over an inner axis is spelled out, and masked scores are
      bounded from below in front of Softmax: ``kernel_forms`` says why.
    * Weights of Conv and recurrent layers, and tables, that would be dequantized in every run are restored when the
      model is loaded, or after the rows are gathered; ``spellings`` has these and others that are only told of.
    """

    name: ClassVar[str] = "canonical"
    summary: ClassVar[str] = "one operator for spelled-out activations; scales and shifts folded into the next layer"
    float_only: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def plan(self, view: View, stats: Statistics) -> Iterator[Site[Work] | Skip]:
        """Yield what can be rewritten now; the engine asks again until there is nothing left."""
        taken: set[int] = set()
        named = (*view.target.operators.kernels, *view.target.spellings.slow)
        forms = [form for form in _FORMS if not form.name or form.name in named]
        for node in view.nodes:
            form = next((form for form in forms if form.fits(view, node)), None)
            if form is not None:
                yield Site(key_of(node), form.words, work=form.write)
            elif not is_standard(node):
                continue
            elif node.op == "Clip":
                found = hard_sigmoid.hard_sigmoid(view, node)
                if found is not None:
                    taken.update(found.nodes)
                    words = "HardSwish as x·HardSigmoid(x)" if found.gated else "HardSigmoid"
                    yield Site(key_of(node), words, work=partial(hard_sigmoid.write, found=found))
            elif node.op in ("Mul", "Div", "Add", "Sub") and id(node) not in taken:
                site = affine.forward(view, node, taken)
                if site is not None:
                    yield site

    def apply(self, site: Site[Work], graph: Graph) -> None:
        """Rewrite one place."""
        node, scope = edit.find(graph, site.key)
        site.work(graph, scope, node)


@dataclass(frozen=True)
class _Form:
    name: str
    words: str
    fits: Callable[[View, gs.Node], bool]
    write: Work


_FORMS = (
    _Form("sum", "Add in front of a normalization as Sum", kernel_forms.is_normalized_sum, kernel_forms.write_as_sum),
    _Form(
        "softmax", "Softmax over an inner axis spelled out", kernel_forms.is_inner_softmax, kernel_forms.spell_softmax
    ),
    _Form("mask", "masked scores bounded", kernel_forms.is_masked_softmax, kernel_forms.bound),
    _Form(
        "table-restored", "rows of a table gathered before they are dequantized", spellings.is_restored_table,
        spellings.gather_first,
    ),
    _Form(
        "kernel-restored", "weight restored when the model is loaded", spellings.is_restored_weight,
        spellings.restore_at_load,
    ),
    _Form("", "Einsum with a weight as MatMul", einsum.is_product, einsum.write_as_product),
    _Form("", "fused layer taken apart", fused.is_fused, fused.take_apart),
    _Form("", "LinearRegressor as Gemm", regressor.is_regressor, regressor.write_as_gemm),
)  # fmt: skip
