"""A small transformer on tokens: trained, exported by both of torch's exporters, squeezed, run, and scored."""

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


def sequences(count: int) -> TensorDataset:
    """Tokens 0..31 at random; the label is the token below 8 that is there most often."""
    tokens = torch.randint(32, (count, 24))
    counts = torch.stack([(tokens == k).sum(1) for k in range(8)], 1)
    return TensorDataset(tokens, counts.argmax(1))


class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mixed, self.merged = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.narrow = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.mixed(self.first(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.merged(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.second(x))))


class Net(torch.nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(32, width)
        self.blocks = torch.nn.Sequential(Block(width, 4), Block(width, 4))
        self.head = torch.nn.Linear(width, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


net = Net()
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for tokens, label in DataLoader(sequences(6400), 64):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(tokens), label).backward()
    optimizer.step()
net.eval()

loader, test = DataLoader(sequences(256), 16), sequences(1000)
example = (test.tensors[0][:2],)
warnings.simplefilter("ignore")  # the older exporter is deprecated


def by_torchscript() -> onnx.ModelProto:
    file = io.BytesIO()
    dynamic = {"tokens": {0: "batch", 1: "length"}}
    torch.onnx.export(net, example, file, input_names=["tokens"], dynamic_axes=dynamic, dynamo=False)
    return onnx.load_from_string(file.getvalue())


def accuracy(model: onnx.ModelProto) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens, label = (tensor.numpy() for tensor in test.tensors)
    return float((session.run(None, {session.get_inputs()[0].name: tokens})[0].argmax(1) == label).mean())


shapes = [{0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}]
program = torch.onnx.export(net, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
for name, model in (("dynamo", program), ("torchscript", by_torchscript())):
    start = time.perf_counter()
    result = onnxsqueeze.squeeze(model, "int8", batches(loader, model))
    seconds, report = time.perf_counter() - start, result.report
    before, after = accuracy(model.model_proto if name == "dynamo" else model), accuracy(result.model)
    print(
        f"{name}: accuracy {before:.1%} -> {after:.1%}, {report.before.bytes} -> {report.after.bytes} bytes, "
        f"latency x {report.latency_ratio:.2f}, {report.sqnr_db:.1f} dB, squeezed in {seconds:.1f} s"
    )
    assert after > before - 0.02
    assert report.after.bytes < 0.4 * report.before.bytes
