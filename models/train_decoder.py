"""Trains `decoder.onnx`: a small causal transformer that goes on with English text, byte by byte.

    python models/train_decoder.py TEXT.txt [--folder FOLDER] [--steps N]

TEXT.txt is the King James Bible, whose copyright has expired, a verse a line; any text of some megabytes will do. What
its lines start with up to the first blank is left out. The last twentieth is kept apart: 32 kB of it become the test
text. Rotary positions, RMS normalisation, gated feed-forward layers, and two heads that share one pair of keys and
values; the head is the table of embeddings. Inputs are bytes [1, T] and per layer what was seen, past_key and
past_value [1, KEYS, P, WIDTH / HEADS], P = 0 at first; outputs are logits [1, T, 256] and all keys and values. Weights
are values of float16, as files in the wild often hold them. Needs torch.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 2024
WIDTH, LAYERS, HEADS, KEYS, HIDDEN = 256, 3, 4, 2, 512
LONGEST = 512
"""Positions that there are angles for."""
BATCH, LENGTH = 16, 128
TEST = 1 << 15


class Norm(nn.Module):
    """x / √(mean x² + ε), times a gain per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs of channels, half a head apart, by angles that grow with the position."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm and around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        size = WIDTH // HEADS
        self.norm, self.mixed = Norm(), Norm()
        self.query, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.key, self.value = (nn.Linear(WIDTH, KEYS * size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, hidden: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        size, h = WIDTH // HEADS, self.norm(x)

        def heads(rows: Tensor, count: int) -> Tensor:
            return rows.view(rows.shape[0], -1, count, size).transpose(1, 2)

        query = turned(heads(self.query(h), HEADS), cos, sin)
        key = torch.cat([past[0], turned(heads(self.key(h), KEYS), cos, sin)], 2)
        value = torch.cat([past[1], heads(self.value(h), KEYS)], 2)
        shared = query.reshape(query.shape[0], KEYS, -1, size)  # the heads that share keys, one under the other
        scores = shared @ key.transpose(2, 3) / math.sqrt(size)
        scores = scores.view(query.shape[0], HEADS, -1, key.shape[2]) + hidden
        mixed = F.softmax(scores, -1).view(query.shape[0], KEYS, -1, key.shape[2]) @ value
        mixed = mixed.view(query.shape[0], HEADS, -1, size).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        h = self.mixed(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), (key, value)


class Decoder(nn.Module):
    """Bytes to the logits of the bytes that follow them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(256, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = Norm()
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(LONGEST), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, *pasts: Tensor) -> tuple[Tensor, ...]:
        start, length = pasts[0].shape[2], tokens.shape[1]
        places = torch.arange(start, start + length)
        cos, sin = self.cos[places], self.sin[places]
        ahead = torch.arange(start + length)[None] > places[:, None]
        hidden = torch.where(ahead, -1e4, 0.0)
        x, presents = self.table[tokens], []
        for i, block in enumerate(self.blocks):
            x, present = block(x, cos, sin, hidden, (pasts[2 * i], pasts[2 * i + 1]))
            presents += present
        return self.norm(x) @ self.table.T, *presents


def nothing(batch: int) -> list[Tensor]:
    """What has been seen before the first byte."""
    return [torch.zeros(batch, KEYS, 0, WIDTH // HEADS) for _ in range(2 * LAYERS)]


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Returns the bytes to train on and those to test on."""
    lines = path.read_text(encoding="ascii", errors="ignore").splitlines()
    text = "\n".join(line.split(" ", 1)[-1] for line in lines).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(data) * 19 // 20
    return data[:cut], data[cut : cut + TEST]


def loss(model: Decoder, rows: Tensor) -> Tensor:
    """The mean −log p of each byte after the first of its row."""
    logits = model(rows[:, :-1], *nothing(len(rows)))[0]
    return F.cross_entropy(logits.reshape(-1, 256), rows[:, 1:].reshape(-1))


def train(data: Tensor, steps: int) -> Decoder:
    """Trains on windows of the text that are drawn at random."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Decoder().train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(len(data) - LENGTH, (BATCH,), generator=generator)
        rows = torch.stack([data[i : i + LENGTH + 1] for i in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, rows)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: {value.item():.3f} nats, {time.perf_counter() - start:.0f} s", flush=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model.eval()


def export(model: Decoder, path: Path) -> None:
    """Writes the model with free numbers of bytes and of bytes seen before."""
    names = [f"{what}_{kind}.{i}" for what in ("past", "present") for i in range(LAYERS) for kind in ("key", "value")]
    pasts, presents = names[: 2 * LAYERS], names[2 * LAYERS :]
    axes = {"tokens": {1: "length"}, "logits": {1: "length"}}
    axes |= {name: {2: "past"} for name in pasts} | {name: {2: "seen"} for name in presents}
    example = torch.zeros(1, 3, dtype=torch.long), *[torch.zeros(1, KEYS, 5, WIDTH // HEADS)] * (2 * LAYERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, example, path, dynamo=False, do_constant_folding=False, opset_version=17,
            input_names=["tokens", *pasts], output_names=["logits", *presents], dynamic_axes=axes,
        )  # fmt: skip


def main() -> None:
    """Trains, writes the model and its test text, and says what it is worth."""
    parser = argparse.ArgumentParser(description="Train the decoder of this folder.")
    parser.add_argument("text", type=Path, help="the text to learn")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where to write")
    parser.add_argument("--steps", type=int, default=1800)
    arguments = parser.parse_args()
    data, test = read(arguments.text)
    model = train(data, arguments.steps)
    export(model, arguments.folder / "decoder.onnx")
    calibration = data[: 64 * LENGTH].view(64, LENGTH).numpy().astype(np.uint8)
    np.savez_compressed(arguments.folder / "text.npz", calibration=calibration, test=test.numpy().astype(np.uint8))
    with torch.no_grad():
        rows = test[: len(test) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
        print(f"perplexity {math.exp(loss(model, rows).item()):.4f} a byte")


if __name__ == "__main__":
    main()
