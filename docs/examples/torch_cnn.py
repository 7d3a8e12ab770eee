"""A small CNN: trained, exported by both of torch's exporters, squeezed, run, and scored."""

import io
import time
import warnings

import onnx
import onnxruntime
import torch
from torch.utils.data import DataLoader, TensorDataset

import onnxsqueeze
from onnxsqueeze.integrations.torch import batches

torch.manual_seed(0)
TEMPLATES = torch.randn(10, 1, 16, 16)


def images(count: int) -> TensorDataset:
    """Ten patterns, moved about and drowned in noise."""
    labels = torch.randint(10, (count,))
    moved = [torch.roll(TEMPLATES[k], tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2)) for k in labels]
    return TensorDataset(torch.stack(moved) + 0.6 * torch.randn(count, 1, 16, 16), labels)


def block(inputs: int, outputs: int) -> torch.nn.Sequential:
    conv = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())


pool = torch.nn.MaxPool2d(2)
net = torch.nn.Sequential(block(1, 32), pool, block(32, 64), pool, block(64, 128), torch.nn.AdaptiveAvgPool2d(1))
net = torch.nn.Sequential(net, torch.nn.Flatten(), torch.nn.Linear(128, 10))
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for image, label in DataLoader(images(3000), 50, shuffle=True):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(image), label).backward()
    optimizer.step()
net.eval()

loader, test = DataLoader(images(256), 16), images(1000)
example = (test.tensors[0][:2],)
batch = torch.export.Dim("batch")
warnings.simplefilter("ignore")  # the older exporter is deprecated


def by_torchscript() -> onnx.ModelProto:
    file = io.BytesIO()
    dynamic = {"image": {0: "batch"}}
    torch.onnx.export(net, example, file, input_names=["image"], dynamic_axes=dynamic, dynamo=False)
    return onnx.load_from_string(file.getvalue())


def accuracy(model: bytes) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    image, label = (tensor.numpy() for tensor in test.tensors)
    return float((session.run(None, {session.get_inputs()[0].name: image})[0].argmax(1) == label).mean())


program = torch.onnx.export(net, example, dynamo=True, dynamic_shapes=[{0: batch}], verbose=False)
for name, model in (("dynamo", program), ("torchscript", by_torchscript())):
    start = time.perf_counter()
    result = onnxsqueeze.squeeze(model, "lowrank{ratio=0.6},int8", batches(loader, model))
    seconds, report = time.perf_counter() - start, result.report
    original = model.model_proto if name == "dynamo" else model
    before, after = (accuracy(m.SerializeToString()) for m in (original, result.model))
    print(
        f"{name}: accuracy {before:.1%} -> {after:.1%}, {report.before.bytes} -> {report.after.bytes} bytes, "
        f"latency x {report.latency_ratio:.2f}, {report.sqnr_db:.1f} dB, squeezed in {seconds:.1f} s"
    )
    assert after > before - 0.02
    assert report.after.bytes < 0.4 * report.before.bytes

program.model = result.to_ir()  # and torch's program runs the squeezed model
assert program(*example)[0].shape == (2, 10)
