"""Unpacks containers and runs their models in headless Chromium, and compares the answers with Python's.

Usage: python benchmarks/browser.py [--chromium PROGRAM] [MODEL.onnx ...]   (default: what ships, squeezed by `code`)

Needs Chromium and npm, which fetches onnxruntime-web into a temporary folder. Prints, per model and coder, the bytes on
the wire, the times in the browser, and the error of its answers; fails if that is over a hundred thousandth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

import onnxsqueeze
from onnxsqueeze.feeds.reading import sample

ROOT = Path(__file__).resolve().parents[1]
WEB = "onnxruntime-web@1.22.0"
LARGEST = 1e-5
"""The largest error of an answer, relative to the largest answer."""
PAGE = """<!doctype html><meta charset="utf-8"><title>packed models</title><script type="module">
import { unpack } from "./osq.js";
import * as ort from "./web/ort.wasm.bundle.min.mjs";
ort.env.wasm.numThreads = 1;
const post = (value) => fetch("/answers", { method: "POST", body: JSON.stringify(value) });
try {
  for (const { model, feed } of await (await fetch("work.json")).json()) {
    const start = performance.now();
    const packed = new Uint8Array(await (await fetch(model)).arrayBuffer());
    const fetched = performance.now();
    const files = await unpack(packed);
    const unpacked = performance.now();
    const session = await ort.InferenceSession.create(files.values().next().value, { executionProviders: ["wasm"] });
    const opened = performance.now();
    const inputs = {};
    for (const [name, { type, shape, values }] of Object.entries(feed))
      inputs[name] = new ort.Tensor(type, type === "int64" ? values.map(BigInt) : values, shape);
    const outputs = await session.run(inputs);
    const ran = performance.now();
    const answers = {};
    for (const name of session.outputNames) answers[name] = Array.from(outputs[name].data, Number);
    const times = { fetch: fetched - start, unpack: unpacked - fetched, open: opened - unpacked, run: ran - opened };
    await post({ model, bytes: packed.length, times, answers });
  }
} catch (error) {
  await post({ error: String(error) });
}
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and takes the answers that the page sends."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".js": "text/javascript"}

    def __init__(self, *args: Any, answers: Queue[dict[str, Any]], **kwargs: Any) -> None:
        self.answers = answers
        super().__init__(*args, **kwargs)

    def do_POST(self) -> None:
        """Hand an answer on."""
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def prepared(model: Path, folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """Pack a model by each coder, and return the work of the page and Python's answers by container."""
    work, expected = [], {}
    for coder in ("rans", "huffman", "deflate"):
        name = f"{model.stem}.{coder}.osq"
        onnxsqueeze.pack(model, folder / name, coder=coder)
        session = onnxsqueeze.session(folder / name)
        feed = sample(onnxsqueeze.load(model))
        assert feed is not None, f"{model}: no feed could be made up"
        found = session.run(None, dict(feed))
        expected[name] = {o.name: np.asarray(v) for o, v in zip(session.get_outputs(), found, strict=True)}
        told = {
            key: {"type": value.dtype.name, "shape": list(value.shape), "values": value.reshape(-1).tolist()}
            for key, value in feed.items()
        }
        work.append({"model": name, "feed": told})
    return work, expected


def main() -> int:
    """Run the page and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--chromium", default="chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["npm", "install", "--silent", "--prefix", name, WEB], check=True)
        shutil.copytree(folder / "node_modules/onnxruntime-web/dist", folder / "web")
        shutil.copy(ROOT / "docs/examples/osq.js", folder)
        (folder / "index.html").write_text(PAGE)
        models = arguments.models
        if not models:
            for each in ("mlp", "cnn", "resnet", "dwcnn"):
                with np.load(ROOT / f"models/{each}.calib.npz") as calib:
                    feeds = [{"input": calib["input"][i : i + 8]} for i in range(0, 64, 8)]
                models.append(folder / f"{each}.onnx")
                onnxsqueeze.squeeze(ROOT / f"models/{each}.onnx", "code", feeds, output=models[-1])
        every = [prepared(model, folder) for model in models]
        (folder / "work.json").write_text(json.dumps([each for work, _ in every for each in work]))
        expected = {key: value for _, each in every for key, value in each.items()}
        return compared(folder, expected, arguments.chromium)


def compared(folder: Path, expected: dict[str, dict[str, np.ndarray]], chromium: str) -> int:
    """Open the page, print a line for every container, and return 1 if an answer differs."""
    answers: Queue[dict[str, Any]] = Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder), answers=answers))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/index.html"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    browser = subprocess.Popen(
        [chromium, *flags, "--remote-debugging-port=0", url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    bad = 0
    try:
        for _ in expected:
            found = answers.get(timeout=120)
            if "error" in found:
                print(found["error"])
                return 1
            worst = 0.0
            for key, value in expected[found["model"]].items():
                got = np.asarray(found["answers"][key]).reshape(value.shape)
                worst = max(worst, float(np.abs(got - value).max() / max(np.abs(value).max(), 1e-30)))
            bad |= worst > LARGEST
            times = ", ".join(f"{key} {value:.0f} ms" for key, value in found["times"].items())
            print(f"{found['model']:24} {found['bytes']:9,} B  {times}  error {worst:.1e}", flush=True)
    finally:
        browser.terminate()
        browser.wait(10)
        server.shutdown()
    return bad


if __name__ == "__main__":
    sys.exit(main())
