"""Cases by seed: models as they are, models with something wrong or odd, files with bits flipped, files that lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from models import frozen, generated

__all__ = ["KINDS", "feeds", "made"]


def mutant(rng: np.random.Generator) -> onnx.ModelProto:
    """Return a random model with one to three things wrong or odd."""
    model = generated(rng) if rng.random() < 0.7 else frozen(rng)
    for _ in range(int(rng.integers(1, 4))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, model.graph)
    return model


def _pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))] if len(items) else None


def _without_node(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    if len(graph.node) > 1:
        del graph.node[int(rng.integers(len(graph.node)))]


def _other_input(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node, names = _pick(rng, graph.node), [n for each in graph.node for n in (*each.input, *each.output)]
    if node is not None and node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, [*names, ""])


def _other_attribute(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    found = [a for node in graph.node for a in node.attribute]
    attribute = _pick(rng, found)
    if attribute is not None:
        attribute.i = int(rng.choice([-1, 0, 1, 2, 7, 2**40]))
        attribute.f = float(rng.choice([0.0, -1.0, 1e30, np.nan]))
        for i in range(len(attribute.ints)):
            attribute.ints[i] = int(rng.choice([-1, 0, 1, 3, attribute.ints[i]]))


def _other_shape(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    tensor = _pick(rng, graph.initializer)
    if tensor is not None and len(tensor.dims) > 1:
        tensor.dims[:] = list(reversed(tensor.dims))


def _other_type(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    info = _pick(rng, graph.input)
    if info is not None:
        info.type.tensor_type.elem_type = int(rng.choice([1, 6, 7, 9, 10, 11, 16]))


def _other_name(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    tensor = _pick(rng, graph.initializer)
    if tensor is not None:
        tensor.name = str(rng.choice(["x", "", "w0", "t0", "a/b:c d"]))


def _as_output(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = _pick(rng, graph.node)
    if node is not None and node.output[0]:
        graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))


MUTATIONS: tuple[Callable[[np.random.Generator, onnx.GraphProto], None], ...] = (
    _without_node, _other_input, _other_attribute, _other_shape, _other_type, _other_name, _as_output,
)  # fmt: skip


def flipped(rng: np.random.Generator) -> bytes:
    """Return the file of a model with a few bits changed, or cut short."""
    data = bytearray(generated(rng).SerializeToString())
    if rng.random() < 0.2:
        return bytes(data[: int(rng.integers(len(data)))])
    for _ in range(int(rng.integers(1, 9))):
        head = rng.random() < 0.5  # most of a file is weights, in which a bit more or less says nothing
        data[int(rng.integers(min(400, len(data)) if head else len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def hostile(rng: np.random.Generator) -> bytes:
    """Return a file that is no model, or one that lies about sizes and places."""
    model = generated(rng)
    tensor = model.graph.initializer.add(name="lie", data_type=TensorProto.FLOAT)
    kind = int(rng.integers(7))
    if kind == 0:
        tensor.dims.extend([2**31, 2**31])
    elif kind == 1:
        tensor.dims.append(-4)
    elif kind == 2:
        tensor.dims.append(64)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=str(rng.choice(["../../secret", "/dev/zero", "nowhere", "."])))
        tensor.external_data.add(key="offset", value=str(rng.choice(["-1", "9" * 30, "many"])))
    elif kind == 3:
        tensor.dims.append(3)
        tensor.raw_data = b"\0" * 11
    elif kind == 4:
        return rng.bytes(int(rng.integers(1, 4000)))
    elif kind == 5:
        return b"\x3a\x05" * int(rng.integers(1, 2000))
    else:
        tensor.dims.append(2)
        tensor.string_data.append(b"\xff\xfe")
    return bytes(model.SerializeToString())


KINDS: dict[str, Callable[[np.random.Generator], onnx.ModelProto | bytes]] = {
    "generated": generated, "backend": frozen, "mutant": mutant, "bits": flipped, "hostile": hostile,
}  # fmt: skip
"""What the cases are, by name."""


def made(kind: str, seed: int) -> bytes:
    """Return the file of a case; the same for the same seed."""
    found = KINDS[kind](np.random.default_rng([seed, sorted(KINDS).index(kind)]))
    return found if isinstance(found, bytes) else bytes(found.SerializeToString())


def feeds(data: bytes, count: int, seed: int) -> list[dict[str, Any]]:
    """Return feeds of random values for the inputs of a model; open axes are 2, texts and sequences none."""
    graph = onnx.ModelProto.FromString(data).graph
    constants = {tensor.name for tensor in graph.initializer}
    found = []
    for i in range(count):
        rng, feed = np.random.default_rng([seed, i]), {}
        for info in graph.input:
            kind = info.type.tensor_type
            if info.name in constants or not kind.elem_type:
                continue
            shape = [d.dim_value or 2 for d in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            floats = dtype.kind == "f" or dtype.name == "bfloat16"
            drawn = rng.normal(size=shape) if floats else rng.integers(0, 2, shape)
            feed[info.name] = np.asarray(drawn).astype(dtype)
        found.append(feed)
    return found
