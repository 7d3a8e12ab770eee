"""A pipeline of onnx_ir passes with onnxsqueeze as one of them, on a small net made here."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxsqueeze.integrations.onnx_ir import Squeeze

rng = np.random.default_rng(0)
x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 128]))
first, second = (
    ir.Value(name=name, const_value=ir.tensor(rng.normal(0, 0.1, (128, 128)).astype(np.float32), name=name))
    for name in ("w1", "w2")
)
hidden = ir.node("MatMul", [x, first])
active = ir.node("Relu", hidden.outputs)
output = ir.node("MatMul", [active.outputs[0], second])
output.outputs[0].name, output.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
graph = ir.Graph(
    [x],
    output.outputs,
    nodes=[hidden, active, output],
    initializers=[first, second],
    opset_imports={"": 18},
    name="net",
)

feeds = [{"x": rng.normal(size=(16, 128)).astype(np.float32)} for _ in range(16)]
squeeze = Squeeze("int8", feeds, min_sqnr=25)
passes = ir.passes.PassManager([common.NameFixPass(), squeeze, common.ClearMetadataAndDocStringPass()])
squeezed = passes(ir.Model(graph, ir_version=10)).model

assert squeeze.result is not None
report = squeeze.result.report
print(f"{report.before.bytes} -> {report.after.bytes} bytes, {report.sqnr_db:.1f} dB")
assert isinstance(squeezed, ir.Model)
assert report.after.bytes < 0.4 * report.before.bytes
