"""A layer with its weight at several steps: what each takes once it is coded, and what it does to the outputs.

The steps are one for the whole weight, or one for each row (an output, or a row of a table) in proportion to what the
row answers: rows that batch normalizations or activations were folded into differ by orders of magnitude, and those
that a normalization follows weigh alike. Which is better is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxsqueeze.arrays import significant
from onnxsqueeze.budget.spend import Option
from onnxsqueeze.container.tables import cost
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
UNLIKE = 0.25
"""How far rows differ, in octaves, for steps of their own to be tried."""
FINE = 4
"""Sizes of rows are rounded to so many steps an octave, so that they take few bits."""


@dataclass
class CodedLayer:
    """A layer with its coded versions, each computed once.

    With ``rows`` (O) the weight of ``fitting`` is the layer's with each row divided by its size, and steps are times
    that. All errors are relative to what that weight answers.
    """

    fitting: Fitting
    rows: NDArray[np.float32] | None = None
    _guesses: dict[float, tuple[float, float]] = field(default_factory=dict)
    _fitted: dict[float, Integers] = field(default_factory=dict)

    @cached_property
    def early(self) -> CodedLayer:
        """The layer without the feeds that are kept apart, if it has seen few rows."""
        return self if self.fitting.early is None else CodedLayer(self.fitting.early, self.rows)

    @cached_property
    def ways(self) -> tuple[CodedLayer, ...]:
        """The layer with one step, and with one for each row if rows differ."""
        weight, spread = self.fitting.weight, self.fitting.covariance
        power = np.einsum("ok,ok->o", weight if spread is None else weight @ spread, weight)
        there = power > 1e-12 * power.max(initial=0)
        if np.count_nonzero(there) < 2 or np.log2(power[there]).std() / 2 < UNLIKE:
            return (self,)
        octaves = np.log2(np.where(there, power, np.median(power[there]))) / 2
        sizes = np.exp2(np.rint(FINE * octaves) / FINE).astype(np.float32)
        return self, CodedLayer(replace(self.fitting, weight=weight / sizes[:, None], _cache={}), sizes)

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
            self._guesses[step] = found.bytes * every + self._named, error / power if power > 0 else 0.0
        return self._guesses[step]

    @cached_property
    def _named(self) -> float:
        """About the bytes of the sizes of rows."""
        if self.rows is None:
            return 0.0
        _, counts = np.unique(self.rows, return_counts=True)
        return float(cost(np.pad(counts, (0, max(256 - len(counts), 0))))) / 8 + 4 * len(counts)

    def error(self, step: float) -> float:
        """Return about the relative error of its output at a step."""
        return self.guess(step)[1]

    def size(self, step: float) -> float:
        """Return the bytes at a step: those of the fit, which needs more than a guess, once there is one."""
        return self._fitted[step].bytes + self._named if step in self._fitted else self.guess(step)[0]

    def options(self, gain: float) -> list[Option]:
        """Return its steps as options of a budget; ``gain`` is what its error does to the answers."""
        steps = sorted({self.step(share) for share in STEPS})
        excess = self.size(self.step(TRIAL)) / max(self.guess(self.step(TRIAL))[0], 1.0)
        return [Option(excess * self.guess(step)[0], gain * self.guess(step)[1], (self, step)) for step in steps]

    def as_it_is(self) -> Option:
        """Return it in float as an option."""
        return Option(FLOAT * self.fitting.weight.size, 0.0)

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
        lost = self.fitting.shift(found.matrix)
        wide = found.values.astype(np.float64)
        values = (wide.reshape(old.shape) if slot == 0 else laid_out(node, wide)).astype(found.values.dtype)
        integers = edit.constant(graph, f"{name}_integers", values)
        scale = edit.constant(graph, f"{name}_step", self._steps(node, slot, step))
        cast = edit.insert(
            graph, scope, "Cast", [integers], f"{name}_cast", {"to": onnx.TensorProto.FLOAT}, before=node
        )
        node.inputs[slot] = edit.insert(graph, scope, "Mul", [cast, scale], f"{name}_restored", before=node)
        if lost is not None and self.rows is not None:
            lost = lost * self.rows
        tensor = bias_tensor(node)
        plain = node.op in ("Conv", "Gemm") and isinstance(tensor, gs.Constant) and len(tensor.shape) == 1
        if node.op == "MatMul" and lost is not None:
            add_to_output(graph, scope, node, lost.astype(np.float32), _short)
        elif lost is not None or plain:
            bias = bias_value(View(graph), node) + (np.zeros(len(wide)) if lost is None else lost)
            hint = f"{tensor.name if tensor is not None else name + '_bias'}_coded"
            set_bias(node, edit.constant(graph, hint, _short(bias)))

    def _steps(self, node: gs.Node, slot: int, step: float) -> NDArray[np.float32]:
        """Return the step, or those of rows in a shape that broadcasts over the weight as the node reads it."""
        if self.rows is None:
            return np.array(step, np.float32)
        rank = len(node.inputs[slot].shape)
        first = slot == 0 or node.op == "Conv" or node.attrs.get("transB", 0)
        return np.asarray(self.rows * step, np.float32).reshape((-1, *(1,) * (rank - 1)) if first else (-1,))


def _short(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return floats of 11 significant bits, 66 dB: the last bytes of a bias would take as much as a dozen weights."""
    return np.asarray(significant(values, 11), np.float32)


def _energy(part: NDArray[np.float32], spread: NDArray[np.float32] | None) -> float:
    return float(np.sum((part if spread is None else part @ spread) * part, dtype=np.float64))
