from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import types
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from onnxsqueeze.cli.failures import DEBUG
from onnxsqueeze.cli.main import COMMANDS, main
from onnxsqueeze.errors import (
    FeedError,
    ModelError,
    PassError,
    SpecError,
    SqueezeError,
    ToleranceError,
    UnknownPassError,
    UsageError,
)
from onnxsqueeze.measure.cost import Cost
from onnxsqueeze.report.run import Report

REPORT = Report(
    model="model.onnx",
    output="model.squeezed.onnx",
    pipeline="int8",
    calibration="none",
    held_out="",
    before=Cost(1000, 250, None, 10, 13),
    after=Cost(500, 250, None, 10, 13),
    latency_ms=None,
    latency_ratio=None,
    deviations=(),
    steps=(),
    notes=(),
    seconds=1.0,
)


class Engine:
    """Stands in for ``onnxsqueeze.engine.squeeze``: notes how it was called, then returns a report or raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.error: BaseException | None = None

    def squeeze(self, *args: Any, progress: Any, **settings: Any) -> Any:
        self.calls.append((args, settings))
        progress("loading", 0, 1)
        if self.error is not None:
            raise self.error
        output = settings["output"]
        report = replace(REPORT, output=None if output is None else str(output), dry_run=settings["dry_run"])
        return types.SimpleNamespace(report=report)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A folder with a model to be in, and an engine that is not the real one."""
    fake = Engine()
    module = types.ModuleType("onnxsqueeze.engine.squeeze")
    module.squeeze = fake.squeeze  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxsqueeze.engine.squeeze", module)
    monkeypatch.delenv(DEBUG, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"")
    return fake


class Result(NamedTuple):
    exit_code: object
    stdout: str
    stderr: str


def run(*args: str) -> Result:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as exit_:
        main(args, prog_name="onnxsqueeze")
    return Result(exit_.value.code, stdout.getvalue(), stderr.getvalue())


def failure(*args: str) -> tuple[object, str]:
    """Return the exit code and what stands on stderr behind the prefix."""
    result = run(*args)

    assert result.stdout == ""
    assert result.stderr.startswith("onnxsqueeze: error: ")
    assert result.stderr.endswith("\n")
    return result.exit_code, result.stderr.removeprefix("onnxsqueeze: error: ").removesuffix("\n")


def test_a_model_and_a_pipeline_are_enough(engine: Engine) -> None:
    result = run("model.onnx", "-p", "int8")

    assert result.exit_code == 0, result
    assert "wrote model.squeezed.onnx" in result.stdout
    assert result.stderr == ""
    assert engine.calls == [
        (
            (Path("model.onnx"), "int8", None),
            {
                "output": Path("model.squeezed.onnx"),
                "min_sqnr": None,
                "outputs": None,
                "score": None,
                "max_score_drop": None,
                "target": None,
                "threads": None,
                "batch": None,
                "memory": False,
                "max_memory": None,
                "validate": None,
                "seed": None,
                "dry_run": False,
                "stats": (),
                "mean": None,
                "std": None,
                "scale": None,
            },
        )
    ]


def test_every_option_reaches_the_engine(engine: Engine) -> None:
    text = (
        "-p lowrank,int8 --calib random -o out.onnx --min-sqnr 20 --validate none --stats a.npz --stats b.npz "
        "--outputs y:scores --target qnn-htp --threads all --batch 8 --memory --max-memory 64MB "
        "--score task:accuracy --max-score-drop 0.5% --seed 7 --mean 0.485,0.456,0.406 --std 0.2 --scale 0.5 model.onnx"
    )
    Path("a.npz").touch()

    assert run(*text.split()).exit_code == 0
    ((args, settings),) = engine.calls
    assert args == (Path("model.onnx"), "lowrank,int8", "random")
    assert settings == {
        "output": Path("out.onnx"),
        "min_sqnr": 20.0,
        "validate": "none",
        "outputs": "y:scores",
        "score": "task:accuracy",
        "max_score_drop": 0.005,
        "target": "qnn-htp",
        "threads": 0,
        "batch": 8,
        "memory": True,
        "max_memory": 64e6,
        "seed": 7,
        "dry_run": False,
        "stats": ("a.npz", "b.npz"),
        "mean": [0.485, 0.456, 0.406],
        "std": 0.2,
        "scale": 0.5,
    }


def test_a_dry_run_has_no_output(engine: Engine) -> None:
    result = run("model.onnx", "-p", "int8", "--dry-run")

    assert "no model was written" in result.stdout
    assert engine.calls[0][1]["output"] is None
    assert engine.calls[0][1]["dry_run"] is True


def test_the_report_is_written_as_json(engine: Engine) -> None:
    assert run("model.onnx", "-p", "int8", "--report", "report.json").exit_code == 0

    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["before"]["bytes"] == 1000
    assert sorted(each.name for each in Path().iterdir()) == ["model.onnx", "report.json"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("report.json").write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)

    assert failure("model.onnx", "-p", "int8", "--report", "report.json") == (
        2,
        "the report report.json cannot be written: No space left on device",
    )
    assert Path("report.json").read_text() == "old"
    assert sorted(each.name for each in Path().iterdir()) == ["model.onnx", "report.json"]


def test_a_model_without_a_pipeline_is_searched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("onnxsqueeze.search.auto")
    module.auto = engine.squeeze  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxsqueeze.search.auto", module)

    assert run("model.onnx").exit_code == 0
    assert run("model.onnx", "-p", "auto{size=0.2}", "--effort", "quick", "--cache", "kept").exit_code == 0
    (first, one), (second, other) = engine.calls
    assert first == (Path("model.onnx"), "auto", None)
    assert second == (Path("model.onnx"), "auto{size=0.2}", None)
    assert (one["effort"], one["cache"]) == ("default", None)
    assert (other["effort"], other["cache"]) == ("quick", "kept")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("-o model.onnx", "--output model.onnx would overwrite the model: name another file"),
        ("-o ./sub/../model.onnx", "--output sub/../model.onnx would overwrite the model: name another file"),
        ("-o link.onnx", "--output link.onnx would overwrite the model: name another file"),
        ("-o sub", "--output sub is a folder: name a file"),
        ("-o none/out.onnx", "--output none/out.onnx: there is no folder none"),
        ("--report model.onnx", "--report model.onnx would overwrite the model: name another file"),
        ("--report model.squeezed.onnx", "would overwrite the squeezed model: name another file"),
        ("--report none/r.json", "--report none/r.json: there is no folder none"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_any_work(engine: Engine, args: str, text: str) -> None:
    Path("sub").mkdir()
    os.link("model.onnx", "link.onnx")

    code, shown = failure("model.onnx", "-p", "int8", *args.split())
    assert code == 2
    assert shown.endswith(text)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SqueezeError("x"), 1),
        (UsageError("x"), 2),
        (UnknownPassError("x"), 2),
        (FeedError("x"), 2),
        (ModelError("x"), 3),
        (ToleranceError("x"), 5),
    ],
)
def test_the_exit_code_is_that_of_the_error(engine: Engine, error: SqueezeError, code: int) -> None:
    engine.error = error

    assert failure("model.onnx", "-p", "int8") == (code, "x")


def test_an_error_is_one_line_whatever_it_holds(engine: Engine) -> None:
    engine.error = ModelError("first\n  second \x1b[2J")

    assert failure("model.onnx", "-p", "int8") == (3, r"first second \x1b[2J")


def test_an_error_in_the_pipeline_keeps_its_caret(engine: Engine) -> None:
    engine.error = SpecError("no\n  a b\n    ^")

    assert failure("model.onnx", "-p", "a b") == (2, "no\n  a b\n    ^")


BUG = "this is a bug in onnxsqueeze: KeyError: 'x'; run again with ONNXSQUEEZE_DEBUG=1 for the traceback"


def test_an_unexpected_error_is_our_bug_and_no_traceback(engine: Engine) -> None:
    engine.error = KeyError("x")

    assert failure("model.onnx", "-p", "int8") == (4, BUG)


def test_a_broken_pass_is_a_bug_too(engine: Engine) -> None:
    engine.error = PassError("the pass 'x' failed")

    assert failure("model.onnx", "-p", "int8") == (
        4,
        "the pass 'x' failed; this is a bug, run again with ONNXSQUEEZE_DEBUG=1 for the traceback",
    )


def test_the_traceback_is_there_on_demand(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    engine.error = KeyError("x")

    result = run("model.onnx", "-p", "int8")
    assert result.exit_code == 4
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith(f"onnxsqueeze: error: {BUG}\n")


def test_an_interrupt_says_that_nothing_was_written(engine: Engine) -> None:
    engine.error = KeyboardInterrupt()

    assert failure("model.onnx", "-p", "int8") == (130, "interrupted; nothing was written")


def test_an_interrupt_after_the_work_says_what_was_written(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxsqueeze.cli.main.write_report", interrupt)

    assert failure("model.onnx", "-p", "int8", "--report", "r.json") == (
        130,
        "interrupted; model.squeezed.onnx was written",
    )


def test_a_machine_without_memory_is_no_bug(engine: Engine) -> None:
    engine.error = MemoryError()

    assert failure("model.onnx", "-p", "int8") == (
        1,
        "out of memory: close other programs, or give less calibration data",
    )


def test_an_error_of_the_file_system_is_no_bug(engine: Engine) -> None:
    engine.error = PermissionError(errno.EACCES, "Permission denied", "model.onnx")

    assert failure("model.onnx", "-p", "int8") == (1, "model.onnx: Permission denied")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-p", "int8"], "Missing argument 'MODEL'."),
        (["model.onnx", "--nonsense"], "No such option"),
        (["model.onnx", "-p", "int8", "other.onnx"], "Got unexpected extra argument (other.onnx)"),
        (["model.onnx", "-p", "int8", "--min-sqnr", "nan"], "Invalid value for '--min-sqnr': 'nan' is not a number"),
        (["model.onnx", "-p", "int8", "--mean", "1,x"], "Invalid value for '--mean': 'x' is not a number"),
        (["model.onnx", "-p", "int8", "--seed", "-1"], "Invalid value for '--seed'"),
        (["model.onnx", "-p", "int8", "--validate", "some"], "Invalid value for '--validate'"),
        (["passes", "--nonsense"], "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(engine: Engine, args: list[str], text: str) -> None:
    code, shown = failure(*args)

    assert code == 2
    assert shown.startswith(text)
    assert "\n" not in shown


def test_a_pipeline_that_bash_has_expanded_gets_a_hint(engine: Engine) -> None:
    # bash makes this of: onnxsqueeze model.onnx -p lowrank{energy=0.9,min-rank=2}
    code, text = failure("model.onnx", "-p", "lowrankenergy=0.9", "lowrankmin-rank=2")

    assert code == 2
    assert text == (
        "Got unexpected extra argument (lowrankmin-rank=2); has the shell torn the pipeline apart? "
        "Put quotes around it: -p 'lowrank{energy=0.98},int8'"
    )


def test_no_arguments_and_help_show_the_same(engine: Engine) -> None:
    result = run("--help")

    assert result.exit_code == 0
    assert result.stdout.startswith(
        "Usage: onnxsqueeze [OPTIONS] MODEL [-p PIPELINE]\n       onnxsqueeze COMMAND [OPTIONS] ...\n"
    )
    assert re.search(r"\nCommands:\n(.*\n)*  passes +List the passes and their options\.\n", result.stdout)
    assert [run(*args).stdout for args in ([], ["-h"], ["model.onnx", "--help"])] == [result.stdout] * 3


def test_every_line_of_help_has_a_command_behind_it(engine: Engine) -> None:
    for name, (_, summary) in COMMANDS.items():
        result = run(name, "--help")

        assert result.exit_code == 0, name
        assert result.stdout.startswith(f"Usage: onnxsqueeze {name} ")
        assert summary.rstrip(".") in " ".join(result.stdout.split())


def test_a_model_may_be_named_like_a_command(engine: Engine) -> None:
    assert run("./passes", "-p", "int8").exit_code == 0

    assert engine.calls[0][0][0] == Path("passes")
    assert engine.calls[0][1]["output"] == Path("passes.squeezed.onnx")


def test_a_command_is_found_by_its_entry_and_its_errors_are_reported(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @click.argument("name")
    def greet(name: str) -> None:
        if name != "you":
            raise ModelError(f"no {name}")
        click.echo(f"hello {name}")

    module = types.ModuleType("greeting")
    module.command = greet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "greeting", module)
    monkeypatch.setitem(COMMANDS, "greet", ("greeting:command", "Say hello."))

    assert run("greet", "you").stdout == "hello you\n"
    assert failure("greet", "me") == (3, "no me")
    assert failure("greet") == (2, "Missing argument 'NAME'.")


def test_the_passes_are_listed_as_text_and_as_json() -> None:
    rows = json.loads(run("passes", "--json").stdout)

    assert all(set(row) == {"name", "origin", "version", "summary", "options", "error"} for row in rows)
    shown = run("passes").stdout
    assert all(row["name"] in shown for row in rows)


def test_the_version_is_shown() -> None:
    assert re.fullmatch(r"onnxsqueeze \S+\n", run("--version").stdout)


def test_help_answers_with_few_imports() -> None:
    """benchmarks/start.py has the time."""

    def imported(*arguments: str) -> tuple[str, set[str]]:
        command = [sys.executable, "-X", "importtime", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
        return result.stdout, {line.rpartition("|")[2].strip() for line in lines}

    shown, names = imported("-m", "onnxsqueeze", "--help")
    more = names - imported("-c", "import click")[1]
    assert "PIPELINE" in shown
    assert {name.partition(".")[0] for name in more} - sys.stdlib_module_names <= {"click", "onnxsqueeze"}
    assert len([name for name in more if name.startswith("onnxsqueeze")]) < 12


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom onnxsqueeze.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'numpy', 'onnx', 'onnxruntime', 'rich',"
        " 'networkx', 'onnx_graphsurgeon'}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stderr == "\n"


def test_a_terminal_without_our_characters_is_no_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)

    with pytest.raises(SystemExit, match=r"^0$"):
        main(["model.onnx", "-p", "int8"], prog_name="onnxsqueeze")
    stdout.seek(0)
    assert stdout.read().startswith("model.onnx ? model.squeezed.onnx\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f'"{sys.executable}" -m onnxsqueeze passes --json | true'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert result.stderr == ""
