"""Trains the four float models of this folder and writes them with their calibration and test data.

    python models/train.py DIGITS.npz [mlp|cnn|resnet|dwcnn ...]

DIGITS.npz holds at least 10,000 labelled digits: `x`, uint8 [N, 28, 28], and `y`, their classes. A fixed seed splits
them into 1,000 test digits (`digits.npz`), 1,000 held-out digits (only reported) and the rest to train on, of which 256
become the calibration inputs. Needs torch. Each model has a seed of its own, so it comes out the same trained alone.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent
SPLIT_SEED = 2024
TEST, HELD, CALIBRATION = 1000, 1000, 256
BATCH = 64


class Normalize(nn.Module):
    """Shifts and scales pixels in [0, 1] to about zero mean and unit variance, so that callers only divide by 255."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.1307) / 0.3081


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, without bias, and its batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def mlp() -> nn.Module:
    """Three linear layers, 784-256-128-10, the hidden ones batch-normalised."""
    hidden: list[nn.Module] = []
    for inputs, outputs in ((784, 256), (256, 128)):
        hidden += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(Normalize(), nn.Flatten(), *hidden, nn.Linear(128, 10))


def cnn() -> nn.Module:
    """A plain stack of five 3×3 convolutions with max pooling; nearly all of its work is dense convolution."""
    layers: list[nn.Module] = []
    channels = 1
    for outputs, pool in ((32, False), (64, True), (64, False), (128, True), (128, True)):
        layers += [*conv_bn(channels, outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = outputs
    return nn.Sequential(Normalize(), *layers, nn.Flatten(), nn.Linear(128 * 3 * 3, 10))


class Residual(nn.Module):
    """The basic residual block: two 3×3 convolutions around a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """Four residual blocks at three resolutions, global average pooling and a linear classifier."""
    blocks = [Residual(*shape) for shape in ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2))]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(Normalize(), *conv_bn(1, 32), nn.ReLU(), *blocks, *head)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the global averages of all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        layers = nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Hardsigmoid()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """MobileNet's block: 1×1 expansion, depthwise 3×3, 1×1 projection; a shortcut where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module], squeeze: bool) -> None:
        super().__init__()
        wide = 4 * inputs
        layers = [*conv_bn(inputs, wide, 1), act(), *conv_bn(wide, wide, 3, stride, groups=wide), act()]
        layers += [SqueezeExcite(wide)] if squeeze else []
        self.body = nn.Sequential(*layers, *conv_bn(wide, outputs, 1))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def dwcnn() -> nn.Module:
    """A small MobileNet: ReLU6 blocks first, then hard-swish blocks with squeeze-and-excite."""
    blocks = [
        InvertedResidual(16, 24, 2, nn.ReLU6, squeeze=False),
        InvertedResidual(24, 24, 1, nn.ReLU6, squeeze=False),
        InvertedResidual(24, 40, 2, nn.Hardswish, squeeze=True),
        InvertedResidual(40, 40, 1, nn.Hardswish, squeeze=True),
    ]
    head = [*conv_bn(40, 128, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(Normalize(), *conv_bn(1, 16), nn.ReLU6(), *blocks, *head)


# name -> (constructor, epochs, opset); the opsets differ because real files differ.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "mlp": (mlp, 60, 12),
    "cnn": (cnn, 12, 17),
    "resnet": (resnet, 12, 17),
    "dwcnn": (dwcnn, 20, 17),
}


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates, scales and shifts every digit of `x` at random: up to 12 degrees, 10 % and 2 pixels."""
    angle, scale, dx, dy = (torch.rand(4, len(x), generator=generator) * 2 - 1).unbind()
    angle, scale = angle * math.radians(12), 1 + scale * 0.1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([torch.stack([cos, -sin, dx / 7], 1), torch.stack([sin, cos, dy / 7], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of `x` that `model` puts in the class `y`, in percent."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in x.split(250)])
    return 100 * (guesses == y).float().mean().item()


def train(name: str, x: Tensor, y: Tensor) -> nn.Module:
    """Trains the model `name` on the digits `x`, float in [0, 1], with classes `y`; returns it in inference mode."""
    build, epochs, _ = MODELS[name]
    seed = SPLIT_SEED + list(MODELS).index(name)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for picks in order[: steps * BATCH].view(steps, BATCH):
            loss = F.cross_entropy(model(augment(x[picks], generator)), y[picks], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path, opset: int) -> None:
    """Writes `model` to `path` with a free batch axis and BatchNormalization nodes of their own, in inference mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 28, 28),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold the normalisation into the convolution
            do_constant_folding=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


def main() -> None:
    """Splits the digits, writes the shared test digits, and trains and writes each model asked for."""
    parser = argparse.ArgumentParser(description="Train the models of this folder.")
    parser.add_argument("digits", type=Path, help="npz file with x, uint8 [N, 28, 28], and y, N classes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which models: {', '.join(MODELS)}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MODELS):
        parser.error(f"no model is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")

    with np.load(arguments.digits, allow_pickle=False) as digits:
        pixels, classes = digits["x"], digits["y"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels))
    test, held, rest = np.split(order, [TEST, TEST + HELD])
    np.savez_compressed(FOLDER / "digits.npz", x=pixels[test], y=classes[test].astype(np.uint8))

    inputs = (pixels.astype(np.float32) / np.float32(255))[:, None]
    x, y = torch.from_numpy(inputs), torch.from_numpy(classes.astype(np.int64))
    for name in arguments.names or MODELS:
        start = time.perf_counter()
        model = train(name, x[rest], y[rest])
        export(model, FOLDER / f"{name}.onnx", MODELS[name][2])
        np.savez_compressed(FOLDER / f"{name}.calib.npz", input=inputs[rest[:CALIBRATION]])
        on_held, on_test = (accuracy(model, x[part], y[part]) for part in (held, test))
        print(f"{name}: held {on_held:.1f} %, test {on_test:.1f} %, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
