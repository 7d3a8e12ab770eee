"""Gradients of the models that ship, of all their weights, against torch's; and the time of a step of both.

    python benchmarks/gradients.py [MODEL.onnx ...] [--torch PYTHON]

Without ``--torch``, the Python of an environment that has torch, numpy and onnx, such an environment is made in a
temporary folder. The loss is the squared error to random targets, of models as ``clean,canonical`` leave them. Torch
computes in float64 to be compared and in float32 to be timed; both use one thread, and their processor time counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "models"
BATCH = 32
TIMED = 5


def ours(path: Path, work: Path) -> tuple[float, dict[str, Any], float]:
    """Write the step as numpy files; return the loss, the gradients and the seconds of a step."""
    import onnx

    from onnxsqueeze import squeeze
    from onnxsqueeze.graph.opset import raise_opset
    from onnxsqueeze.graph.view import View
    from onnxsqueeze.ir.encode import encode
    from onnxsqueeze.ir.files import load
    from onnxsqueeze.training.leaves import leaves
    from onnxsqueeze.training.losses import Loss, target_of
    from onnxsqueeze.training.steps import Steps

    graph = raise_opset(load(squeeze(path, "clean,canonical", "none", validate="none").model), 18)
    model, loss = encode(graph), Loss("logits")
    onnx.save(model, work / "model.onnx")
    with np.load(FOLDER / "digits.npz") as digits:
        x = np.asarray(digits["x"][:BATCH, None] / 255, np.float32)
    t = np.random.default_rng(0).standard_normal((BATCH, 10)).astype(np.float32)
    steps = Steps(model, None, ["input"], [loss], leaves(View(graph), lambda node: True))
    values = [leaf.start for leaf in steps.leaves]
    batch = {"input": x, target_of(loss): t}
    found, grads = steps.gradients(values, batch)
    steps.gradients(values, batch)
    start = time.process_time()
    for _ in range(TIMED):
        steps.gradients(values, batch)
    seconds = (time.process_time() - start) / TIMED
    names = [leaf.tensor for leaf in steps.leaves]
    np.savez(work / "data.npz", x=x, t=t)
    (work / "leaves.json").write_text(json.dumps(names), encoding="utf-8")
    return found, dict(zip(names, grads, strict=True)), seconds


def sides(attrs: dict[str, Any]) -> int:
    """Return the padding, the same on all sides."""
    assert len(set(attrs.get("pads", [0]))) == 1
    return int(attrs.get("pads", [0])[0])


def computed(op: str, x: list[Any], a: dict[str, Any]) -> Any:
    """Return what torch computes for an operator of inputs x and attributes a."""
    import torch
    from onnx import numpy_helper
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
        "Constant": lambda: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
    }  # fmt: skip
    return how[op]()


def worker(work: Path) -> None:
    """Run in the environment of torch: the same loss and its gradients, from a small interpreter."""
    import onnx
    import torch
    from onnx import numpy_helper

    torch.set_num_threads(1)
    model = onnx.load(work / "model.onnx")
    data, names = np.load(work / "data.npz"), json.loads((work / "leaves.json").read_text(encoding="utf-8"))

    def run(dtype: Any) -> tuple[Any, dict[str, Any]]:
        known = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        known = {n: v.to(dtype) if v.is_floating_point() else v for n, v in known.items()}
        for name in names:
            known[name].requires_grad_()
        leaf = {name: known[name] for name in names}
        known["input"] = torch.from_numpy(data["x"]).to(dtype)
        for node in model.graph.node:
            a = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            x = [known.get(name) for name in node.input]
            known[node.output[0]] = computed(node.op_type, x, a)
        loss = ((known["logits"] - torch.from_numpy(data["t"]).to(dtype)) ** 2).mean()
        loss.backward()
        return loss, {name: value.grad for name, value in leaf.items()}

    loss, grads = run(torch.float64)
    np.savez(
        work / "theirs.npz", loss=loss.detach().numpy(), **{f"g{i}": grads[n].numpy() for i, n in enumerate(names)}
    )
    run(torch.float32)
    start = time.process_time()
    for _ in range(TIMED):
        run(torch.float32)
    (work / "seconds.json").write_text(json.dumps((time.process_time() - start) / TIMED), encoding="utf-8")


def main() -> None:
    """Compare each model."""
    parser = argparse.ArgumentParser(description="Gradients against torch's.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with torch, numpy and onnx")
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
        print(f"{'model':12} {'tensors':>7} {'loss off by':>12} {'worst gradient off by':>22} {'step':>9} {'torch':>9}")
        for path in paths:
            work = Path(folder)
            loss, grads, seconds = ours(path, work)
            subprocess.run([python, __file__, "--worker", folder], check=True)
            with np.load(work / "theirs.npz") as theirs:
                pairs = [(grad, theirs[f"g{i}"]) for i, grad in enumerate(grads.values())]
                worst = max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in pairs)
                off = abs(loss - float(theirs["loss"])) / float(theirs["loss"])
            torch_seconds = float(json.loads((work / "seconds.json").read_text(encoding="utf-8")))
            times = f"{1e3 * seconds:6.0f} ms {1e3 * torch_seconds:6.0f} ms"
            print(f"{path.stem:12} {len(pairs):7} {off:12.1e} {worst:22.1e} {times}", flush=True)


if __name__ == "__main__":
    main()
