from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from onnxsqueeze.cli.passes import show_passes
from onnxsqueeze.contract.plan import Site, Skip
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import Option
from onnxsqueeze.measure.answers import Deviation
from onnxsqueeze.measure.cost import Cost
from onnxsqueeze.report import terminal as render
from onnxsqueeze.report.run import Report, StepReport
from onnxsqueeze.words import amount

CLEAN = StepReport(
    spec="clean",
    implicit=True,
    done=(Site("a", "made an initializer"), Site("b", "folded into 'Conv_1'"), Site("c", "folded into 'Conv_2'")),
    skipped=(),
    kept=True,
    reason=None,
    sqnr_db=math.inf,
    nodes=(222, 180),
    bytes=(97_800_000, 97_700_000),
    seconds=0.31,
    notes=(),
)
LOWRANK = StepReport(
    spec="lowrank{energy=0.98}",
    implicit=False,
    done=(Site("h", "64x64 at rank 4"),),
    skipped=(
        *(Skip(f"n{rank}", f"rank {rank} of 10 would not be smaller") for rank in range(8, 11)),
        Skip("s", "its weight is shared"),
    ),
    kept=True,
    reason=None,
    sqnr_db=41.23,
    nodes=(180, 181),
    bytes=(97_700_000, 80_100_000),
    seconds=4.2,
    notes=("opset raised from 11 to 13",),
)
INT8 = StepReport(
    spec="int8",
    implicit=False,
    done=(),
    skipped=(),
    kept=False,
    reason="the answers collapse to -3.0 dB SQNR",
    sqnr_db=None,
    nodes=(181, 181),
    bytes=(80_100_000, 80_100_000),
    seconds=9.1,
    notes=(),
)
REPORT = Report(
    model="resnet.onnx",
    output="resnet.squeezed.onnx",
    pipeline="clean, lowrank{energy=0.98}, int8",
    calibration="images/",
    held_out="26 of 208 feeds, held out",
    before=Cost(97_800_000, 25_560_000, 4_090_000_000, 222, 11),
    after=Cost(80_100_000, 20_100_000, 3_100_000_000, 181, 13),
    latency_ms=(12.34, 6.1),
    latency_ratio=0.5,
    deviations=(
        Deviation("logits", 32.41, 0.99981, 0.031, 0.992),
        Deviation("mask", math.inf, 1.0, 0.0, None, "as is"),
    ),
    steps=(CLEAN, LOWRANK, INT8),
    notes=("with --calib, int8 also quantizes activations",),
    seconds=21.3,
)
GOLDEN = """\
resnet.onnx → resnet.squeezed.onnx
calibration: images/; compared on: 26 of 208 feeds, held out

                   before    after
file size         97.8 MB  80.1 MB  1.22× smaller
parameters         25.6 M   20.1 M  1.27× fewer
MACs per feed      4.09 G   3.10 G  1.32× fewer
nodes                 222      181  1.23× fewer
opset                  11       13
latency per feed  12.3 ms   6.1 ms  2.00× faster

output  SQNR dB    cosine  max abs   top-1
logits     32.4  0.999810    0.031  99.2 %
mask      exact  1.000000        0
mask: as is

clean (implied): 3 done, exact, nodes 222 → 180, 97.8 MB → 97.7 MB, 0.3 s
    2 × folded into 'Conv_1'/'Conv_2'; 1 × made an initializer
lowrank{energy=0.98}: 1 done, own SQNR 41.2 dB, nodes 180 → 181, 97.7 MB → 80.1 MB, 4.2 s
    1 × 64x64 at rank 4
    4 skipped: 3 × rank 8–10 of 10 would not be smaller; 1 × its weight is shared
    opset raised from 11 to 13
int8: rolled back, 9.1 s
    the answers collapse to -3.0 dB SQNR

note: with --calib, int8 also quantizes activations
wrote resnet.squeezed.onnx in 21.3 s
"""


def shown(report: Report, width: int = 120, terminal: bool = False) -> str:
    file = io.StringIO()
    render.show(report, Console(file=file, width=width, force_terminal=terminal))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def test_a_report_reads_like_this() -> None:
    assert shown(REPORT) == GOLDEN


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_report_fits_the_terminal_and_loses_no_figure(width: int) -> None:
    long = replace(REPORT, deviations=(Deviation("a/very/long/" * 20, 32.4, 0.99981, 0.031, 0.992),))

    lines = shown(long, width).splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if line.startswith("a/very/")]
    assert re.search(r"… +32\.4  0\.999810 +0\.031  99\.2 %$", row)


def test_colour_is_for_terminals_only() -> None:
    assert "\x1b" not in shown(REPORT)
    assert "\x1b[" in shown(REPORT, terminal=True)


def test_text_from_a_model_cannot_steer_the_terminal() -> None:
    odd = Deviation("\x1b[2J[red]y\u202e", 30.0, 1.0, 0.0, None, "\x1b[31m")
    step = replace(LOWRANK, skipped=(Skip("k", "\x07 [bold]x[/bold] :smile:"),), notes=("\x1b]0;x",))

    text = shown(replace(REPORT, model="\x1b[0m.onnx", deviations=(odd,), steps=(step,)))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"\x1b[2J[red]y\u202e" in text
    assert "[bold]x[/bold] :smile:" in text


def test_many_outputs_are_cut_and_the_worst_of_the_rest_is_named() -> None:
    outputs = tuple(Deviation(f"y{i}", 50.0 - i, 1.0, 0.0, None) for i in range(12))

    text = shown(replace(REPORT, deviations=outputs))
    assert "y7 " in text
    assert "y8 " not in text
    assert "and 4 more, worst y11 at 39.0 dB" in text
    assert "top-1" not in text


def test_an_output_that_cannot_be_measured_is_the_worst() -> None:
    outputs = [Deviation(f"y{i}", 50.0, 1.0, 0.0, None) for i in range(12)]
    outputs[10] = Deviation("odd", math.nan, 1.0, 0.0, None)

    assert "worst odd at ? dB" in shown(replace(REPORT, deviations=tuple(outputs)))


def test_a_result_that_is_worse_says_so() -> None:
    text = shown(replace(REPORT, after=Cost(200_000_000, 25_560_000, None, 222, 11), latency_ratio=12.5))

    assert "2.04× larger" in text
    assert "12.5× slower" in text
    assert "MACs per feed      4.09 G  unknown" in text
    assert "opset  " not in text


def test_a_dry_run_says_that_no_model_was_written() -> None:
    text = shown(replace(REPORT, output=None, dry_run=True, deviations=(), latency_ms=None, latency_ratio=None))

    assert text.startswith("resnet.onnx\n")
    assert "The answers were not compared with the original." in text
    assert "dry run, 21.3 s: no model was written" in text
    assert "wrote" not in text
    assert "latency" not in text


def test_a_dry_run_names_every_place_with_its_predicted_error_or_the_reason_against_it() -> None:
    step = replace(LOWRANK, done=(Site("conv1", "to rank 8", error=0.012),), skipped=(Skip("conv2", "it is small"),))
    text = shown(replace(REPORT, output=None, dry_run=True, steps=(step,)))

    assert "conv1: to rank 8, relative error 1.2e-02 predicted" in " ".join(text.split())
    assert "conv2: it is small" in text
    assert "conv1:" not in shown(replace(REPORT, steps=(step,)))


def test_a_pass_that_nobody_asked_for_and_that_did_nothing_is_not_mentioned() -> None:
    idle = replace(CLEAN, done=(), skipped=())

    assert "clean" not in shown(replace(REPORT, steps=(idle, LOWRANK)))
    assert "clean" in shown(replace(REPORT, steps=(replace(idle, implicit=False), LOWRANK)))
    assert "clean" in shown(replace(REPORT, steps=(replace(idle, kept=False, reason="it broke"), LOWRANK)))


def test_many_kinds_of_reasons_are_cut() -> None:
    skipped = tuple(Skip("k", f"reason {chr(97 + kind)}") for kind in range(8) for _ in range(8 - kind))

    text = shown(replace(REPORT, steps=(replace(LOWRANK, skipped=skipped),)), width=200)
    assert "36 skipped: 8 × reason a; 7 × reason b; 6 × reason c; 5 × reason d; 4 × reason e; 6 × other" in text


def test_reasons_that_differ_in_names_or_figures_are_one_kind() -> None:
    def grouped(*reasons: str) -> str:
        return render._grouped(reasons)

    assert grouped("rank 8 of 10", "rank 10 of 10", "rank 9.5 of 10") == "3 × rank 8–10 of 10"
    assert grouped("kernel 3x3", "kernel 1x7", "kernel 3x3") == "3 × kernel 1x7/3x3"
    assert grouped(*(f"reads '{name}'" for name in "abcd")) == "4 × reads …"
    assert grouped("int8 is off", "int4 is off") == "1 × int8 is off; 1 × int4 is off"


def test_figures_have_three_digits_and_a_prefix() -> None:
    values = [0, 7, 999, 999.6, 1234, 25_560_000, 999_600_000, 2.7e9, 3e15]

    found = [amount(each, "B") for each in values]
    assert found == ["0 B", "7 B", "999 B", "1.00 kB", "1.23 kB", "25.6 MB", "1.00 GB", "2.70 GB", "3.00e+03 TB"]


def test_progress_is_silent_in_a_pipe() -> None:
    file = io.StringIO()

    with render.progress(Console(file=file)) as report:
        report("calibrating", 1, 10)

    assert file.getvalue() == ""


def test_progress_names_the_stage_on_a_terminal_and_leaves_nothing_behind() -> None:
    file = io.StringIO()

    with render.progress(Console(file=file, force_terminal=True, width=60)) as report:
        report("loading", 0, 0)
        report("[red]calibrating\x1b", 1, 10)
        report("[red]calibrating\x1b", 10, 10)

    text = file.getvalue()
    assert r"[red]calibrating\x1b" in text
    assert text.endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K"))


def test_the_passes_are_shown_with_their_options() -> None:
    rows: Any = (
        registry.Listing(
            "lowrank", "built-in", "factor weights", (Option("energy", "a number", "0.98", "Its share."),)
        ),
        registry.Listing("mine", "my-dist", "do things", (Option("ratio", "a number", None, ""),), version="2.0"),
        registry.Listing("broken", "other", "", (), "it cannot be loaded", "1.0"),
    )
    file = io.StringIO()

    show_passes(Console(file=file, width=80), rows)

    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "lowrank  factor weights",
        "         energy=0.98  (a number): Its share.",
        "mine     do things [my-dist 2.0]",
        "         ratio  (a number)",
        "broken   it cannot be loaded [other 1.0]",
    ]
