"""Calibration by many workers: two on this machine, measured; more of them, simulated with what was measured.

    python benchmarks/calibrate.py --feeds 100000

needs Dask (pip install '.[dask]'). The data are made up for models/mlp.onnx: noise of other sizes from feed to feed.
"""

from __future__ import annotations

import argparse
import heapq
import pickle
import resource
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onnxsqueeze.engine import calibrate as module
from onnxsqueeze.engine import chunks
from onnxsqueeze.engine.calibrate import calibrate
from onnxsqueeze.engine.chunks import AHEAD, measure
from onnxsqueeze.statistics.partial import Partial

MODEL = Path(__file__).parents[1] / "models" / "mlp.onnx"
SAMPLES = 8
"""Samples of one file that make one feed."""


def data(path: Path, feeds: int) -> None:
    """Write the samples of ``feeds`` feeds, a block at a time."""
    shape = (feeds * SAMPLES, 1, 28, 28)
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, len(file), 1 << 14):
        rng = np.random.default_rng(start)
        rows = rng.uniform(0, 1, (min(1 << 14, len(file) - start), *shape[1:])).astype(np.float32)
        file[start : start + len(rows)] = rows * rng.uniform(0, 1, (len(rows), 1, 1, 1)).astype(np.float32)
    file.flush()


def anonymous() -> float:
    """Return the megabytes that this process holds which are no pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def simulated(count: int, chunks: int, chunk: float, receive: float, task: float) -> float:
    """Return the seconds that ``count`` workers take for ``chunks`` chunks of ``chunk`` s.

    Whoever hands out the work takes ``task`` s to hand out a chunk and ``receive`` s to take back what came out and to
    add it up, one after the other; 32 chunks are under way at most.
    """
    free, now, done = [0.0] * min(count, AHEAD), 0.0, list[float]()
    for _ in range(chunks):
        start = max(heapq.heappop(free), now)
        now = max(now, 0.0) + task
        heapq.heappush(done, start + task + chunk)
        heapq.heappush(free, start + task + chunk)
    for at in sorted(done):
        now = max(now, at) + receive
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feeds", type=int, default=100_000)
    feeds = parser.parse_args().feeds
    from distributed import Client, LocalCluster

    with TemporaryDirectory() as folder:
        source = Path(folder, "data.npy")
        data(source, feeds)
        print(f"{feeds} feeds of {SAMPLES} samples, {source.stat().st_size / 1e9:.1f} GB")
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            start = time.perf_counter()
            share = partial(client.scatter, broadcast=True)
            two = calibrate(
                MODEL, source, client.get_executor(), output=Path(folder, "two.npz"), every_feed=True, share=share
            )
            held = client.run(anonymous)
            print(f"two workers of a local cluster: {time.perf_counter() - start:.1f} s, {two.chunks} chunks")
            each = ", ".join(f"{size:.0f}" for size in held.values())
            print(f"anonymous memory of the workers, MB: {each}; here {anonymous():.0f}")
        start = time.perf_counter()
        calibrate(MODEL, source, 2, output=Path(folder, "here.npz"), every_feed=True)
        same = Path(folder, "here.npz").read_bytes() == Path(folder, "two.npz").read_bytes()
        words = f"the same bytes: {same}; {anonymous():.0f} MB anonymous here"
        print(f"two processes here: {time.perf_counter() - start:.1f} s, {words}")
        took: list[float] = []
        sizes: list[int] = []
        receiving: list[float] = []

        def timed(place: object, task: object, given: object) -> object:
            start = time.perf_counter()
            found = measure(place, task, given)  # type: ignore[arg-type]
            took.append(time.perf_counter() - start)
            start = time.perf_counter()
            sent = pickle.dumps(found)
            sizes.append(len(sent))
            found = pickle.loads(sent)
            receiving.append(time.perf_counter() - start)
            return found

        adding: list[float] = []
        real = Partial.add

        def add(self: Partial, chunk: int, found: object) -> None:
            start = time.perf_counter()
            real(self, chunk, found)  # type: ignore[arg-type]
            adding.append(time.perf_counter() - start)

        chunks.measure, module.Partial.add = timed, add  # type: ignore[assignment, method-assign]
        start = time.perf_counter()
        calibrate(MODEL, source, output=Path(folder, "one.npz"), every_feed=True)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"one process: {seconds:.1f} s, peak {peak:.0f} MB with pages of the data")
        print(f"the same bytes: {Path(folder, 'one.npz').read_bytes() == Path(folder, 'two.npz').read_bytes()}")
    chunk, receive = float(np.median(took)), float(np.median(receiving) + np.mean(adding))
    print(f"a chunk takes {chunk:.3f} s and comes back in {np.median(sizes) / 1e6:.1f} MB, {receive:.4f} s to take in")
    for count in (1, 2, 8, 32, 64, 1000):
        seconds = simulated(count, two.chunks, chunk, receive, 0.001)
        shards = -(-two.chunks // count) * chunk + min(count, two.chunks) * receive
        print(
            f"{count:5} workers, simulated: {seconds:6.1f} s under one driver, {shards:6.1f} s as shards and one merge"
        )


if __name__ == "__main__":
    main()
