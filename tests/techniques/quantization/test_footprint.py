from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import key_of
from onnxsqueeze.ir.files import load
from onnxsqueeze.statistics.measured import Statistics
from onnxsqueeze.techniques.quantization.apply import Quantized
from onnxsqueeze.techniques.quantization.arithmetic import Arithmetic
from onnxsqueeze.techniques.quantization.emit.weights import Kept
from onnxsqueeze.techniques.quantization.footprint import excess, kept_lean, leanable
from onnxsqueeze.techniques.quantization.grids import Grids
from onnxsqueeze.techniques.quantization.layers import Layers

SIZE = 1024
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[4,1024] x) => (float[4,16] y) {
    a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u)
}"""


def view() -> View:
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w": (SIZE, SIZE), "v": (SIZE, SIZE), "u": (SIZE, 16)}
    proto.graph.initializer.extend(numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in shapes.items())
    del proto.graph.value_info[:]
    return View(load(proto))


def plan(forms: str) -> list[Site[Quantized] | Skip]:
    letters = {"s": Quantized("stored"), "l": Quantized("stored", lean=True), "i": Quantized("dynamic")}
    return [Site(key, "", work=letters[form]) for key, form in zip("aby", forms, strict=True)]


def test_restoring_at_load_takes_more_than_float_and_integers_less() -> None:
    nodes = {key_of(node): node for node in view().nodes}

    assert excess(plan("ssi"), nodes) > 2 * 4 * SIZE**2
    assert excess(plan("iii"), nodes) < -1.5 * 4 * SIZE**2
    assert excess(plan("lli"), nodes) < 0 < excess(plan("sli"), nodes)


def test_only_large_weights_are_worth_restoring_at_every_run_and_16_bits_never() -> None:
    found = view()
    free = leanable(Arithmetic(Layers(found), Statistics(), Grids(), Kept()))
    wide = Site("a", "", work=Quantized("stored", wide=True))
    made = kept_lean([wide, *plan("sss")[1:]], free)

    assert free == {"a", "b", "y"} if 4 * SIZE * 16 >= 1 << 16 else {"a", "b"}
    assert [site.work.lean for site in made if isinstance(site, Site)] == [False, True, True]
