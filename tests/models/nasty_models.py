"""Small models with what round trips tend to lose; each function with ``@case`` builds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

__all__ = ["CASES", "RUNNABLE", "build"]

CASES: dict[str, Callable[[], onnx.ModelProto]] = {}
RUNNABLE: set[str] = set()
"""Names of models that ONNX Runtime opens."""

Case = Callable[[], onnx.ModelProto]
UNKNOWN = b"\xc2\xf4\x03\x05hello\xc8\xf4\x03\x2a"  # fields 8008 (bytes) and 8009 (varint)


def case(runs: bool = True) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        name = function.__name__.replace("_", " ")
        CASES[name] = function
        if runs:
            RUNNABLE.add(name)
        return function

    return register


def build(name: str) -> onnx.ModelProto:
    """Return a fresh model of the case ``name``."""
    return CASES[name]()


def text(body: str, ir: int = 8, opset: str = '"" : 17', functions: str = "") -> onnx.ModelProto:
    return parser.parse_model(f"<ir_version: {ir}, opset_import: [{opset}]> {body}\n{functions}")


def plain() -> onnx.ModelProto:
    model = text("g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w, float[3] b> { t = MatMul(x, w) y = Add(t, b) }")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (4, 3)), ("b", (3,))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    del model.graph.value_info[:]
    return model


def prop(props: Any, *pairs: str) -> None:
    for pair in pairs:
        key, _, value = pair.partition("=")
        props.add(key=key, value=value)


# -- the model and its metadata ---------------------------------------------------------------------------------------


@case()
def metadata_and_docs_at_every_level() -> onnx.ModelProto:
    model = plain()
    model.producer_name, model.producer_version = "some exporter", "1.2"
    model.domain, model.model_version, model.doc_string = "org.example", 7, "the model"
    graph = model.graph
    graph.doc_string = "the graph"
    graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 3]))
    node = graph.node[0]
    node.attribute.append(helper.make_attribute("unused", 1.5, "the attribute"))
    node.domain, node.op_type = "", "MatMul"
    del node.attribute[:]
    for index, item in enumerate((*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)):
        item.doc_string = f"doc {index}"
        prop(item.metadata_props, f"key{index}=value", "twice=1", "twice=2")
    prop(model.metadata_props, "author=me", "empty=", "twice=1", "twice=2")
    prop(graph.metadata_props, "scope=all")
    return model


@case()
def explicit_defaults_and_empty_strings() -> onnx.ModelProto:
    model = plain()
    model.producer_name, model.producer_version, model.domain = "", "", ""
    model.model_version, model.doc_string, model.graph.doc_string = 0, "", ""
    for node in model.graph.node:
        node.name, node.domain, node.doc_string = "", "", ""
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    return model


@case()
def opsets_with_the_alias_a_custom_and_an_unused_domain() -> onnx.ModelProto:
    model = plain()
    del model.opset_import[:]
    for domain, version in (("org.example", 3), ("ai.onnx", 17), ("ai.onnx.ml", 3)):
        model.opset_import.add(domain=domain, version=version)
    model.graph.node[0].domain = "ai.onnx"
    return model


@case(runs=False)
def no_opset_at_all() -> onnx.ModelProto:
    model = plain()
    del model.opset_import[:]
    return model


@case(runs=False)
def unknown_fields_everywhere() -> onnx.ModelProto:
    model = plain()
    model.graph.node.append(helper.make_node("LeakyRelu", ["y"], ["z"], alpha=0.5))
    model.graph.node.append(helper.make_node("If", ["c"], ["q"], then_branch=_branch(), else_branch=_branch()))
    node = model.graph.node[2]
    body = model.graph.node[3].attribute[0]
    parts: list[Any] = [model, model.graph, node, node.attribute[0], model.graph.input[0], model.graph.output[0]]
    parts += [model.graph.initializer[0], model.opset_import[0], model.graph.node[3], body, body.g, body.g.node[0]]
    for part in parts:
        part.MergeFromString(UNKNOWN)
    model.MergeFromString(b"\xd3\xf4\x03\x08\x01\xd4\xf4\x03")  # a group
    model.MergeFromString(b"\xdd\xf4\x03\x01\x02\x03\x04\xe1\xf4\x03\x01\x02\x03\x04\x05\x06\x07\x08")  # fixed 32, 64
    return model


def _branch() -> onnx.GraphProto:
    return parser.parse_graph("b () => (float[1] o) { o = Constant<value_floats = [1.0]>() }")


@case()
def training_info_and_configurations() -> onnx.ModelProto:
    model = plain()
    training = model.training_info.add()
    training.algorithm.CopyFrom(parser.parse_graph("step (float[4, 3] g) => (float[4, 3] n) { n = Sub(w, g) }"))
    training.initialization.name = "start"
    prop(training.update_binding, "w=n")
    configuration = model.configuration.add(name="two", num_devices=2)
    configuration.device.extend(["a", "b"])
    device = model.graph.node[0].device_configurations.add(configuration_id="two")
    device.sharding_spec.add(tensor_name="w").device.extend([0, 1])
    return model


@case()
def quantization_annotations_with_their_initializers() -> onnx.ModelProto:
    model = plain()
    for name, value in (("t_scale", np.float32(0.5)), ("t_zero", np.uint8(3))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    for tensor in ("t", "nowhere"):
        annotation = model.graph.quantization_annotation.add(tensor_name=tensor)
        prop(annotation.quant_parameter_tensor_names, "SCALE_TENSOR=t_scale", "ZERO_POINT_TENSOR=t_zero")
    return model


# -- initializers -----------------------------------------------------------------------------------------------------


@case()
def initializers_that_are_inputs_in_ir_3() -> onnx.ModelProto:
    model = plain()
    model.ir_version = 3
    model.opset_import[0].version = 7
    graph = model.graph
    graph.input.insert(0, helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    graph.input[2].doc_string = "the weight"
    graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "unused"))
    graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [2]))
    return model


@case()
def initializers_that_a_caller_may_override() -> onnx.ModelProto:
    model = plain()
    model.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    return model


@case()
def unused_initializers_in_an_odd_order() -> onnx.ModelProto:
    model = plain()
    graph = model.graph
    graph.initializer.insert(0, numpy_helper.from_array(np.zeros(5, np.int64), "spare"))
    graph.initializer.insert(1, graph.initializer.pop())
    return model


@case()
def two_initializers_of_one_name() -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "b"))
    return model


@case()
def typed_data_fields() -> onnx.ModelProto:
    model = plain()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel().tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)
    return model


@case()
def external_data_without_a_file_in_an_unused_tensor() -> onnx.ModelProto:
    model = plain()
    tensor = model.graph.initializer.add(name="far", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    prop(tensor.external_data, "location=weights.bin", "offset=64", "length=8", "checksum=abc", "future=1")
    return model


@case(runs=False)
def an_element_type_from_the_future_and_a_segment() -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.add(name="future", data_type=99, dims=[3], raw_data=b"\1\2\3\4\5")
    tensor = model.graph.initializer.add(name="part", data_type=TensorProto.FLOAT, dims=[8], raw_data=b"\0" * 8)
    tensor.segment.begin, tensor.segment.end = 2, 4
    model.graph.initializer.add(name="big future", data_type=99, dims=[3], raw_data=bytes(5000))
    tensor = model.graph.initializer.add(name="big part", data_type=TensorProto.FLOAT, dims=[8], raw_data=bytes(2000))
    tensor.segment.begin, tensor.segment.end = 2, 502
    model.graph.initializer.add(name="nothing", dims=[0])
    return model


@case()
def empty_and_scalar_tensors() -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "none"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2.5, np.float32), "one"))
    return model


@case()
def string_tensors_that_are_not_all_text() -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.add(name="words", data_type=8, dims=[2], string_data=[b"a", "ü".encode()])
    model.graph.initializer.add(name="bytes", data_type=8, dims=[1, 2], string_data=[b"\xff\xfe", b""])
    return model


@case()
def sparse_initializers() -> onnx.ModelProto:
    model = plain()
    del model.graph.initializer[0]
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.5, -2.5])
    indices = helper.make_tensor("w_i", TensorProto.INT64, [2], [1, 7])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    values = numpy_helper.from_array(np.array([1, 2], np.float16), "half")
    indices = helper.make_tensor("half_i", TensorProto.INT64, [2, 2], [0, 1, 3, 2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    return model


@case(runs=False)
def every_element_type_raw_and_typed() -> onnx.ModelProto:
    model = plain()
    for name, kind in TensorProto.DataType.items():
        if name in ("UNDEFINED", "STRING"):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        array = np.array([1, 0, 1, 1, 0], np.float32).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, f"raw {name}"))
        model.graph.initializer.append(helper.make_tensor(f"typed {name}", kind, [5], array.tolist()))
    return model


# -- nodes and attributes ---------------------------------------------------------------------------------------------


@case(runs=False)
def duplicate_and_empty_node_names() -> onnx.ModelProto:
    model = text("g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Neg(b) y = Neg(c) }")
    model.graph.node[0].name = model.graph.node[1].name = "same"
    return model


@case()
def omitted_inputs_in_the_middle_and_at_the_end() -> onnx.ModelProto:
    model = text("g (float[4] x) => (float[4] y) <float high> { y = Clip(x, , high) }")
    model.graph.node[0].input[:] = ["x", "", "high"]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "high"))
    model.graph.node.append(helper.make_node("Clip", ["x", "", ""], ["z"]))
    return model


@case()
def omitted_outputs() -> onnx.ModelProto:
    model = text("g (float[4] x) => (float[4] y) { y, m = Dropout(x) k, i = Unique<axis = 0>(x) }")
    model.graph.node[0].output[:] = ["y", ""]
    model.graph.node[1].output[:] = ["k", "", "i", ""]
    return model


@case(runs=False)
def attributes_of_every_kind() -> onnx.ModelProto:
    model = plain()
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.int16), "t")
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [2]),
        [4],
    )
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", None, 3])
    values: dict[str, Any] = {
        "float": 0.1,
        "negative zero": -0.0,
        "nan": float("nan"),
        "int": -(2**63),
        "string": "text",
        "bytes": b"\xff\x00",
        "tensor": tensor,
        "sparse": sparse,
        "type": kind,
        "graph": _branch(),
        "floats": [0.5, float("inf")],
        "ints": [1, 2],
        "strings": ["a", "", "ü"],
        "bytes list": [b"a", b"\xff"],
        "tensors": [tensor, numpy_helper.from_array(np.float32(1))],
        "sparses": [sparse, sparse],
        "types": [kind, kind],
        "graphs": [_branch(), _branch()],
    }
    node = model.graph.node.add(op_type="Everything", domain="org.example", output=["e"])
    for name, value in values.items():
        node.attribute.append(helper.make_attribute(name, value, f"doc of {name}"))
    for number in (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS, AttributeProto.TENSORS):
        node.attribute.add(name=f"empty {number}", type=number)
    node.attribute.add(name="tensor without a thing", type=AttributeProto.TENSOR)
    node.attribute.add(name="repeated", type=AttributeProto.INT, i=1)
    node.attribute.add(name="repeated", type=AttributeProto.INT, i=2)
    return model


@case(runs=False)
def attributes_without_or_of_an_unknown_type() -> onnx.ModelProto:
    model = plain()
    model.ir_version = 1
    node = model.graph.node.add(op_type="Old", output=["o"])
    node.attribute.add(name="f", f=1.5)
    node.attribute.add(name="ints", ints=[1, 2])
    node.attribute.add(name="both", i=1, s=b"x")
    node.attribute.add(name="none")
    node.attribute.add(name="future").MergeFromString(b"\xa0\x01\x63")  # type 99
    return model


@case(runs=False)
def nodes_out_of_order_and_names_from_nowhere() -> onnx.ModelProto:
    model = plain()
    model.graph.node.reverse()
    model.graph.node.append(helper.make_node("Add", ["missing", "missing"], ["lost"]))
    return model


@case(runs=False)
def a_tensor_that_is_computed_twice_or_also_an_initializer() -> onnx.ModelProto:
    model = plain()
    model.graph.node.append(helper.make_node("Neg", ["x"], ["t"]))
    model.graph.node.append(helper.make_node("Neg", ["x"], ["w"]))
    model.graph.node.append(helper.make_node("Neg", ["b"], ["x"]))
    return model


# -- types ------------------------------------------------------------------------------------------------------------


@case()
def value_info_of_everything_and_nothing() -> onnx.ModelProto:
    model = plain()
    shapes: dict[str, list[int | str | None] | None]
    shapes = {"gone": [1], "b": [3], "y": ["N", 3], "t": None, "x": ["N", 4], "w": [4, 3]}
    for name, shape in shapes.items():
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


@case()
def value_info_that_disagrees_with_the_interface() -> onnx.ModelProto:
    model = plain()
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None]))
    model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.DOUBLE, None))
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.INT8, [7]))
    return model


@case(runs=False)
def shapes_of_every_sort() -> onnx.ModelProto:
    model = plain()
    shapes: list[list[int | str | None] | None] = [None, [], [None], ["N", 3, None], [0], [-1]]
    for index, shape in enumerate(shapes):
        model.graph.node.append(helper.make_node("Foo", ["x"], [f"s{index}"], domain="org.example"))
        model.graph.value_info.append(helper.make_tensor_value_info(f"s{index}", TensorProto.BFLOAT16, shape))
    kind = model.graph.input[0].type
    kind.denotation = "IMAGE"
    for dim, name in zip(kind.tensor_type.shape.dim, ("DATA_BATCH", "DATA_CHANNEL"), strict=True):
        dim.denotation = name
    model.graph.input.add(name="typeless")
    model.graph.input.add(name="half typed").type.tensor_type.SetInParent()
    model.graph.input.add(name="future").type.tensor_type.elem_type = 99
    return model


@case()
def an_output_without_a_type() -> onnx.ModelProto:
    model = plain()
    model.graph.output[0].ClearField("type")
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]))
    return model


@case(runs=False)
def inputs_that_are_no_tensors() -> onnx.ModelProto:
    model = plain()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
    sequence = helper.make_sequence_type_proto(tensor)
    kinds = [sequence, helper.make_optional_type_proto(tensor), helper.make_optional_type_proto(sequence)]
    kinds.append(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, "M"]))
    kinds.append(helper.make_map_type_proto(TensorProto.INT64, tensor))
    kinds.append(helper.make_sequence_type_proto(kinds[-1]))
    opaque = onnx.TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "org.example", "thing"
    for index, kind in enumerate([*kinds, opaque]):
        model.graph.input.append(helper.make_value_info(f"v{index}", kind))
        model.graph.output.append(helper.make_value_info(f"v{index}", kind))
    return model


@case()
def outputs_that_are_inputs_and_initializers() -> onnx.ModelProto:
    model = plain()
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]))
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]))
    return model


@case()
def an_output_that_is_listed_twice() -> onnx.ModelProto:
    model = plain()
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    return model


# -- bodies -----------------------------------------------------------------------------------------------------------


@case()
def branches_that_capture_tensors_and_a_weight() -> onnx.ModelProto:
    model = text(
        """g (float[2, 4] x, bool c) => (float[2, 3] y) <float[4, 3] w> {
            h = Relu(x)
            y = If (c) <
                then_branch = t () => (float[2, 3] p) { p = MatMul(h, w) },
                else_branch = e () => (float[2, 3] q) <float[1] k = {2.0}> { m = MatMul(x, w) q = Mul(m, k) }
            >
        }"""
    )
    del model.graph.value_info[:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    branch = model.graph.node[1].attribute[0].g
    branch.doc_string = "taken"
    prop(branch.metadata_props, "kind=then")
    branch.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4]))
    branch.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4]))
    return model


@case()
def bodies_five_deep() -> onnx.ModelProto:
    body = "z = Add(x, k)"
    for depth in range(5):
        inner = f"z{depth}" if depth else "z"
        body = (
            f"z{depth + 1} = If (c) <then_branch = t{depth} () => (float[3] {inner}) {{ {body} }}, "
            f"else_branch = e{depth} () => (float[3] o{depth}) {{ o{depth} = Neg(x) }}>"
        )
    model = text(f"g (float[3] x, bool c) => (float[3] z5) <float[3] k = {{1.0, 2.0, 3.0}}> {{ {body} }}")
    del model.graph.value_info[:]
    return model


@case()
def a_loop_and_a_scan() -> onnx.ModelProto:
    return text(
        """g (int64 n, bool c, float[4, 2] x) => (float[2] s, float[2] last, float[4, 2] all)
        <float[2] step = {0.5, 0.25}, float[2] zero = {0.0, 0.0}> {
            s = Loop (n, c, zero) <body = l (int64 i, bool go, float[2] a) => (bool on, float[2] b) {
                on = Identity(go) b = Add(a, step)
            }>
            last, all = Scan (zero, x) <num_scan_inputs = 1, body = sc (float[2] u, float[2] v)
            => (float[2] o, float[2] r) {
                o = Add(u, v) r = Mul(o, step)
            }>
        }"""
    )


@case(runs=False)
def an_inner_name_that_hides_an_outer_one() -> onnx.ModelProto:
    model = build("branches that capture tensors and a weight")
    branch = model.graph.node[1].attribute[1].g
    branch.initializer.append(numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"))
    branch.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4]))
    return model


@case(runs=False)
def the_same_body_in_an_old_ir() -> onnx.ModelProto:
    model = build("branches that capture tensors and a weight")
    model.ir_version = 3
    return model


# -- functions --------------------------------------------------------------------------------------------------------


@case()
def functions_with_defaults_references_and_calls() -> onnx.ModelProto:
    model = text(
        "g (float[3] x) => (float[3] y) { t = local.outer <slope = 0.3> (x) y = local.scale (t) }",
        ir=10,
        opset='"" : 17, "local" : 1',
        functions="""
        <domain: "local", opset_import: ["" : 17], doc_string: "scales">
        scale <factor: float = 2.0, note: string = "n"> (a) => (b)
        { k = Constant <value_float: float = @factor> () b = Mul (a, k) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        outer <slope> (a) => (c) { r = LeakyRelu <alpha: float = @slope> (a) c = local.scale <factor = 0.5> (r) }
        <domain: "local", opset_import: ["" : 17]>
        unused (a) => (b) { b = Neg (a) }
        """,
    )
    del model.graph.value_info[:]
    function = model.functions[0]
    function.doc_string = "doc"
    function.value_info.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, []))
    function.node[1].doc_string = "inner"
    prop(function.metadata_props, "a=b")
    return model


@case()
def function_overloads() -> onnx.ModelProto:
    model = build("functions with defaults references and calls")
    copy = model.functions.add()
    copy.CopyFrom(model.functions[2])
    copy.overload = "other"
    copy.node[0].op_type = "Abs"
    model.graph.node.add(op_type="unused", domain="local", overload="other", input=["y"], output=["z"])
    return model


@case()
def a_branch_within_a_function() -> onnx.ModelProto:
    model = text(
        "g (float[3] x, bool c) => (float[3] y) { y = local.pick <a = 0.5> (x, c) }",
        ir=10,
        opset='"" : 17, "local" : 1',
        functions="""
        <domain: "local", opset_import: ["" : 17]>
        pick <a> (x, c) => (y) {
            y = If (c) <
                then_branch = t () => (p) { p = LeakyRelu <alpha: float = @a> (x) },
                else_branch = e () => (q) { q = Neg (x) }
            >
        }""",
    )
    del model.graph.value_info[:]
    return model
