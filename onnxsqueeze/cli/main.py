"""The command line: ``onnxsqueeze MODEL [-p PIPELINE]`` squeezes a model, ``onnxsqueeze COMMAND`` does the rest."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxsqueeze.cli.failures import failures, heeding_termination
from onnxsqueeze.cli.options import (
    GIVEN,
    command_line,
    console_on,
    number,
    numbers,
    seed,
    share,
    write_report,
)
from onnxsqueeze.cli.workers import shared_out, with_workers
from onnxsqueeze.errors import ToleranceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxsqueeze.engine.result import Result

__all__ = ["main"]

COMMANDS = {
    "diff": ("onnxsqueeze.cli.diff:command", "Say how two models differ, and where an error is born."),
    "inspect": ("onnxsqueeze.cli.inspect:command", "Say what every layer costs and what the model needs."),
    "family": ("onnxsqueeze.cli.family:command", "Write a model in several sizes, to choose from."),
    "sensitivity": ("onnxsqueeze.cli.sensitivity:command", "Say what each layer does to the answers."),
    "exits": ("onnxsqueeze.cli.exits:command", "Let a model answer early where it is sure."),
    "calibrate": ("onnxsqueeze.cli.calibrate:calibrate", "Measure much data, by many workers or in shards."),
    "merge": ("onnxsqueeze.cli.calibrate:merge", "Put the shards that calibrate has measured together."),
    "pack": ("onnxsqueeze.cli.pack:pack", "Write a model as an entropy-coded container for the wire."),
    "unpack": ("onnxsqueeze.cli.pack:unpack", "Write the model in a container, byte for byte as it was."),
    "check": ("onnxsqueeze.cli.check:command", "Say what of a model breaks on a target."),
    "profile-target": ("onnxsqueeze.cli.profile_target:command", "Measure what operators cost on this device."),
    "targets": ("onnxsqueeze.cli.targets:command", "List the targets and explain their rules."),
    "distill": ("onnxsqueeze.cli.distill:command", "Train a student on the answers of teachers."),
    "passes": ("onnxsqueeze.cli.passes:passes", "List the passes and their options."),
}
"""Sub-commands: where the click command is, imported only when it is called, and its line in ``--help``."""


class CommandLine(click.Command):
    """The main job as a command that hands over to a sub-command when the first argument names one."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with failures():
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
        with failures(ctx), heeding_termination():
            return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] MODEL [-p PIPELINE]")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS] ...", prefix=" " * len("Usage: "))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


def size(text: str) -> float:
    """Return the bytes that a number means, with a unit of a thousand or a million if it has one."""
    digits = text.upper().removesuffix("B")
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}.get(digits[-1:], 1.0)
    return unit * number(digits if unit == 1.0 else digits[:-1])


def threads(text: str) -> int:
    """Return a number of threads, 0 for all."""
    return 0 if text == "all" else batch(text)


def batch(text: str) -> int:
    """Return a number of 1 or more."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise click.BadParameter(f"{text!r} is no number of 1 or more")
    return int(text)


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from onnxsqueeze import __version__

        click.echo(f"onnxsqueeze {__version__}")
        ctx.exit()


@click.command(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("-p", "--pipeline", metavar="PIPELINE", help="Passes in order, like 'lowrank,int8'.  [default: auto]")
@click.option("--recipe", metavar="FILE", help="Do what a recipe says, in the place of -p; -p takes a .toml file too.")
@click.option("--calib", metavar="PATH", help="Calibration data: a folder or file of .npz, .npy or images; or random.")
@click.option("-o", "--output", metavar="FILE", help="The squeezed model.  [default: MODEL.squeezed.onnx]")
@click.option("--report", metavar="FILE", help="Also write the report, as JSON.")
@click.option("--html", metavar="FILE", help="Also write the report, as a page for the browser.")
@click.option("--save-recipe", metavar="FILE", help="Also write what was done, so that --recipe repeats it.")
@click.option("--min-sqnr", type=number, metavar="DB", help="Write nothing if the SQNR of an output is below this.")
@click.option("--outputs", metavar="NAME:KIND,...", help="What outputs are: values, scores, labels or rows.")
@click.option("--score", metavar="MODULE:FUNCTION", help="Your own score of answers, shown beside the SQNR.")
@click.option("--max-score-drop", type=share, metavar="SHARE", help="Write nothing if the score loses more, like 0.5%.")
@click.option("--target", metavar="NAME|FILE", help="What it is to run on, see onnxsqueeze targets.")
@click.option("--threads", type=threads, metavar="N|all", help="How many threads the plan is for.  [default: 1]")
@click.option("--batch", type=batch, metavar="N", help="How many samples at once the plan is for.")
@click.option("--effort", type=click.Choice(["quick", "default", "max"]), help="auto: 1, 5 or 20 minutes at most.")
@click.option("--cache", metavar="FOLDER", help="auto: keep what was measured there, for the next search.")
@with_workers
@click.option("--memory", is_flag=True, help="Measure memory at run time and the time to load, too.")
@click.option("--max-memory", type=size, metavar="SIZE", help="Write nothing if it takes more at run time, like 64MB.")
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
    effort: str | None,
    cache: str | None,
    workers: int | None,
    dask: str | None,
    **settings: Any,
) -> None:
    """Make an ONNX model smaller and faster, and say how far its answers moved."""
    recipe, pipeline = (pipeline, None) if recipe is None and str(pipeline).endswith(".toml") else (recipe, pipeline)
    if pipeline is not None and recipe is not None:
        raise UsageError("-p and --recipe both say what to do: drop one of them")
    source = Path(model)
    target = Path(output) if output is not None else source.with_name(f"{source.stem}.squeezed.onnx")
    if save_recipe is not None and dry_run:
        raise UsageError("--save-recipe writes what a run has decided, and --dry-run decides nothing: drop one")

    from onnxsqueeze.cli.flags import flagged
    from onnxsqueeze.engine.places import refuse_places
    from onnxsqueeze.engine.recipe import Recipe
    from onnxsqueeze.report import terminal
    from onnxsqueeze.search.wishes import NAME, is_auto

    what = Recipe.load(recipe) if recipe is not None else NAME if pipeline is None else pipeline
    searches = is_auto(what)
    if not searches and (effort is not None or cache is not None):
        raise UsageError("--effort and --cache are for searches: use -p auto, or leave them out")
    told: dict[str, Any] = dict(what.calibration) if isinstance(what, Recipe) else {}
    data = target.with_name(f"{target.name}.data")
    models = {} if dry_run else {"--output": target, "the data file of --output": data}
    refuse_places(
        {**models, "--report": report, "--html": html, "--save-recipe": save_recipe},
        {"the model": source},
        calibration=calib if calib is not None else told.get("source"),
        recipe=recipe,
        stats=settings["stats"] or told.get("stats", ()),
    )
    settings |= {"output": None if dry_run else target, "dry_run": dry_run}
    do: Callable[..., Result]
    if searches:
        from onnxsqueeze.search.auto import auto as do

        settings |= {"effort": effort or "default", "cache": cache}
    else:
        from onnxsqueeze.engine.squeeze import squeeze as do
    failure: ToleranceError | None = None
    result: Result | None = None
    with shared_out(workers, dask) as shared, terminal.progress(console_on(sys.stderr)) as progress:
        try:
            result = do(source, what, calib, progress=progress, **shared, **settings)
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
        from onnxsqueeze.ir.files import load
        from onnxsqueeze.report.pages.page import report_page

        page = report_page(run, load(source), None if result is None else result.graph, command_line(ctx))
        write_report(Path(html), page)
    terminal.show(run, console_on(sys.stdout))
    if failure is not None:
        raise failure


def _is_torn(argument: str) -> bool:
    """Whether this looks like a part of a pipeline that bash has expanded: ``a{x=1,y=2}`` becomes ``ax=1 ay=2``."""
    return "=" in argument and not argument.startswith("-") and argument.count("{") == argument.count("}") == 0
