from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from counted_calls import calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nasty_models import CASES, RUNNABLE, build, plain
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsqueeze.errors import ModelError, UsageError
from onnxsqueeze.ir import wire
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.encode import encode, tensor_proto
from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph, Node
from onnxsqueeze.ir.protos import varint
from onnxsqueeze.ir.weights import Derived, Stored, peek

ZOO = sorted(Path(os.environ.get("LAB", Path.home() / ".cache" / "squeeze-lab")).joinpath("zoo").glob("*.onnx"))
SHIPPED = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))


def run(model: onnx.ModelProto | Path, **feeds: Any) -> list[Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def wide(size: int = 32) -> onnx.ModelProto:
    """A model with weights on both sides of the 1 KiB border and a body with one of each."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, {size}] x, bool c) => (float[N, {size}] y) <float[{size}, {size}] w, float[{size}] b> {{
            t = MatMul(x, w)
            u = Add(t, b)
            y = If (c) <
                then_branch = p () => (float[N, {size}] i) <float[{size}, {size}] v> {{
                    m = MatMul(u, v) i = Add(m, b)
                }},
                else_branch = q () => (float[N, {size}] j) {{ j = Identity(u) }}
            >
        }}"""
    )
    rng = np.random.default_rng(1)
    body = model.graph.node[2].attribute[0].g
    for graph, name, shape in (
        (model.graph, "w", (size, size)),
        (model.graph, "b", (size,)),
        (body, "v", (size, size)),
    ):
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
        graph.initializer[-1].doc_string = f"doc of {name}"
    del model.graph.value_info[:]
    return model


FEEDS = {"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), "c": np.array(True)}


def externally(folder: Path, threshold: int = 0) -> Path:
    path = folder / "in.onnx"
    onnx.save(wide(), path, save_as_external_data=True, location="in.bin", size_threshold=threshold)
    return path


# -- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_untouched_model_is_encoded_to_the_same_bytes(name: str) -> None:
    model = build(name)
    data = model.SerializeToString()

    assert encode(load(model)).SerializeToString() == data
    assert encode(load(model).copy()).SerializeToString() == data
    assert model.SerializeToString() == data


@pytest.mark.parametrize("name", CASES)
def test_an_untouched_file_is_saved_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(build(name).SerializeToString())
    if name.startswith("external data"):
        (tmp_path / "weights.bin").write_bytes(bytes(72))
        assert load(path).external
        return
    save(load(path), tmp_path / "out.onnx")

    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def values(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield every constant that is used, in bodies, functions and attributes too."""
    for body in (graph, *graph.functions):
        stack = [body]
        while stack:
            for node in stack.pop().nodes:
                stack.extend(node.subgraphs())
                yield from (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
                yield from (value for value in node.attrs.values() if isinstance(value, gs.Constant))


@pytest.mark.parametrize("name", CASES)
def test_reading_values_changes_nothing(name: str) -> None:
    model = build(name)
    graph = load(model)
    for constant in values(graph):
        if getattr(constant._values, "readable", True):
            assert isinstance(constant.values, np.ndarray)

    assert encode(graph).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("name", sorted(RUNNABLE))
def test_a_model_with_every_weight_replaced_by_an_equal_one_still_opens(name: str) -> None:
    graph = load(build(name))
    for constant in values(graph):
        if constant.dtype != object and not getattr(constant._values, "external", False):
            constant.values = Derived(constant.shape, constant.dtype, constant._values.load)
    model = encode(graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    assert [item.name for item in session.get_outputs()] == [item.name for item in build(name).graph.output]


@pytest.mark.skipif(not ZOO, reason="no zoo of real models here")
@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_a_real_model_is_encoded_and_saved_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    graph = load(path)
    parsed = onnx.load(path, load_external_data=False).SerializeToString()

    assert encode(graph).SerializeToString() == parsed
    save(graph, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    graph.file = None
    save(graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == parsed


def test_the_models_that_onnx_ships_are_encoded_to_the_same_bytes() -> None:
    different = []
    for path in SHIPPED:
        parsed = onnx.load(path, load_external_data=False).SerializeToString()
        if encode(load(path)).SerializeToString() != parsed:
            different.append(path)

    assert len(SHIPPED) > 100
    assert not different


def test_the_node_models_of_onnx_are_encoded_to_the_same_bytes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        models = [test.model for test in collect_testcases(None) if test.model is not None]
    different = [
        model.graph.name for model in models if encode(load(model)).SerializeToString() != model.SerializeToString()
    ]

    assert len(models) > 1000
    assert not different


def test_a_file_in_an_odd_serialization_is_saved_as_it_is(tmp_path: Path) -> None:
    model = wide()
    first = onnx.ModelProto()
    first.opset_import.extend(model.opset_import)
    second = onnx.ModelProto(ir_version=8)
    second.graph.CopyFrom(model.graph)
    odd = first.SerializeToString() + second.SerializeToString()[2:] + b"\x08\x88\x00"  # an overlong 8 at the end
    (tmp_path / "in.onnx").write_bytes(odd)
    graph = load(tmp_path / "in.onnx")
    save(graph, tmp_path / "out.onnx")

    assert encode(graph).SerializeToString() != odd
    assert (tmp_path / "out.onnx").read_bytes() == odd
    graph.nodes[0].name = "changed"
    save(graph, tmp_path / "new.onnx")
    assert onnx.load(tmp_path / "new.onnx").graph.node[0].name == "changed"


def test_a_graph_in_two_parts_is_read_as_protobuf_merges_it(tmp_path: Path) -> None:
    one, two = onnx.ModelProto(), onnx.ModelProto()
    one.CopyFrom(plain())
    two.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "more"))
    (tmp_path / "in.onnx").write_bytes(one.SerializeToString() + two.SerializeToString())

    graph = load(tmp_path / "in.onnx")

    assert [item.name for item in graph.source.initializers] == ["w", "b", "more"]
    assert peek(graph.spare[0]).sum() == 1000
    save(graph, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(tmp_path / "in.onnx")


def test_of_raw_data_given_twice_the_last_counts_as_in_protobuf(tmp_path: Path) -> None:
    one, two = TensorProto(name="w", data_type=1, dims=[500]), TensorProto()
    one.raw_data, two.raw_data = bytes(2000), np.ones(500, np.float32).tobytes()
    tensor = one.SerializeToString() + two.SerializeToString()
    graph = b"\x2a" + varint(len(tensor)) + tensor
    (tmp_path / "in.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(graph)) + graph)

    assert peek(load(tmp_path / "in.onnx").spare[0]).sum() == 500


OPS = {"Relu": 1, "Neg": 1, "Add": 2, "Mul": 2, "Max": 3}


@st.composite
def programs(draw: st.DrawFn) -> str:
    """The text of a random model: known and omitted inputs, repeated names of nodes, weights of any size."""
    known = ["x", "w"]
    lines = []
    for index in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(sorted(OPS)))
        operands = ", ".join(draw(st.sampled_from(known)) for _ in range(OPS[op]))
        name = draw(st.sampled_from(["", "[n]", "[m]"]))
        lines.append(f"{name} t{index} = {op}({operands})")
        known.append(f"t{index}")
    outputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
    size = draw(st.sampled_from([0, 1, 255, 256, 300]))
    numbers = ", ".join(["0.5"] * size)
    signature = ", ".join(f"float[{size}] {name}" for name in outputs)
    return (
        f'<ir_version: {draw(st.integers(4, 10))}, opset_import: ["" : {draw(st.integers(13, 17))}]>\n'
        f"g (float[{size}] x) => ({signature}) <float[{size}] w = {{{numbers}}}> {{ {' '.join(lines)} }}"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(), st.booleans())
def test_any_model_survives_in_memory_and_on_disk(tmp_path: Path, text: str, raw: bool) -> None:
    model = parser.parse_model(text)
    if raw:
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    graph.file = None  # so that the bytes are really written anew
    save(graph, tmp_path / "out.onnx")

    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert encode(load(model)).SerializeToString() == path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(CASES)), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3), st.integers(0)
)
def test_a_damaged_file_is_refused_or_survives(
    tmp_path: Path, name: str, damage: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(build(name).SerializeToString())
    for position, byte in damage:
        data[position % len(data)] = byte
    if not damage:
        del data[end % len(data) :]
    path = tmp_path / "in.onnx"
    path.write_bytes(data)
    try:
        encoded = encode(load(path))
    except ModelError as error:
        assert str(path) in str(error)
    else:
        parsed = onnx.ModelProto.FromString(bytes(data))
        assert encoded == parsed or encoded.SerializeToString() == parsed.SerializeToString()


@given(st.binary(max_size=200))
def test_cutting_any_bytes_gives_a_model_back_or_says_why_not(data: bytes) -> None:
    try:
        skeleton, payloads = wire.cut(memoryview(data))
    except wire.Malformed:
        return

    assert skeleton == data
    assert not payloads


# -- edits through the plain graphsurgeon interface --------------------------------------------------------------------


def test_a_new_weight_keeps_name_doc_and_place() -> None:
    model = wide()
    graph = load(model)
    graph.nodes[0].inputs[1].values = np.ones((32, 8), np.float16)
    after = encode(graph)
    tensor = after.graph.initializer[0]

    assert (tensor.name, tensor.doc_string, list(tensor.dims)) == ("w", "doc of w", [32, 8])
    assert numpy_helper.to_array(tensor).dtype == np.float16
    after.graph.initializer[0].CopyFrom(model.graph.initializer[0])
    assert after == model


def test_an_array_changed_in_place_is_seen() -> None:
    graph = load(wide())
    graph.nodes[1].inputs[1].values[3] = 42

    assert numpy_helper.to_array(encode(graph).graph.initializer[1])[3] == 42


def test_a_renamed_tensor_is_renamed_everywhere_with_its_docs() -> None:
    model = build("branches that capture tensors and a weight")
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4], "doc of h"))
    graph = load(model)
    graph.nodes[0].outputs[0].name = "hidden"
    graph.inputs[0].name = "image"
    after = encode(graph)

    assert [(item.name, item.doc_string) for item in after.graph.value_info] == [("hidden", "doc of h")]
    assert after.graph.node[1].attribute[0].g.node[0].input[0] == "hidden"
    assert {item.name for item in after.graph.node[1].attribute[0].g.value_info} == {"hidden", "image"}
    assert run(after, image=np.ones((2, 4), np.float32), c=np.array(True))[0].tolist() == [[4.0] * 3] * 2


def test_a_new_shape_keeps_docs_denotations_and_the_dimensions_that_stay() -> None:
    model = build("metadata and docs at every level")
    for dim, word in zip(model.graph.value_info[0].type.tensor_type.shape.dim, ("A", "B"), strict=True):
        dim.denotation = word
    graph = load(model)
    tensor = graph.nodes[0].outputs[0]
    tensor.shape = ["N", 5]
    tensor.dtype = np.float16
    info = encode(graph).graph.value_info[0]

    assert info.doc_string == model.graph.value_info[0].doc_string
    assert info.metadata_props == model.graph.value_info[0].metadata_props
    assert helper.printable_value_info(info).startswith("%t[FLOAT16, Nx5]")
    assert [dim.denotation for dim in info.type.tensor_type.shape.dim] == ["A", "B"]
    tensor.shape = None
    assert not encode(graph).graph.value_info[0].type.tensor_type.HasField("shape")


def test_attributes_are_python_values() -> None:
    attrs = load(build("attributes of every kind")).nodes[2].attrs

    assert (attrs["int"], attrs["string"], attrs["bytes"]) == (-(2**63), "text", b"\xff\x00")
    assert (attrs["ints"], attrs["strings"], attrs["bytes list"]) == ([1, 2], ["a", "", "ü"], ["a", b"\xff"])
    assert attrs["tensor"].values.tolist() == [0, 1, 2]
    assert [item.values.tolist() for item in attrs["tensors"]] == [[0, 1, 2], 1]
    assert isinstance(attrs["type"], onnx.TypeProto)
    assert isinstance(attrs["sparses"][1], onnx.SparseTensorProto)
    assert [body.nodes[0].op for body in attrs["graphs"]] == ["Constant"] * 2
    assert attrs["repeated"] == 2
    reference = load(build("functions with defaults references and calls")).functions[0].nodes[0].attrs
    assert reference["value_float"] == gs.Node.AttributeRef("factor", float)


def test_a_change_of_sign_or_type_is_a_change() -> None:
    graph = load(build("attributes of every kind"))
    attrs = graph.nodes[2].attrs
    attrs["negative zero"], attrs["ints"], attrs["graphs"] = 0.0, [1.0, 2.0], attrs["graphs"][:1]
    after = {item.name: item for item in encode(graph).graph.node[2].attribute}

    assert str(after["negative zero"].f) == "0.0"
    assert (after["ints"].type, list(after["ints"].floats)) == (onnx.AttributeProto.FLOATS, [1.0, 2.0])
    assert not after["ints"].ints
    assert len(after["graphs"].graphs) == 1


def test_a_changed_node_keeps_its_docs_and_its_other_attributes() -> None:
    model = build("attributes of every kind")
    graph = load(model)
    node = graph.nodes[2]
    node.op, node.name, node.attrs["ints"], node.attrs["float"] = "Other", "renamed", [3], 2
    node.attrs["tensor"] = np.ones(2, np.float64)
    del node.attrs["string"]
    node.attrs["empty 7"] = []
    node.attrs["brand new"] = [1.5]
    before = {item.name: item for item in model.graph.node[2].attribute}
    after = {item.name: item for item in encode(graph).graph.node[2].attribute}

    assert before.keys() - after.keys() == {"string"}
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} <= {
        "ints",
        "float",
        "tensor",
        "nan",
    }
    assert (after["ints"].doc_string, list(after["ints"].ints)) == ("doc of ints", [3])
    assert (after["float"].type, after["float"].f) == (onnx.AttributeProto.FLOAT, 2.0)
    assert numpy_helper.to_array(after["tensor"].t).tolist() == [1, 1]
    assert after["empty 7"].type == onnx.AttributeProto.INTS
    assert list(after["brand new"].floats) == [1.5]


def test_an_attribute_of_the_oldest_files_stays_without_a_type() -> None:
    graph = load(build("attributes without or of an unknown type"))
    graph.nodes[2].attrs["f"] = 2.5
    attribute = encode(graph).graph.node[2].attribute[0]

    assert (attribute.f, attribute.HasField("type")) == (2.5, False)


def test_overloads_are_different_functions() -> None:
    model = build("function overloads")
    graph = load(model)
    graph.toposort()

    assert len({function.unique_id for function in graph.functions}) == 4
    assert len(encode(graph).functions) == 4


def test_nodes_of_plain_graphsurgeon_are_written() -> None:
    graph = load(plain())
    y = graph.outputs[0]
    mid = gs.Variable("mid", np.float32, ["N", 3])
    graph.nodes[1].outputs = [mid]
    two = gs.Constant("two", np.array(2, np.float32))
    graph.nodes.append(gs.Node("Mul", "scale", inputs=[mid, two], outputs=[y]))
    layered = graph.layer(op="Neg", inputs=[y], outputs=["neg"])[0]
    layered.dtype, layered.shape = np.float32, ["N", 3]
    graph.outputs.append(layered)
    after = encode(graph)
    x = np.ones((2, 4), np.float32)

    onnx.checker.check_model(after)
    assert [item.name for item in after.graph.initializer] == ["w", "b", "two"]
    assert [item.name for item in after.graph.value_info] == ["mid"]
    assert np.array_equal(run(after, x=x)[0], 2 * run(plain(), x=x)[0])
    assert np.array_equal(run(after, x=x)[1], -2 * run(plain(), x=x)[0])
    assert isinstance(graph.nodes[-1], Node)


def test_a_deleted_node_takes_its_weight_and_types_along_but_no_spare_ones() -> None:
    model = build("value info of everything and nothing")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "spare"))
    graph = load(model)
    first, second = graph.nodes
    second.inputs[0] = first.inputs[0]
    second.attrs["was"] = "Add"
    first.inputs.clear()
    first.outputs.clear()
    graph.nodes.remove(first)
    after = encode(graph).graph

    assert [item.name for item in graph.spare] == ["spare"]
    assert [item.name for item in after.initializer] == ["b", "spare"]
    assert [item.name for item in after.value_info] == ["gone", "b", "y", "x"]


def test_a_folded_variable_becomes_an_initializer_without_a_type_entry() -> None:
    model = build("value info of everything and nothing")
    graph = load(model)
    tensor = graph.nodes[0].outputs[0]
    graph.nodes[0].inputs.clear()
    graph.nodes[0].outputs.clear()
    del graph.nodes[0]
    tensor.to_constant(np.ones((1, 3), np.float32))
    after = encode(graph).graph

    assert [item.name for item in after.initializer] == ["b", "t"]
    assert "t" not in [item.name for item in after.value_info]


def test_graphsurgeons_own_cleanup_sort_and_folding_work() -> None:
    model = build("branches that capture tensors and a weight")
    graph = load(model)
    graph.nodes.reverse()
    graph.toposort()
    graph.fold_constants(recurse_subgraphs=False)
    graph.cleanup()

    assert encode(graph) == model


def test_graphsurgeons_own_exporter_and_importer_work_with_the_codec() -> None:
    model = wide()
    exported = gs.export_onnx(load(model))
    imported = encode(gs.import_onnx(model))

    exported.ir_version = model.ir_version  # it writes that of onnx, which may be too new for the runtime
    for other in (exported, imported):
        assert np.array_equal(run(other, **FEEDS)[0], run(model, **FEEDS)[0])


def test_a_captured_weight_stays_one_outer_initializer() -> None:
    graph = load(build("branches that capture tensors and a weight"))
    branch = graph.nodes[1].attrs["then_branch"]
    weight = branch.nodes[0].inputs[1]
    weight.values = np.full((4, 3), 2, np.float32)
    after = encode(graph).graph

    assert weight is graph.nodes[1].attrs["else_branch"].nodes[0].inputs[1]
    assert [item.name for item in after.initializer] == ["w"]
    assert [len(item.g.initializer) for item in after.node[1].attribute] == [0, 1]
    assert numpy_helper.to_array(after.initializer[0]).max() == 2


def test_a_new_constant_lands_in_the_innermost_graph_around_its_users() -> None:
    graph = load(build("branches that capture tensors and a weight"))
    one, other = graph.nodes[1].attrs.values()
    only, both = gs.Constant("only", np.ones(3, np.float32)), gs.Constant("both", np.ones((2, 4), np.float32))
    one.nodes.append(gs.Node("Add", inputs=[one.outputs[0], only], outputs=[gs.Variable("r")]))
    one.outputs = [one.nodes[-1].outputs[0]]
    for body in (one, other):
        added = gs.Variable(f"in_{body.name}", np.float32)
        matmul = next(node for node in body.nodes if node.op == "MatMul")
        body.nodes.insert(0, gs.Node("Add", inputs=[matmul.inputs[0], both], outputs=[added]))
        matmul.inputs[0] = added
    after = encode(graph)

    assert [item.name for item in after.graph.initializer] == ["w", "both"]
    assert [[item.name for item in each.g.initializer] for each in after.graph.node[1].attribute] == [["only"], ["k"]]
    assert run(after, x=np.ones((2, 4), np.float32), c=np.array(True))[0].tolist() == [[9.0] * 3] * 2


def test_new_constants_of_functions_and_old_bodies_become_nodes() -> None:
    graph = load(build("a branch within a function"))
    function = graph.functions[0]
    x, y = function.inputs[0], gs.Variable("twice")
    function.nodes.insert(0, gs.Node("Mul", inputs=[x, gs.Constant("two", np.array(2, np.float32))], outputs=[y]))
    for body in function.nodes[1].subgraphs():
        body.nodes[0].inputs[0] = y
    after = encode(graph)
    old = load(build("the same body in an old ir"))
    body = old.nodes[1].attrs["then_branch"]
    body.nodes[0].inputs[1] = gs.Constant("fresh", np.ones((4, 3), np.float32))

    assert [node.op_type for node in after.functions[0].node] == ["Constant", "Mul", "If"]
    assert run(after, x=np.ones(3, np.float32), c=np.array(False))[0].tolist() == [-2, -2, -2]
    assert [node.op_type for node in encode(old).graph.node[1].attribute[0].g.node] == ["Constant", "MatMul"]


def test_initializers_of_ir_3_stay_inputs_and_new_ones_become_inputs() -> None:
    model = build("initializers that are inputs in ir 3")
    graph = load(model)
    graph.nodes[0].inputs[1].name = "weight"
    graph.nodes[1].inputs[1] = gs.Constant("bias", np.zeros(3, np.float32))
    after = encode(graph)

    assert [item.name for item in graph.inputs] == ["x"]
    assert not graph.nodes[0].inputs[1].overridable
    assert [item.name for item in after.graph.input] == ["x", "weight", "unused", "bias"]
    assert [item.name for item in after.graph.initializer] == ["weight", "unused", "bias"]
    onnx.checker.check_model(after)
    graph.ir_version = 8
    assert [item.name for item in encode(graph).graph.input] == ["x"]


def test_an_overridable_initializer_is_marked_and_stays_an_input() -> None:
    graph = load(build("initializers that a caller may override"))
    weight = graph.nodes[0].inputs[1]

    assert isinstance(weight, gs.Constant)
    assert weight.overridable
    assert [item.name for item in graph.inputs] == ["x"]
    weight.values = np.zeros((4, 5), np.float32)
    after = encode(graph).graph
    assert [item.name for item in after.input] == ["w", "x"]
    assert [dim.dim_value for dim in after.input[0].type.tensor_type.shape.dim] == [4, 5]
    graph.nodes[0].inputs[1] = gs.Constant("other", np.zeros((4, 3), np.float32))
    assert [item.name for item in encode(graph).graph.input] == ["w", "x"]
    weight.overridable = False
    assert [item.name for item in encode(graph).graph.input] == ["x"]
    assert [item.name for item in encode(graph).graph.initializer] == ["b", "other"]


def test_inputs_and_outputs_can_be_added_reordered_and_removed() -> None:
    graph = load(build("initializers that a caller may override"))
    more = gs.Variable("more", TensorProto.INT64, ["N", None])
    graph.inputs.insert(0, more)
    graph.outputs = [graph.nodes[0].outputs[0], *graph.outputs, more]
    graph.nodes[0].outputs[0].dtype = np.dtype("float32")
    after = encode(graph).graph

    assert [item.name for item in after.input] == ["w", "more", "x"]
    assert [item.name for item in after.output] == ["t", "y", "more"]
    assert after.input[1] == after.output[2] == helper.make_tensor_value_info("more", TensorProto.INT64, ["N", None])
    graph.inputs = graph.inputs[1:]
    assert [item.name for item in encode(graph).graph.input] == ["w", "x"]


def test_the_opset_and_the_domains_of_new_nodes_are_imported() -> None:
    graph = load(build("opsets with the alias a custom and an unused domain"))
    graph.opset = 18
    graph.nodes.append(Node("FusedMatMul", domain="com.microsoft", inputs=[], outputs=[gs.Variable("f")]))
    after = encode(graph)

    assert {item.domain: item.version for item in after.opset_import} == {
        "org.example": 3,
        "ai.onnx": 18,
        "ai.onnx.ml": 3,
        "com.microsoft": 1,
    }
    assert graph.nodes[0].domain == ""
    assert after.graph.node[0].domain == "ai.onnx"


def test_metadata_can_be_edited_at_every_level() -> None:
    graph = load(build("branches that capture tensors and a weight"))
    graph.metadata["author"] = "me"
    graph.nodes[1].attrs["then_branch"].metadata = {"kind": "other"}
    assert graph.proto is not None
    graph.proto.metadata_props.add(key="graph", value="yes")
    graph.producer_name, graph.doc_string = "us", "new"
    after = encode(graph)
    again = load(after)

    assert again.metadata == {"author": "me"}
    assert again.nodes[1].attrs["then_branch"].metadata == {"kind": "other"}
    assert [item.key for item in after.graph.metadata_props] == ["graph"]
    assert (after.producer_name, after.graph.doc_string) == ("us", "new")


def test_annotations_follow_their_tensor() -> None:
    graph = load(build("quantization annotations with their initializers"))
    graph.nodes[0].outputs[0].name = "renamed"

    assert [item.tensor_name for item in encode(graph).graph.quantization_annotation] == ["renamed", "nowhere"]
    assert {item.name for item in graph.spare} == {"t_scale", "t_zero"}


def test_a_type_that_is_no_tensor_can_be_changed_where_it_has_elements() -> None:
    graph = load(build("inputs that are no tensors"))
    sequence = next(item for item in graph.inputs if item.name == "v0")
    assert (sequence.type, sequence.dtype, sequence.shape) == ("sequence_type", np.float32, ["N", 3])
    sequence.dtype, sequence.shape = np.float16, [7]
    after = {item.name: item for item in encode(graph).graph.input}

    tensor = after["v0"].type.sequence_type.elem_type.tensor_type
    assert (tensor.elem_type, tensor.shape.dim[0].dim_value) == (TensorProto.FLOAT16, 7)


def test_a_graph_from_nothing_is_written() -> None:
    x, y = gs.Variable("x", np.float32, ["N"]), gs.Variable("y", np.float32, ["N"])
    node = Node("Add", inputs=[x, gs.Constant("c", np.ones(1, np.float32))], outputs=[y])
    model = encode(Graph([node], [x], [y], name="new", opset=17))

    onnx.checker.check_model(model)
    assert run(model, x=np.ones(2, np.float32))[0].tolist() == [2, 2]


def test_an_export_type_converts_the_values() -> None:
    graph = load(plain())
    graph.nodes[0].inputs[1]._export_dtype = TensorProto.FLOAT16

    assert numpy_helper.to_array(encode(graph).graph.initializer[0]).dtype == np.float16


def test_nodes_and_graphs_equal_only_themselves() -> None:
    graph = load(build("duplicate and empty node names"))
    other = gs.Node("Relu", "same", inputs=list(graph.nodes[0].inputs), outputs=list(graph.nodes[0].outputs))

    assert len({*graph.nodes, graph}) == 5
    assert graph.nodes[0] != other
    assert other != graph.nodes[0]
    assert load(plain()) != load(plain())


def test_a_value_that_onnx_cannot_hold_is_named() -> None:
    graph = load(plain())
    graph.nodes[0].attrs["odd"] = {"a": 1}
    with pytest.raises(ModelError, match="attribute 'odd' has a value of type dict"):
        encode(graph)
    graph.nodes[0].attrs["odd"] = [1, "a"]
    with pytest.raises(ModelError, match="attribute 'odd' has a list of mixed values"):
        encode(graph)


# -- copies and skeletons ---------------------------------------------------------------------------------------------


def test_editing_a_copy_leaves_the_original_alone(tmp_path: Path) -> None:
    graph = load(externally(tmp_path))
    before = encode(graph).SerializeToString()
    pinned = graph.nodes[1].inputs[1].values
    copy = graph.copy()
    for node in copy.nodes:
        node.name = "changed"
        node.attrs["extra"] = 1
    copy.nodes[0].inputs[1].values = np.zeros((32, 32), np.float32)
    copy.nodes[1].inputs[1].values[:] = 0
    copy.nodes[2].attrs["then_branch"].nodes[1].inputs[1].name = "other"
    copy.metadata["a"] = "b"
    copy.inputs[0].shape[0] = 1
    copy.nodes[2].attrs["then_branch"].outputs.clear()
    copy.nodes.pop()

    assert pinned.any()
    assert encode(graph).SerializeToString() == before
    assert copy.nodes[0].inputs[0] is copy.inputs[0]
    assert copy.file is graph.file


def test_a_copy_shares_weights_but_no_tensors() -> None:
    graph = load(build("functions with defaults references and calls"))
    copy = graph.copy()

    assert copy.functions[0] is not graph.functions[0]
    assert copy.functions[0].functions is copy.functions
    assert copy.nodes[0].inputs[0] is not graph.nodes[0].inputs[0]


def test_a_skeleton_reads_no_big_float_weight_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = externally(tmp_path, threshold=200)

    def never(*_: object) -> np.ndarray[Any, Any]:
        raise AssertionError("a weight was read")

    graph = load(path)
    monkeypatch.setattr(Stored, "_external", never)
    graph.nodes[2].attrs["then_branch"].nodes[0].inputs[1].values = Derived((32, 32), np.float32, never)
    graph.nodes[1].inputs[1].values = np.arange(32, dtype=np.float32)
    model = encode(graph, skeleton=True)
    shapes = {item.name: item for item in onnx.shape_inference.infer_shapes(model).graph.value_info}

    assert model.ByteSize() < 3000
    assert [item.name for item in model.graph.initializer] == ["w", "b"]
    assert numpy_helper.to_array(model.graph.initializer[1])[3] == 3
    assert shapes["t"].type.tensor_type.shape.dim[1].dim_value == 32


def test_a_tensor_proto_holds_its_data_wherever_that_stood(tmp_path: Path) -> None:
    graph = load(externally(tmp_path))
    proto = tensor_proto(graph.nodes[0].inputs[1])

    assert numpy_helper.to_array(proto).tolist() == numpy_helper.to_array(wide().graph.initializer[0]).tolist()
    assert proto.doc_string == "doc of w"


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_big_weight_of_a_file_is_a_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(wide(), path)
    weight = load(path).nodes[0].inputs[1]._values

    assert isinstance(weight, Stored)
    assert not weight.peek().flags.owndata
    assert not weight.proto.raw_data
    assert weight.load().tolist() == numpy_helper.to_array(wide().graph.initializer[0]).tolist()


def test_changed_and_derived_weights_are_spliced_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(wide(), path)
    graph = load(path)
    first = graph.nodes[0].inputs[1]
    source = first._values
    first.values = Derived((32, 32), np.float32, lambda: source.peek() * 2)
    save(graph, tmp_path / "out.onnx")
    expected = encode(graph)

    assert (tmp_path / "out.onnx").read_bytes() == expected.SerializeToString()
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)


@pytest.mark.parametrize("threshold", [0, 1000])
def test_external_data_is_written_anew_beside_the_output(tmp_path: Path, threshold: int) -> None:
    path = externally(tmp_path, threshold)
    inputs = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    (tmp_path / "o").mkdir()
    save(load(path), tmp_path / "o" / "out.onnx")
    save(load(path), tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "o" / "out.onnx")
    where = {item.name: item for item in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer}

    assert sorted(item.name for item in (tmp_path / "o").iterdir()) == ["out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx.data").read_bytes() == (tmp_path / "o" / "out.onnx.data").read_bytes()
    assert {name: (tmp_path / name).read_bytes() for name in inputs} == inputs
    assert np.array_equal(run(tmp_path / "o" / "out.onnx", **FEEDS)[0], run(wide(), **FEEDS)[0])
    assert where["w"].data_location == TensorProto.EXTERNAL
    assert where["b"].data_location == TensorProto.DEFAULT
    for tensor, expected in zip(saved.graph.initializer, wide().graph.initializer, strict=True):
        assert numpy_helper.to_array(tensor).tolist() == numpy_helper.to_array(expected).tolist()
        assert tensor.doc_string == expected.doc_string


def test_a_model_saved_with_external_data_can_be_loaded_and_saved_again(tmp_path: Path) -> None:
    save(load(externally(tmp_path)), tmp_path / "one.onnx")
    save(load(tmp_path / "one.onnx"), tmp_path / "two.onnx")

    assert (tmp_path / "one.onnx.data").read_bytes() == (tmp_path / "two.onnx.data").read_bytes()
    assert (tmp_path / "one.onnx").read_bytes().replace(b"one", b"two") == (tmp_path / "two.onnx").read_bytes()


def test_external_weights_start_on_pages_and_shared_ones_are_written_once(tmp_path: Path) -> None:
    path = externally(tmp_path)
    model = onnx.load(path, load_external_data=False)
    twin = model.graph.initializer.add()
    twin.CopyFrom(model.graph.initializer[0])
    twin.name = "twin"
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    shared = Derived((400,), np.float32, lambda: np.ones(400, np.float32))
    graph.nodes.append(
        gs.Node("Sum", inputs=[gs.Constant(f"s{i}", shared) for i in range(2)], outputs=[gs.Variable("s")])
    )
    save(graph, tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    offsets = {
        item.name: {entry.key: entry.value for entry in item.external_data}.get("offset")
        for item in saved
        if item.external_data
    }

    assert offsets == {"w": "0", "twin": "0", "s0": "4096", "s1": "4096"}
    assert (tmp_path / "out.onnx.data").stat().st_size == 8192 + 4096


def test_tensors_that_cannot_be_read_stay_in_the_model(tmp_path: Path) -> None:
    path = externally(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for name in ("big future", "big part"):
        odd = build("an element type from the future and a segment").graph.initializer
        model.graph.initializer.append(next(item for item in odd if item.name == name))
    path.write_bytes(model.SerializeToString())
    graph = load(path)
    save(graph, tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer

    assert list(saved)[2:] == list(model.graph.initializer)[2:]
    graph.spare[1].values = np.ones(3, np.float32)
    assert numpy_helper.to_array(encode(graph).graph.initializer[3]).tolist() == [1, 1, 1]


def test_a_model_beyond_the_limit_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsqueeze.ir.files._LIMIT", 4000)
    graph = load(wide())
    save(graph, tmp_path / "out.onnx")

    assert (tmp_path / "out.onnx.data").stat().st_size == 8192
    assert np.array_equal(run(tmp_path / "out.onnx", **FEEDS)[0], run(wide(), **FEEDS)[0])


def test_only_one_derived_weight_is_alive_at_a_time(tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref[Any]] = []
    most = 0

    def compute() -> np.ndarray[Any, Any]:
        nonlocal most
        array = np.ones((32, 32), np.float32)
        alive.append(weakref.ref(array))
        most = max(most, sum(item() is not None for item in alive))
        return array

    for path in (externally(tmp_path), tmp_path / "inline.onnx"):
        if not path.exists():
            onnx.save(wide(), path)
        graph = load(path)
        sums = [
            gs.Node(
                "Sum",
                inputs=[gs.Constant(f"k{i}", Derived((32, 32), np.float32, compute))],
                outputs=[gs.Variable(f"s{i}")],
            )
            for i in range(4)
        ]
        graph.nodes.extend(sums)
        save(graph, tmp_path / "out.onnx")

    assert len(alive) == 8
    assert most == 1


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(28, "x"), ModelError("bad")])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, external: bool, failure: Any) -> None:
    def fail() -> np.ndarray[Any, Any]:
        raise failure

    path = externally(tmp_path) if external else tmp_path / "in.onnx"
    onnx.save(wide(), path) if not external else None
    (tmp_path / "out.onnx").write_bytes(b"old")
    graph = load(path)
    graph.nodes[0].inputs[1].values = Derived((32, 32), np.float32, fail)
    before = sorted(tmp_path.iterdir())
    expected = UsageError if isinstance(failure, OSError) else failure if isinstance(failure, type) else type(failure)
    with pytest.raises(expected):
        save(graph, tmp_path / "out.onnx")

    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path = externally(tmp_path)
    inline = tmp_path / "inline.onnx"
    onnx.save(wide(), inline)
    (tmp_path / "link.onnx").symlink_to("inline.onnx")
    path.rename(tmp_path / "x.onnx")
    model = onnx.load(tmp_path / "x.onnx", load_external_data=False)
    for tensor in (*model.graph.initializer, model.graph.node[2].attribute[0].g.initializer[0]):
        tensor.external_data[0].value = "y.onnx.data"
    (tmp_path / "in.bin").rename(tmp_path / "y.onnx.data")
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    before = {item: item.read_bytes() for item in tmp_path.iterdir()}

    for source, target in (("inline", "inline"), ("inline", "link"), ("link", "inline"), ("x", "x"), ("x", "y")):
        with pytest.raises(UsageError, match="belongs to the input model"):
            save(load(tmp_path / f"{source}.onnx"), tmp_path / f"{target}.onnx")
    assert {item: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    graph = load(wide())
    (tmp_path / "folder").mkdir()

    with pytest.raises(UsageError, match=r"nowhere/out\.onnx cannot be written: No such file or directory"):
        save(graph, tmp_path / "nowhere" / "out.onnx")
    with pytest.raises(UsageError, match="folder is not a file"):
        save(graph, tmp_path / "folder")
    with pytest.raises(UsageError, match="/dev/null is not a file"):
        save(graph, "/dev/null")


def test_an_output_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save(load(wide()), tmp_path / "out.onnx")

    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "usual").stat().st_mode


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "text": (lambda data: b"This is a text file, and a rather long one.\n" * 9, "is not an ONNX model"),
    "json": (lambda data: b'{"ir_version": 8}', "is not an ONNX model"),
    "random": (lambda data: np.random.default_rng(0).bytes(999), "is not an ONNX model"),
    "zeros": (lambda data: bytes(999), "is not an ONNX model"),
    "no graph": (lambda data: b"\x08\x08", "is not an ONNX model"),
    "no version": (lambda data: b"\x3a\x02\x12\x00", "is not an ONNX model"),
    "cut": (lambda data: data[:-100], "is cut short: at least .* bytes of the model are missing"),
    "nearly all cut": (lambda data: data[:30], "is cut short"),
    "pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "name": (lambda data: data.replace(b"MatMul", b"Mat\xff\xfel"), "name that is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_whole_model_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    damage, message = BAD[name]
    path = tmp_path / "in.onnx"
    path.write_bytes(damage(wide().SerializeToString()))

    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"gone\.onnx cannot be read: No such file"):
        load(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_missing_and_short_external_data_is_found_at_load(tmp_path: Path) -> None:
    path = externally(tmp_path)
    (tmp_path / "in.bin").write_bytes((tmp_path / "in.bin").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"in\.onnx: external data file 'in\.bin' is too short for tensor"):
        load(path)
    (tmp_path / "in.bin").unlink()
    with pytest.raises(ModelError, match=r"external data file 'in\.bin' of tensor 'w' is missing"):
        load(path)
    assert decode(onnx.load(path, load_external_data=False), tmp_path).nodes[0].inputs[1].shape == (32, 32)


def test_a_proto_with_external_data_keeps_its_references() -> None:
    model = build("external data without a file in an unused tensor")
    graph = load(model)

    with pytest.raises(ModelError, match="load the model from its file"):
        peek(graph.spare[0])
    assert encode(graph).graph.initializer[2] == model.graph.initializer[2]


def test_ten_thousand_nodes_load_and_encode_in_linear_time() -> None:
    def work(count: int) -> int:
        lines = [f"t{i + 1} = {'Relu' if i % 2 else 'Neg'}(t{i})" for i in range(count)]
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] t0) => (float[N] t{count}) {{ {" ".join(lines)} }}'
        )
        return calls(lambda: encode(load(model).copy()))

    work(100)
    assert work(10_000) < 10.5 * work(1_000)
