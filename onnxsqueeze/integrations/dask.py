"""A cluster of Dask, to measure on: one that runs, or one of this machine's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnxsqueeze.errors import UsageError

__all__ = ["connected"]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield a client of the cluster at ``address``, or of one that lives as long as the block if it is "local".

    Raises UsageError if Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError("--dask needs Dask: pip install 'onnxsqueeze[dask]'") from error
    if address == "local":
        cores = os.cpu_count() or 1
        with (
            LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise UsageError(f"no scheduler of Dask answers at {address}: {error}") from error
    with client:
        yield client
