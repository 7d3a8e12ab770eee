"""Gradients of the models that ship, of all their weights, against torch's; and the time of a step of both.

    python benchmarks/gradients.py [MODEL.onnx ...] [--torch PYTHON] [--train STEPS]

Without ``--torch``, the Python of an environment that has torch, numpy and onnx, such an environment is made in a
temporary folder. The loss is the squared error to random targets, of models as ``clean,canonical`` leave them; inputs
are digits, or random tokens. Both gradients in float32 are held against torch's in float64. Where a Relu stands, an
input that float32 puts on the other side of 0 opens or shuts its gate: ``gates`` counts those of this project and of
torch. Both use one thread, and their processor time counts. ``--train`` times so many steps of Adam besides, on all
cores and by the clock, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "models"
BATCH = 32
TOKENS = (8, 32)
"""Sentences, and tokens of each."""
TIMED = 5


def feed_of(model: Any) -> dict[str, Any]:
    """Return digits for a model of images, random tokens for one of integers."""
    rng = np.random.default_rng(0)
    if [value.name for value in model.graph.input] == ["input"]:
        with np.load(FOLDER / "digits.npz") as digits:
            return {"input": np.asarray(digits["x"][:BATCH, None] / 255, np.float32)}
    feed = {value.name: rng.integers(1000, 20000, TOKENS) for value in model.graph.input}
    for name, values in feed.items():
        if "mask" in name:
            values[:] = np.arange(TOKENS[1]) < rng.integers(TOKENS[1] // 2, TOKENS[1] + 1, (TOKENS[0], 1))
        elif "type" in name:
            values[:] = 0
    return feed


def ours(path: Path, work: Path, train: int) -> tuple[float, dict[str, Any], float, float]:
    """Write the step as numpy files; return the loss, the gradients, and the seconds of a step and of training."""
    import onnx

    from onnxsqueeze import squeeze
    from onnxsqueeze.graph.opset import raise_opset
    from onnxsqueeze.graph.view import View
    from onnxsqueeze.ir.encode import encode
    from onnxsqueeze.ir.files import load
    from onnxsqueeze.runtime.session import Session
    from onnxsqueeze.training.data import Samples
    from onnxsqueeze.training.fit import Schedule, fit
    from onnxsqueeze.training.leaves import leaves
    from onnxsqueeze.training.losses import Loss, target_of
    from onnxsqueeze.training.steps import Steps

    graph = raise_opset(load(squeeze(path, "clean,canonical", "none", validate="none").model), 18)
    model = encode(graph)
    feed, loss = feed_of(model), Loss(model.graph.output[0].name)
    found_leaves = leaves(View(graph), lambda node: True)
    names = [leaf.tensor for leaf in found_leaves]
    moved, fixed, gates = set(names), [], []
    for node in model.graph.node:
        if moved & set(node.input) and node.op_type != "Shape":
            moved.update(node.output)
            gates += node.output if node.op_type == "Relu" else ()
        else:
            fixed += node.output
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fixed)
    known = Session(exposed, optimize="none").run(feed)
    t = np.random.default_rng(0).standard_normal(np.shape(known[loss.output])).astype(np.float32)
    onnx.save(model, work / "model.onnx")
    told = {"names": names, "fixed": fixed, "gates": gates, "inputs": list(feed), "loss": loss.output, "train": train}
    (work / "told.json").write_text(json.dumps(told), encoding="utf-8")
    steps = Steps(model, None, list(feed), [loss], found_leaves)
    starts = [leaf.start for leaf in steps.leaves]
    batch = {**feed, target_of(loss): t}
    found, grads = steps.gradients(starts, batch)
    steps.gradients(starts, batch)
    start = time.process_time()
    for _ in range(TIMED):
        steps.gradients(starts, batch)
    seconds = (time.process_time() - start) / TIMED
    read = {**batch, **dict(zip(names, starts, strict=True))}
    step = steps._made("gradients", read)
    step.graph.output.extend(onnx.ValueInfoProto(name=name) for name in gates)
    session = Session(step, threads=1)
    outputs = session.run({name: read[name] for name in session.inputs}, gates)
    open_ = [np.asarray(outputs[name]) > 0 for name in gates]
    np.savez(work / "data.npz", *(np.asarray(known[name]) for name in fixed), *feed.values(), t, *open_)
    start = time.perf_counter()
    if train:
        fit(steps, Samples([batch], 1), Samples([], 0), Schedule(train, 0.001, BATCH, (0,)), lambda *_: None)
    return found, dict(zip(names, grads, strict=True)), seconds, time.perf_counter() - start


def farthest(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the largest ``‖a − b‖ / ‖b‖``, of those b whose norm is over a millionth of the largest.

    The others are nothing but rounding: the gradient of a bias of keys is 0, since Softmax does not feel it.
    """
    norms = [float(np.linalg.norm(b)) for _, b in pairs]
    off = [float(np.linalg.norm(a - b)) for a, b in pairs]
    return max(one / norm for one, norm in zip(off, norms, strict=True) if norm > 1e-6 * max(norms))


def sides(attrs: dict[str, Any]) -> int:
    """Return the padding, the same on all sides."""
    assert len(set(attrs.get("pads", [0]))) == 1
    return int(attrs.get("pads", [0])[0])


def computed(op: str, x: list[Any], a: dict[str, Any]) -> Any:
    """Return what torch computes for an operator of inputs x and attributes a."""
    import torch
    from torch.nn import functional as F

    how = {
        "Conv": lambda: F.conv2d(
            x[0], x[1], x[2] if len(x) > 2 else None, a.get("strides", [1, 1]), sides(a), 1, a.get("group", 1)
        ),
        "Relu": lambda: F.relu(x[0]), "HardSwish": lambda: F.hardswish(x[0]), "Add": lambda: x[0] + x[1],
        "Sub": lambda: x[0] - x[1], "Mul": lambda: x[0] * x[1], "Div": lambda: x[0] / x[1],
        "MaxPool": lambda: F.max_pool2d(x[0], a["kernel_shape"], a["strides"], sides(a)),
        "GlobalAveragePool": lambda: x[0].mean((2, 3), keepdim=True),
        "Flatten": lambda: x[0].flatten(1),
        "Reshape": lambda: x[0].reshape([d or x[0].shape[i] for i, d in enumerate(x[1].tolist())]),
        "Clip": lambda: x[0].clamp(*(None if v is None else v.item() for v in (*x[1:], None)[:2])),
        "HardSigmoid": lambda: (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
        "Gemm": lambda: x[0] @ (x[1].T if a.get("transB") else x[1]) + x[2],
        "MatMul": lambda: x[0] @ x[1], "Transpose": lambda: x[0].permute(a["perm"]),
        "Softmax": lambda: x[0].softmax(a.get("axis", -1)),
        "Gelu": lambda: F.gelu(x[0], approximate=a.get("approximate", b"none").decode()),
        "ReduceMax": lambda: x[0].amax(x[1].tolist(), keepdim=bool(a.get("keepdims", 1))),
        "Max": lambda: torch.maximum(*x), "Sum": lambda: sum(x[1:], x[0]),
        "LayerNormalization": lambda: F.layer_norm(x[0], x[1].shape, x[1], x[2], a.get("epsilon", 1e-5)),
    }  # fmt: skip
    return how[op]()


def worker(work: Path) -> None:
    """Run in the environment of torch: the same loss and its gradients, from a small interpreter."""
    import onnx
    import torch
    from onnx import numpy_helper

    torch.set_num_threads(1)
    model = onnx.load(work / "model.onnx")
    told = json.loads((work / "told.json").read_text(encoding="utf-8"))
    data = iter([torch.from_numpy(value) for value in np.load(work / "data.npz").values()])
    given = {name: next(data) for name in (*told["fixed"], *told["inputs"])}
    target, signs = next(data), list(data)
    given |= {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}

    def forward(known: dict[str, Any]) -> dict[str, Any]:
        for node in model.graph.node:
            if node.output[0] not in known:
                a = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
                known[node.output[0]] = computed(node.op_type, [known.get(name) for name in node.input], a)
        return known

    def run(dtype: Any) -> tuple[Any, list[Any], list[Any]]:
        known = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
        leaf = [known[name].requires_grad_() for name in told["names"]]
        known = forward(known)
        loss = ((known[told["loss"]] - target.to(dtype)) ** 2).mean()
        loss.backward()
        return loss, [value.grad for value in leaf], [known[name].detach() > 0 for name in told["gates"]]

    def trained(steps: int, lr: float = 1e-3) -> float:
        leaf = [given[name].detach().clone().requires_grad_() for name in told["names"]]
        rest = {name: value for name, value in given.items() if name not in told["names"]}
        adam, start = torch.optim.Adam(leaf, lr), time.perf_counter()
        for _ in range(steps):
            known = forward({**rest, **dict(zip(told["names"], leaf, strict=True))})
            adam.zero_grad()
            ((known[told["loss"]] - target) ** 2).mean().backward()
            adam.step()
        return time.perf_counter() - start

    def other(one: list[Any], two: list[Any]) -> int:
        return sum(int((a != b).sum()) for a, b in zip(one, two, strict=True))

    loss, grads, open_ = run(torch.float64)
    _, theirs, also = run(torch.float32)
    worst = farthest([(a.numpy(), b.numpy()) for a, b in zip(theirs, grads, strict=True)])
    start = time.process_time()
    for _ in range(TIMED):
        run(torch.float32)
    seconds = (time.process_time() - start) / TIMED
    gates = [other(signs, open_), other(also, open_)]
    torch.set_num_threads(os.cpu_count() or 1)
    trained(1)  # the first one starts what later ones have
    train = trained(told["train"])
    found = {"loss": float(loss.detach()), "worst": worst, "seconds": seconds, "gates": gates, "train": train}
    (work / "found.json").write_text(json.dumps(found), encoding="utf-8")
    np.savez(work / "theirs.npz", *(grad.numpy() for grad in grads))


def main() -> None:
    """Compare each model."""
    parser = argparse.ArgumentParser(description="Gradients against torch's.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with torch, numpy and onnx")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="time so many steps of both")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker)
        return
    paths = given.models or [FOLDER / f"{name}.onnx" for name in ("mlp", "cnn", "resnet", "dwcnn")]
    with tempfile.TemporaryDirectory() as folder:
        python = given.torch
        if python is None:
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
            python = f"{folder}/venv/bin/python"
            subprocess.run([python, "-m", "pip", "install", "--quiet", "torch", "numpy", "onnx"], check=True)
        head = ("model", "tensors", "loss off by", "gradient off by", "torch's", "gates", "torch's", "step", "torch's")
        print("{:16} {:>7} {:>12} {:>16} {:>8} {:>6} {:>8} {:>9} {:>9}".format(*head))
        for path in paths:
            work = Path(folder)
            loss, grads, seconds, train = ours(path, work, given.train)
            subprocess.run([python, __file__, "--worker", folder], check=True)
            found = json.loads((work / "found.json").read_text(encoding="utf-8"))
            with np.load(work / "theirs.npz") as theirs:
                pairs = list(zip(grads.values(), theirs.values(), strict=True))
            worst = farthest(pairs)
            off, (mine, its) = abs(loss - found["loss"]) / found["loss"], found["gates"]
            times = f"{1e3 * seconds:6.0f} ms {1e3 * found['seconds']:6.0f} ms"
            errors = f"{off:12.1e} {worst:16.1e} {found['worst']:8.1e} {mine:6} {its:8}"
            both = f"  {given.train} steps {train:.1f} s {found['train']:.1f} s" if given.train else ""
            print(f"{path.stem:16} {len(pairs):7} {errors} {times}{both}", flush=True)


if __name__ == "__main__":
    main()
