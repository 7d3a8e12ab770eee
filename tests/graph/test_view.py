from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
from linear_models import constant, model
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze.graph.constants import constant_of, constant_value, source
from onnxsqueeze.graph.view import View
from onnxsqueeze.graph.walk import is_standard, key_of, walk
from onnxsqueeze.ir.decode import decode
from onnxsqueeze.ir.files import load


def diamond() -> View:
    """x feeds two branches, which an Add brings together; a third node stands behind."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Abs", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Sqrt", ["d"], ["y"]),
    ]
    return View(load(model(nodes, [], {"x": [1, 4]}, {"y": [1, 4]})))


def branches() -> onnx.ModelProto:
    """An If whose bodies have a node each."""
    bodies = []
    for op in ("Neg", "Abs"):
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [4])
        bodies.append(helper.make_graph([helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [out]))
    node = helper.make_node("If", ["which"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    proto = model([node], [], {"x": [4]}, {"y": [4]})
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    return proto


def test_the_network_has_a_vertex_per_node_and_an_edge_per_input() -> None:
    view = diamond()

    assert [view.network.nodes[i]["op"] for i in range(5)] == ["Relu", "Neg", "Abs", "Add", "Sqrt"]
    assert sorted((i, j, data["tensor"]) for i, j, data in view.network.edges(data=True)) == [
        (0, 1, "a"), (0, 2, "a"), (1, 3, "b"), (2, 3, "c"), (3, 4, "d")
    ]  # fmt: skip


def test_algorithms_of_networkx_answer_questions_about_the_graph() -> None:
    view = diamond()
    place = {key_of(node): view.position(node) for node in view.nodes}

    assert nx.ancestors(view.network, place["d"]) == {place[key] for key in "abc"}
    dominators = nx.immediate_dominators(view.network, place["a"])
    assert dominators[place["d"]] == place["a"]  # what lies between the two can be cut out as one block
    assert nx.descendants(view.network, place["b"]) == {place["d"], place["y"]}


def test_nodes_of_bodies_belong_to_the_view_and_know_their_scope() -> None:
    view = View(load(branches()))
    first, then, other = view.nodes

    assert [first.op, {then.op, other.op}] == ["If", {"Neg", "Abs"}]
    assert (view.in_body(first), view.in_body(then), view.in_body(other)) == (False, True, True)
    assert view.is_output(then.outputs[0])
    assert [scope is view.graph for _, scope in walk(view.graph)] == [True, False, False]


def test_a_tensor_that_is_read_once_and_is_no_output_has_an_only_consumer() -> None:
    view = diamond()
    relu, neg, *_, last = view.nodes

    assert view.only_consumer(relu.outputs[0]) is None
    assert view.only_consumer(neg.outputs[0]) is view.nodes[3]
    assert view.only_consumer(last.outputs[0]) is None


def test_constants_are_seen_through_operators_that_hand_them_on() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"]),
        helper.make_node("Cast", ["turned"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Transpose", ["v"], ["v_turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    proto = model(nodes, [constant("v", weight)], {"x": [1, 3]}, {"y": [1, 2]})
    made = {str(t.name): t for node in load(proto).nodes for t in (*node.inputs, *node.outputs)}

    assert np.array_equal(np.asarray(constant_value(made["turned"])), weight.T)
    assert np.array_equal(np.asarray(constant_value(made["whole"])), weight.T.astype(np.int64))
    assert constant_value(made["x"]) is None
    behind = constant_of(made["same"])
    assert behind is not None
    assert np.array_equal(behind.values, weight)
    found = source(made["v_turned"])
    assert found is not None
    assert (found[0].name, found[1]) == ("v", [1, 0])


def test_operators_of_other_domains_are_not_standard() -> None:
    node = load(model([helper.make_node("Relu", ["x"], ["y"])], [], {"x": [4]}, {"y": [4]})).nodes[0]

    assert is_standard(node)
    node.domain = "com.example"
    assert not is_standard(node)


def test_lists_of_axes_that_are_declared_endless_take_no_time_and_no_memory() -> None:
    """ONNX's inference would fill a list of 2³¹ axes."""
    nodes = [helper.make_node("Slice", ["x", "q", "q"], ["c"]), helper.make_node("Relu", ["x"], ["y"])]
    endless = helper.make_tensor_value_info("q", TensorProto.INT64, [2**31])
    x, y, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
               (("x", [4]), ("y", None), ("c", None)))  # fmt: skip
    model = helper.make_model(helper.make_graph(nodes, "g", [endless, x], [c, y]))
    view = View(decode(model))

    assert view.shape(view.nodes[1].outputs[0]) == (4,)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2**31
