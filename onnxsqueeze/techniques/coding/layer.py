"""A layer with its weight at several steps: what each takes once it is coded, and what it does to the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsqueeze.budget.spend import Option
from onnxsqueeze.graph import edit
from onnxsqueeze.graph.view import View
from onnxsqueeze.ir.objects import Graph
from onnxsqueeze.linear.bias import bias_tensor, bias_value, set_bias
from onnxsqueeze.linear.chains import add_to_output
from onnxsqueeze.linear.compensation import Feedback
from onnxsqueeze.linear.fitting import Fitting
from onnxsqueeze.linear.layers import laid_out
from onnxsqueeze.techniques.coding.quantizer import MOST, Integers, feedback_of, fitted, nearest

__all__ = ["TRIAL", "CodedLayer"]

STEPS = tuple(2 ** (i / 2 - 7) for i in range(18))
"""Steps that are tried, in standard deviations of the weight."""
TRIAL = 0.5
"""The step, in standard deviations, at which a layer's effect on the answers is measured."""
FLOAT = 3.4
"""Bytes of a weight that stays in float, in a container."""
SAMPLE = 1 << 16
"""Weights of a layer, evenly spread, from which its size and error at a step are guessed."""


@dataclass
class CodedLayer:
    """A layer with its coded versions, each computed once."""

    fitting: Fitting
    _guesses: dict[float, tuple[float, float]] = field(default_factory=dict)
    _fitted: dict[float, Integers] = field(default_factory=dict)

    @cached_property
    def early(self) -> CodedLayer:
        """The layer without the feeds that are kept apart, if it has seen few rows."""
        return self if self.fitting.early is None else CodedLayer(self.fitting.early)

    @property
    def key(self) -> str:
        """The name of its output."""
        return self.fitting.layer.key

    @cached_property
    def _feedback(self) -> Feedback | None:
        return None if self.fitting.covariance is None else feedback_of(self.fitting.covariance)

    @cached_property
    def _sample(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, float, int]:
        """Some rows of the weight, the covariance, the energy of what they answer, and of how many each is one."""
        every = max(self.fitting.weight.size // SAMPLE, 1)
        part = self.fitting.weight[::every].astype(np.float32)
        spread = None if self.fitting.covariance is None else self.fitting.covariance.astype(np.float32)
        return part, spread, _energy(part, spread), every

    def step(self, share: float) -> float:
        """Return the step of so many standard deviations, or the smallest with which values fit into 15 bits."""
        return max(share * float(self.fitting.weight.std()), float(np.abs(self.fitting.weight).max()) / MOST)

    def guess(self, step: float) -> tuple[float, float]:
        """Return about the bytes and the relative error of the output at a step; the fit has less error."""
        if step not in self._guesses:
            part, spread, power, every = self._sample
            found = nearest(part, step, None if spread is None else np.diag(spread))
            error = _energy(part - found.matrix.astype(np.float32), spread)
            self._guesses[step] = found.bytes * every, error / power if power > 0 else 0.0
        return self._guesses[step]

    def error(self, step: float) -> float:
        """Return about the relative error of its output at a step."""
        return self.guess(step)[1]

    def size(self, step: float) -> float:
        """Return the bytes at a step: those of the fit, which needs more than a guess, once there is one."""
        return self._fitted[step].bytes if step in self._fitted else self.guess(step)[0]

    def options(self, gain: float) -> list[Option]:
        """Return its steps as options of a budget, itself first; ``gain`` is what its error does to the answers."""
        steps = sorted({self.step(share) for share in STEPS})
        excess = self.size(self.step(TRIAL)) / max(self.guess(self.step(TRIAL))[0], 1.0)
        coded = [Option(excess * self.guess(step)[0], gain * self.guess(step)[1], step) for step in steps]
        return [Option(FLOAT * self.fitting.weight.size, 0.0, 0.0), *coded]

    def fit(self, step: float) -> Integers:
        """Return its integers at a step."""
        if step not in self._fitted:
            self._fitted[step] = fitted(self.fitting.weight, step, self.fitting.covariance, self._feedback)
        return self._fitted[step]

    def put(self, graph: Graph, key: str, step: float) -> None:
        """Give the layer that makes ``key`` the weight of this step, and its bias the mean of what is lost."""
        node, scope = edit.find(graph, key)
        slot = 0 if node.op == "Gather" else 1
        found, old = self.fit(step), node.inputs[slot]
        name = old.name or key
        shift = self.fitting.shift(found.matrix)
        wide = found.values.astype(np.float64)
        values = (wide.reshape(old.shape) if slot == 0 else laid_out(node, wide)).astype(found.values.dtype)
        integers = edit.constant(graph, f"{name}_integers", values)
        scale = edit.constant(graph, f"{name}_step", np.array(step, np.float32))
        cast = edit.insert(
            graph, scope, "Cast", [integers], f"{name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node
        )
        node.inputs[slot] = edit.insert(graph, scope, "Mul", [cast, scale], f"{name}_restored", before=node)
        if shift is None:
            return
        if node.op == "MatMul":
            add_to_output(graph, scope, node, shift.astype(np.float32))
        else:
            tensor, bias = bias_tensor(node), bias_value(View(graph), node)
            hint = f"{tensor.name if tensor is not None else name + '_bias'}_coded"
            set_bias(node, edit.constant(graph, hint, np.asarray(bias + shift, np.float32)))


def _energy(part: NDArray[np.float32], spread: NDArray[np.float32] | None) -> float:
    return float(np.sum((part if spread is None else part @ spread) * part, dtype=np.float64))
