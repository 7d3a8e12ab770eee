"""Load, quantize and save a model that is bigger than protobuf's 2 GB, and print the peak of anonymous memory.

    python benchmarks/big_model.py [--layers 40] [--width 4096] [--folder DIR]

The model is a chain of MatMuls with square float weights, streamed to a data file, 2.7 GB with the defaults. Every
weight becomes an int8 one behind a DequantizeLinear, computed while it is written.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnxsqueeze.ir.files import load, save
from onnxsqueeze.ir.objects import Graph, Node
from onnxsqueeze.ir.weights import Derived, Weight, peek


def generate(folder: Path, layers: int = 40, width: int = 4096, seed: int = 0) -> Path:
    """Write ``big.onnx`` and ``big.onnx.data`` to ``folder``, one weight at a time; return the model's path."""
    path = folder / "big.onnx"
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="big")
    graph.input.append(helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", width]))
    graph.output.append(helper.make_tensor_value_info(f"t{layers}", TensorProto.FLOAT, ["N", width]))
    with (folder / "big.onnx.data").open("wb") as file:
        for layer in range(layers):
            weight = rng.standard_normal((width, width), dtype=np.float32)
            weight /= np.float32(np.sqrt(width))
            tensor = graph.initializer.add(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "big.onnx.data"), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(weight.data)
            node = helper.make_node("MatMul", [f"t{layer}", f"w{layer}"], [f"t{layer + 1}"], name=f"matmul{layer}")
            graph.node.append(node)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def quantize(graph: Graph) -> None:
    """Put every MatMul weight behind a DequantizeLinear of an int8 weight that is derived at save."""
    for node in list(graph.nodes):
        weight = node.inputs[1]
        scale = np.float32(abs(peek(weight)).max() / 127)
        name = weight.name
        quantized = gs.Constant(f"{name}_q", Derived(weight.shape, np.int8, _rounded(weight._values, scale)))
        linear = gs.Variable(f"{name}_dq", np.float32, list(weight.shape))
        inputs = [quantized, gs.Constant(f"{name}_scale", np.array(scale))]
        graph.nodes.insert(graph.nodes.index(node), Node("DequantizeLinear", "", {}, inputs, [linear]))
        node.inputs[1] = linear


def _rounded(weight: Weight, scale: np.float32):  # type: ignore[no-untyped-def]
    return lambda: np.rint(weight.peek() / scale).astype(np.int8)


def anonymous_mb() -> float:
    """Return the anonymous resident memory of this process in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"RssAnon:\s+(\d+)", text)[0]) / 1024


class Peak:
    """Samples the anonymous memory of this process every 5 ms; ``mb`` is the highest value seen."""

    def __enter__(self) -> Peak:
        self.mb = anonymous_mb()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.mb = max(self.mb, anonymous_mb())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--folder", type=Path, help="where to put the models (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = generate(folder, args.layers, args.width)
        print(f"model    {(folder / 'big.onnx.data').stat().st_size / 1e6:9.1f} MB of weights")
        start = anonymous_mb()
        for label, edit in (("copy", None), ("int8", quantize)):
            output = folder / f"{label}.onnx"
            begin = time.perf_counter()
            with Peak() as peak:
                graph = load(path)
                if edit is not None:
                    edit(graph)
                save(graph, output)
            seconds = time.perf_counter() - begin
            size = sum(item.stat().st_size for item in folder.glob(f"{label}.onnx*")) / 1e6
            print(
                f"{label:8} {size:9.1f} MB out, peak {peak.mb:6.1f} MB anonymous (start {start:.1f}), {seconds:5.1f} s"
            )
            del graph
            for item in folder.glob(f"{label}.onnx*"):
                item.unlink()


if __name__ == "__main__":
    main()
