from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxsqueeze.cli.main import main
from onnxsqueeze.errors import UsageError
from onnxsqueeze.targets.processor import flags, machine, matches
from onnxsqueeze.targets.profiles import CONFIDENCE, default, find, names

SHIPPED = ("coreml", "generic-qdq", "litert", "native", "openvino-cpu", "ort-arm64", "ort-web", "ort-x64",
           "ort-x64-avx2", "ort-x64-vnni", "qnn-htp", "tensorrt")  # fmt: skip
OWN = """
[target]
name = "mine"
version = 3
summary = "a test"
runtime = "any"
base = "ort-x64"
[sources]
{sources}
[source.me]
text = "I know"
date = 2026-11-30
confidence = "recalled"
{rest}
"""


def own(tmp_path: Path, rest: str, sources: str = 'weights = "me"') -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.format(rest=rest, sources=sources), encoding="utf-8")
    return path


def test_the_command_lists_and_explains_them() -> None:
    listed, told = (CliRunner().invoke(main, ["targets", *rest]) for rest in ([], ["qnn-htp"]))

    assert listed.exit_code == told.exit_code == 0
    assert all(name in listed.output for name in SHIPPED)
    assert "zero_point = any" in told.output and "documented 2026-11-30, in qnn-htp" in told.output
    assert json.loads(CliRunner().invoke(main, ["targets", "litert", "--json"]).output)[0]["weights"]["least"] == -127


def test_all_of_them_ship() -> None:
    assert tuple(names()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_line_has_a_source_a_date_and_how_sure_it_is(name: str) -> None:
    found = find(name)

    assert len(found.lines) > 40
    for each in found.lines:
        assert each.source and each.confidence in CONFIDENCE
        assert each.date.startswith("20")


def test_the_default_is_right_on_every_x64_processor() -> None:
    assert default() == find("ort-x64")
    assert default().integers.pairs


def test_a_file_changes_its_base_line_by_line(tmp_path: Path) -> None:
    found = find(own(tmp_path, "[weights]\nsymmetric = true"))

    assert (found.name, found.version, str(found)) == ("mine", 3, "mine 3")
    assert found.weights.symmetric and not default().weights.symmetric
    assert found.times == default().times
    changed = [line for line in found.lines if line.profile == "mine"]
    assert [(line.key, line.value, line.source, line.confidence) for line in changed] == [
        ("weights.symmetric", True, "I know", "recalled")
    ]


def test_one_line_of_a_table_is_changed_alone(tmp_path: Path) -> None:
    found = find(own(tmp_path, "[times.carry]\nAdd = [3, 4]", '"times.carry.Add" = "me"'))

    assert found.times.carry["Add"] == (3.0, 4.0)
    assert found.times.carry["Mul"] == default().times.carry["Mul"]


def test_a_file_may_stand_on_a_file_beside_it(tmp_path: Path) -> None:
    own(tmp_path, "[weights]\nleast = -127")
    second = tmp_path / "second.toml"
    second.write_text(
        '[target]\nname = "second"\nversion = 1\nsummary = ""\nruntime = ""\nbase = "mine.toml"\n', encoding="utf-8"
    )

    assert find(second).weights.least == -127


@pytest.mark.parametrize(
    ("rest", "sources", "said"),
    [
        ("[weight]\nsymmetric = true", 'weights = "me"', "no key 'weight'.*did you mean 'weights'"),
        ("[weights]\nsymetric = true", 'weights = "me"', "no key 'symetric'.*did you mean 'symmetric'"),
        ("[weights]\nsymmetric = 1", 'weights = "me"', "weights.symmetric takes true or false, not 1"),
        ('[weights]\ntypes = "int8"', 'weights = "me"', "weights.types takes a list of text"),
        ("[weights]\nblocks = [1.5]", 'weights = "me"', "weights.blocks takes an integer"),
        ("[graph]\nopset = [1]", 'graph = "me"', "graph.opset takes a list of 2"),
        ('[activations]\nzero_point = "left"', 'activations = "me"', "one of any, middle, not 'left'"),
        ("[times]\ncall = -1", 'times = "me"', "times.call takes a number of 0 or more"),
        ("[times]\ncall = nan", 'times = "me"', "times.call takes a number"),
        ("[times]\ncarry = 3", 'times = "me"', r"times.carry is a table"),
        ("[weights]\nsymmetric = true", "", "weights.symmetric has no source"),
        ("[weights]\nsymmetric = true", 'weights = "you"', r"there is no \[source.you\]"),
        ("", 'weights = "me"', "stands behind no line"),
        ('[source.you]\ntext = "x"', "", r"\[source.you\] has text, date and confidence"),
        ('[source.you]\ntext = "x"\ndate = 2026-01-01\nconfidence = "hoped"', "", "confidence is one of"),
        ("[weights", "", "is not TOML"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path: Path, rest: str, sources: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        find(own(tmp_path, rest, sources))

    assert str(tmp_path / "mine.toml") in str(error.value)
    assert "\n" not in str(error.value).rstrip()


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'tensorrt'"):
        find("tensor-rt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        find(tmp_path / "none.toml")


def test_a_profile_on_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.format(rest="", sources="").replace('"ort-x64"', '"mine.toml"'), encoding="utf-8")

    with pytest.raises(UsageError, match="does one name itself"):
        find(path)


def test_a_base_that_leaves_lines_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.format(rest="", sources="").replace('"ort-x64"', '""'), encoding="utf-8")

    with pytest.raises(UsageError, match=r"has no line graph\.opset, nor has its base"):
        find(path)


def test_native_is_the_profile_that_asks_most_of_this_processor() -> None:
    assert matches({"machine": machine(), "any": sorted(flags())[:1]}) >= matches({"machine": machine()}) > 0
    assert matches({"machine": "another"}) == matches({}) == 0
    assert find("native").name in SHIPPED
    assert find("native").verify.clock == "measured"
