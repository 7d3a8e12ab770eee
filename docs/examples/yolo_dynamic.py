"""A detector as ultralytics exports them, with open batch, height and width, squeezed and run at two sizes."""

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

import onnxsqueeze

torch.manual_seed(0)


class Conv(torch.nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> None:
        conv = torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, torch.nn.BatchNorm2d(outputs), torch.nn.SiLU())


class Split(torch.nn.Module):
    """The C2f block: half of the channels go on through a bottleneck, and all halves are joined again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = Conv(width, width, kernel=1), Conv(width + width // 2, width, kernel=1)
        self.inner = torch.nn.Sequential(Conv(width // 2, width // 2), Conv(width // 2, width // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.last(torch.cat((a, b, b + self.inner(b)), 1))


class Detector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(Conv(3, 32, 2), Conv(32, 64, 2), Split(64))
        self.deep = torch.nn.Sequential(Conv(64, 128, 2), Split(128))
        self.join, self.head = Split(192), torch.nn.Conv2d(192, 4 + 8, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = self.stem(images)
        coarse = torch.nn.functional.interpolate(self.deep(fine), scale_factor=2.0)
        boxes, scores = self.head(self.join(torch.cat((fine, coarse), 1))).flatten(2).split((4, 8), 1)
        return torch.cat((boxes, scores.sigmoid()), 1)


warnings.simplefilter("ignore")  # the older exporter is deprecated
file, net = io.BytesIO(), Detector().eval()
names = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 2: "anchors"}}
torch.onnx.export(
    net, torch.zeros(1, 3, 64, 64), file, input_names=["images"], output_names=["output0"], dynamic_axes=names,
    dynamo=False,
)  # fmt: skip
rng = np.random.default_rng(0)
feeds = [{"images": rng.random((1, 3, *size), np.float32)} for size in ((96, 96), (64, 128), (128, 64), (96, 64)) * 2]
result = onnxsqueeze.squeeze(onnx.load_from_string(file.getvalue()), "int8", feeds)

session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
for size in ((2, 3, 96, 160), (1, 3, 160, 96)):
    images = torch.rand(size)
    expected, (found,) = net(images).detach().numpy(), session.run(None, {"images": images.numpy()})
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"{size}: relative error {error:.3f}, {result.report.before.bytes} -> {result.report.after.bytes} bytes")
    assert error < 0.1
assert result.report.after.bytes < 0.4 * result.report.before.bytes
