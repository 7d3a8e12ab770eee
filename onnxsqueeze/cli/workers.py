"""``--workers`` and ``--dask``: who does the work of a command besides this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import click

from onnxsqueeze.errors import UsageError

__all__ = ["shared_out", "with_workers"]

C = TypeVar("C", bound=Callable[..., Any])

MOST = 1024
"""Workers that one machine may be asked for."""


def with_workers(command: C) -> C:
    """Give a command the two options."""
    count = click.option("--workers", type=click.IntRange(1, MOST), metavar="N", help="Processes on this machine.")
    help_ = "Workers of a Dask cluster, like tcp://host:8786, or local."
    return count(click.option("--dask", metavar="ADDRESS", help=help_)(command))


@contextmanager
def shared_out(workers: int | None, dask: str | None) -> Iterator[dict[str, Any]]:
    """Yield ``executor`` and ``share`` for what the library does by ``Workers``, none if this process is to do all."""
    if workers is not None and dask is not None:
        raise UsageError("--workers and --dask are two ways to the same: give one")
    if dask is not None:
        from onnxsqueeze.integrations.dask import connected

        with connected(dask) as client:
            yield {"executor": client.get_executor(), "share": partial(client.scatter, broadcast=True)}
    elif workers is not None and workers > 1:
        yield {"executor": workers}
    else:
        yield {}
