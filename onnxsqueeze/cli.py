"""The command line: ``onnxsqueeze MODEL -p PIPELINE`` squeezes a model, ``onnxsqueeze COMMAND`` does the rest."""

from __future__ import annotations

import errno
import io
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from onnxsqueeze.errors import ContractError, PassError, SpecError, SqueezeError, ToleranceError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxsqueeze.result import Result

__all__ = ["command_line", "console_on", "main", "number", "numbers", "refuse_to_overwrite", "seed", "write_report"]

COMMANDS = {
    "diff": ("onnxsqueeze.diff_command:command", "Say how two models differ, and where an error is born."),
    "inspect": ("onnxsqueeze.inspect_command:command", "Say what every layer costs and what the model needs."),
    "sensitivity": ("onnxsqueeze.sensitivity_command:command", "Say what each layer does to the answers."),
    "passes": ("onnxsqueeze.cli:passes", "List the passes and their options."),
}
"""Sub-commands: where the click command is, imported only when it is called, and its line in ``--help``."""

EXAMPLE = "onnxsqueeze model.onnx -p lowrank,int8"
DEBUG = "ONNXSQUEEZE_DEBUG"
GIVEN = "onnxsqueeze.given"


class CommandLine(click.Command):
    """The main job as a command that hands over to a sub-command when the first argument names one."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _failures():
            given = list(args)
            if not args or args[0] not in COMMANDS:
                context = super().make_context(info_name, args or ["--help"], parent, **extra)
                context.meta[GIVEN] = given
                return context
            module, _, attribute = COMMANDS[args[0]][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            context = command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
            context.meta[GIVEN] = given
            return context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if isinstance(error, click.NoSuchOption) or not any(_is_torn(each) for each in given):
                raise
            hint = "has the shell torn the pipeline apart? Put quotes around it: -p 'lowrank{energy=0.98},int8'"
            raise UsageError(f"{error.format_message()}; {hint}") from None

    def invoke(self, ctx: click.Context) -> Any:
        with _failures(ctx):
            return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] MODEL -p PIPELINE")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS] ...", prefix=" " * len("Usage: "))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def number(text: str) -> float:
    """Return the number that an option gives."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise click.BadParameter(f"{text!r} is not a number")
    return value


def numbers(text: str) -> float | list[float]:
    """Return one number for all channels, or one for each with commas between them."""
    values = [number(each) for each in text.split(",")]
    return values if len(values) > 1 else values[0]


def seed(text: str) -> int:
    """Return the seed that an option gives."""
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is not an integer of 0 or more")
    return int(text)


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from onnxsqueeze import __version__

        click.echo(f"onnxsqueeze {__version__}")
        ctx.exit()


@click.command(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("-p", "--pipeline", metavar="PIPELINE", help="Passes in order, like 'lowrank{energy=0.98},int8'.")
@click.option("--recipe", metavar="FILE", help="Do what a recipe says, in the place of -p; -p takes a .toml file too.")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images; or random.")
@click.option("-o", "--output", metavar="FILE", help="The squeezed model.  [default: MODEL.squeezed.onnx]")
@click.option("--report", metavar="FILE", help="Also write the report, as JSON.")
@click.option("--html", metavar="FILE", help="Also write the report, as a page for the browser.")
@click.option("--save-recipe", metavar="FILE", help="Also write what was done, so that --recipe repeats it.")
@click.option("--min-sqnr", type=number, metavar="DB", help="Write nothing if the SQNR of an output is below this.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and write no model.")
@click.option("--validate", type=click.Choice(["full", "none"]), help="none: neither compare nor time.")
@click.option("--stats", multiple=True, metavar="FILE", help="Read calibration statistics, or write them if new.")
@click.option("--seed", type=seed, metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--mean", type=numbers, metavar="X[,X...]", help="Images: subtracted from the scaled pixels.")
@click.option("--std", type=numbers, metavar="X[,X...]", help="Images: divides the pixels after that.")
@click.option("--scale", type=number, metavar="X", help="Images: multiplies the pixels 0..255.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    model: str,
    pipeline: str | None,
    recipe: str | None,
    save_recipe: str | None,
    calib: str | None,
    output: str | None,
    report: str | None,
    html: str | None,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Make an ONNX model smaller and faster, and say how far its answers moved."""
    recipe, pipeline = (pipeline, None) if recipe is None and str(pipeline).endswith(".toml") else (recipe, pipeline)
    if pipeline is None and recipe is None:
        raise UsageError(f"no pipeline: say what to do with -p, for example {EXAMPLE}")
    if pipeline is not None and recipe is not None:
        raise UsageError("-p and --recipe both say what to do: drop one of them")
    source = Path(model)
    target = Path(output) if output is not None else source.with_name(f"{source.stem}.squeezed.onnx")
    refuse_to_overwrite("--output", target, {"the model": source})
    if report is not None:
        refuse_to_overwrite("--report", Path(report), {"the model": source, "the squeezed model": target})
    if save_recipe is not None:
        if dry_run:
            raise UsageError("--save-recipe writes what a run has decided, and --dry-run decides nothing: drop one")
        refuse_to_overwrite("--save-recipe", Path(save_recipe), {"the model": source, "the squeezed model": target})
    if html is not None:
        others = {"the model": source, "the squeezed model": target}
        refuse_to_overwrite("--html", Path(html), others | ({"the report": Path(report)} if report else {}))

    from onnxsqueeze import render
    from onnxsqueeze.flags import flagged
    from onnxsqueeze.pipeline import squeeze
    from onnxsqueeze.recipe import Recipe

    what = Recipe.load(recipe) if recipe is not None else str(pipeline)
    settings |= {"output": None if dry_run else target, "dry_run": dry_run}
    failure: ToleranceError | None = None
    result: Result | None = None
    with render.progress(console_on(sys.stderr)) as progress:
        try:
            result = squeeze(source, what, calib, progress=progress, **settings)
            run = result.report
        except ToleranceError as error:
            if error.report is None:
                raise
            run, failure = error.report, error
    if save_recipe is not None and result is not None:
        result.recipe.save(save_recipe)
    run = flagged(run)
    if run.output is not None:
        ctx.obj = f"{target} was written"
    if report is not None:
        write_report(Path(report), run.to_json())
    if html is not None:
        from onnxsqueeze.html import report_page
        from onnxsqueeze.ir.files import load

        page = report_page(run, load(source), None if result is None else result.graph, command_line(ctx))
        write_report(Path(html), page)
    render.show(run, console_on(sys.stdout))
    if failure is not None:
        raise failure


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def passes(as_json: bool) -> None:
    """List the passes and their options."""
    from onnxsqueeze.registry import listing

    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(each) for each in listing()], indent=2, ensure_ascii=False))
    else:
        from onnxsqueeze import render

        render.show_passes(console_on(sys.stdout), listing())


def command_line(ctx: click.Context) -> str:
    """Return what the user typed, so that it can be typed again."""
    return shlex.join(["onnxsqueeze", *ctx.meta[GIVEN]])


def console_on(stream: TextIO) -> Console:
    """Return a console on ``stream`` that writes "?" for what the encoding of the stream does not have."""
    from rich.console import Console

    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(file=stream)


@contextmanager
def _failures(ctx: click.Context | None = None) -> Iterator[None]:
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
    except KeyboardInterrupt:
        _fail(f"interrupted; {(ctx and ctx.obj) or 'nothing was written'}", 130)
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


def _fail(message: str, code: int, one_line: bool = True) -> NoReturn:
    from onnxsqueeze.flags import as_flags
    from onnxsqueeze.words import printable

    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exc()
    message = as_flags(" ".join(message.split()) if one_line else message)
    click.echo(f"onnxsqueeze: error: {printable(message)}", err=True)
    raise click.exceptions.Exit(code)


def _is_torn(argument: str) -> bool:
    """Whether this looks like a part of a pipeline that bash has expanded: ``a{x=1,y=2}`` becomes ``ax=1 ay=2``."""
    return "=" in argument and not argument.startswith("-") and argument.count("{") == argument.count("}") == 0


def refuse_to_overwrite(option: str, target: Path, others: dict[str, Path]) -> None:
    """Refuse a target that cannot be written or that is one of ``others`` before any work is done."""
    if target.is_dir():
        raise UsageError(f"{option} {target} is a folder: name a file")
    if not target.parent.is_dir():
        raise UsageError(f"{option} {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{option} {target}: the folder {target.parent} cannot be written to; name a file elsewhere")
    for what, other in others.items():
        if target.resolve() == other.resolve() or (target.exists() and other.exists() and target.samefile(other)):
            raise UsageError(f"{option} {target} would overwrite {what}: name another file")


def write_report(path: Path, text: str) -> None:
    """Write the report whole or not at all."""
    from onnxsqueeze.files import whole

    with whole(path, f"the report {path}") as file:
        file.write(text.encode())
