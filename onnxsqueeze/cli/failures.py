"""Every exception as one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from onnxsqueeze.errors import ContractError, PassError, SpecError, SqueezeError

__all__ = ["failures", "heeding_termination"]

DEBUG = "ONNXSQUEEZE_DEBUG"


@contextmanager
def failures(ctx: click.Context | None = None) -> Iterator[None]:
    """Turn every exception into one sentence on stderr and an exit code."""
    try:
        yield
    except (click.exceptions.Exit, click.Abort):
        raise
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except SpecError as error:
        _fail(str(error), error.exit_code, one_line=False)
    except ContractError as error:
        _fail(str(error), error.exit_code)
    except PassError as error:
        _fail(f"{error}; this is a bug, run again with {DEBUG}=1 for the traceback", error.exit_code)
    except SqueezeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        word, code = ("terminated", 143) if isinstance(error, _Terminated) else ("interrupted", 130)
        _fail(f"{word}; {(ctx and ctx.obj) or 'nothing was written'}", code)
    except MemoryError:
        _fail("out of memory: close other programs, or give less calibration data", SqueezeError.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        reason = error.strerror or str(error)
        _fail(f"{error.filename}: {reason}" if error.filename else reason, SqueezeError.exit_code)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        _fail(
            f"this is a bug in onnxsqueeze: {problem}; run again with {DEBUG}=1 for the traceback", PassError.exit_code
        )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds like Ctrl-C."""


@contextmanager
def heeding_termination() -> Iterator[None]:
    """Let SIGTERM end what runs like Ctrl-C, so that half-written files and temporary folders go."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: object) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(message: str, code: int, one_line: bool = True) -> NoReturn:
    from onnxsqueeze.cli.flags import as_flags
    from onnxsqueeze.words import printable

    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exc()
    message = as_flags(" ".join(message.split()) if one_line else message)
    click.echo(f"onnxsqueeze: error: {printable(message)}", err=True)
    raise click.exceptions.Exit(code)
