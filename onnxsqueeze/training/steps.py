"""A part of a model with its loss and gradients, run by ONNX Runtime: built once per shape of its feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.runtime.session import Session
from onnxsqueeze.training.gradient import Known, with_gradients
from onnxsqueeze.training.known import measured
from onnxsqueeze.training.leaves import Leaf
from onnxsqueeze.training.losses import LOSS, Loss, emit, target_of
from onnxsqueeze.training.slices import cut

__all__ = ["Batch", "Steps"]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Batch = Mapping[str, Array]
"""What a part is fed, and what its outputs should be, under the names of ``target_of``."""
SMALL = 10**8
"""Multiply-accumulates of a batch, under which threads would wait for each other more than they save."""
OPEN = 32
"""Shapes of feeds for which sessions are kept open."""


class Steps:
    """Losses and gradients of a part of a model by its leaves.

    ``model`` is the whole model of opset 18 or newer, ``inputs`` name the tensors that the part is fed. The weights are
    inputs of the step graph, so that it is built once for all steps.
    """

    def __init__(
        self, model: onnx.ModelProto, folder: Path | None, inputs: Sequence[str], losses: Sequence[Loss],
        leaves: Sequence[Leaf],
    ) -> None:  # fmt: skip
        self.model, self.folder = model, folder
        self.inputs, self.losses, self.leaves = tuple(inputs), tuple(losses), tuple(leaves)
        self._threads = 1
        self._open: dict[tuple[object, ...], Session] = {}

    def gradients(self, values: Sequence[Floats], batch: Batch) -> tuple[float, list[Floats]]:
        """Return the loss on a batch and its gradient by each leaf; Unsupported if an operator has no rule."""
        feed = self._feed(values, batch)
        found = list(self._run("gradients", feed).values())
        return float(np.asarray(found[0])), [np.asarray(each, np.float32) for each in found[1:]]

    def loss(self, values: Sequence[Floats], batch: Batch) -> float:
        """Return the loss on a batch."""
        feed = self._feed(values, batch)
        return float(np.asarray(self._run("loss", feed)[LOSS]))

    def outputs(self, values: Sequence[Floats], batch: Batch) -> list[Array]:
        """Return the outputs that the losses are of."""
        feed = {name: value for name, value in self._feed(values, batch).items() if not name.startswith("target/")}
        found = self._run("outputs", feed)
        return [np.asarray(found[loss.output]) for loss in self.losses]

    def _feed(self, values: Sequence[Floats], batch: Batch) -> dict[str, Array]:
        fed = {leaf.tensor: leaf.fed(value) for leaf, value in zip(self.leaves, values, strict=True)}
        return {**batch, **fed}

    def _run(self, what: str, feed: Mapping[str, Array]) -> dict[str, object]:
        key = (what, *((name, value.shape) for name, value in feed.items()))
        if key not in self._open:
            while len(self._open) >= OPEN:
                del self._open[next(iter(self._open))]
            self._open[key] = Session(self._made(what, feed), self.folder, threads=self._threads)
        session = self._open[key]
        return session.run({name: feed[name] for name in session.inputs})

    def _made(self, what: str, feed: Mapping[str, Array]) -> onnx.ModelProto:
        names = [loss.output for loss in self.losses]
        data = {name: value for name, value in feed.items() if not name.startswith("target/")}
        model = cut(self.model, data, list(dict.fromkeys(names)))
        if what == "outputs":
            return model
        nodes, constants = emit(self.losses)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)
        for loss in self.losses:
            name = target_of(loss)
            kind = onnx.helper.np_dtype_to_tensor_dtype(feed[name].dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, feed[name].shape))
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(LOSS, onnx.TensorProto.FLOAT, ()))
        if what == "loss":
            return model
        known = self._known(model, feed)
        self._threads = 1 if _macs(model, known) < SMALL else 0
        return with_gradients(model, known, LOSS, [leaf.tensor for leaf in self.leaves])

    def _known(self, model: onnx.ModelProto, feed: Mapping[str, Array]) -> Known:
        read = {value.name for value in model.graph.input}

        def run(exposed: onnx.ModelProto, given: Mapping[str, Array]) -> list[object]:
            session = Session(exposed, self.folder, optimize="none")
            return list(session.run(given).values())

        return measured(model, {name: value for name, value in feed.items() if name in read}, run)


def _macs(model: onnx.ModelProto, known: Known) -> int:
    """Return the multiply-accumulates of the layers of a forward pass."""
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            x, w, y = (known.shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
            each = prod(w) // max(w[0], 1) if node.op_type in ("Conv", "ConvTranspose") else x[-1] if x else 1
            total += prod(y) * each
    return total
