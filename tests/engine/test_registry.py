from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onnxsqueeze.passes
from onnxsqueeze.contract.base import Pass
from onnxsqueeze.engine import registry
from onnxsqueeze.engine.options import spec
from onnxsqueeze.errors import PassError, SpecError, UnknownPassError, UsageError

SOURCE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxsqueeze.contract import Pass


class _Part(Pass):
    """Private classes do not count."""


@dataclass(frozen=True)
class {cls}(Pass):
    name: ClassVar[str] = "{name}"
    summary: ClassVar[str] = "for a test"

    strength: int = 1

    def plan(self, view, stats):
        return iter(())

    def apply(self, site, graph):
        pass
'''

Files = Callable[[str, str], None]
PlugIn = Callable[..., None]


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("onnxsqueeze.passes.", "plug_")):
            del sys.modules[name]


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> Files:
    """Add a file to the folder of built-in passes."""
    folder = tmp_path / "passes"
    folder.mkdir()
    path = [*onnxsqueeze.passes.__path__, str(folder)]
    monkeypatch.setattr(onnxsqueeze.passes, "__path__", path)
    monkeypatch.setattr(onnxsqueeze.passes.__spec__, "submodule_search_locations", path)

    def add(module: str, source: str) -> None:
        (folder / f"{module}.py").write_text(source)

    return add


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> PlugIn:
    """Install a distribution with one module and one entry point."""

    def add(distribution: str, name: str, source: str, value: str | None = None, at: str = "site") -> None:
        site = tmp_path / at
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        module = f"plug_{distribution}"
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {value or module + ':Sample'}\n")
        monkeypatch.syspath_prepend(str(site))

    return add


def sample(name: str, cls: str = "Sample") -> str:
    return SOURCE.format(cls=cls, name=name)


def test_a_file_in_the_folder_is_a_pass(built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))

    assert "zz-sample" in registry.names()
    assert registry.find("zz-sample").__name__ == "Sample"
    assert registry.origin("zz-sample") == "built-in"


def test_names_are_listed_without_importing_any_pass() -> None:
    code = (
        "import sys; from onnxsqueeze.engine import registry; registry.names(); "
        "sys.exit(any(m.startswith(('numpy', 'onnx.', 'onnxruntime', 'onnxsqueeze.passes.')) for m in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_private_files_are_no_passes(built_in: Files) -> None:
    built_in("_zz", "raise AssertionError")

    assert not any("zz" in name for name in registry.names())


def test_every_built_in_pass_is_found_and_listed() -> None:
    listed = registry.listing()

    assert tuple(each.name for each in listed) == registry.names()
    for each in listed:
        assert each.error is None, each.error
        assert registry.find(each.name).name == each.name
        assert each.summary


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        (sample("other"), "Sample"),
        ("", "none"),
        (sample("zz-wrong") + sample("zz-wrong", "Second").replace("from __future__", "# from"), "Sample, Second"),
    ],
)
def test_a_file_that_does_not_hold_one_pass_of_its_name_is_a_bug(built_in: Files, source: str, holds: str) -> None:
    built_in("zz_wrong", source)

    with pytest.raises(PassError) as error:
        registry.find("zz-wrong")
    assert str(error.value) == (
        f"onnxsqueeze.passes.zz_wrong has to hold one public pass, with the name 'zz-wrong'; it holds {holds}"
    )


def test_an_unknown_pass_gets_a_suggestion(built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))

    with pytest.raises(UnknownPassError, match=r"^no pass 'zz-smaple'; did you mean 'zz-sample'\?$"):
        registry.build("zz-smaple")
    with pytest.raises(UnknownPassError, match=r"^no pass 'qqqqqq'; there are .*zz-sample"):
        registry.origin("qqqqqq")


def test_an_entry_point_is_a_pass(plug_in: PlugIn) -> None:
    plug_in("demo", "sample", sample("sample"))

    (found,) = registry.build("sample{strength=3}")
    assert spec(found).options == {"strength": 3}
    assert registry.origin("sample") == "demo"
    assert "sample" in registry.names()


def test_a_plug_in_must_not_hide_a_built_in(plug_in: PlugIn, built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))
    plug_in("demo", "zz-sample", sample("zz-sample"))

    with pytest.raises(UsageError, match=r"^demo brings a pass 'zz-sample', which is built in: uninstall it$"):
        registry.names()


def test_two_plug_ins_must_not_share_a_name(plug_in: PlugIn) -> None:
    plug_in("demo", "sample", sample("sample"))
    plug_in("other", "sample", sample("sample"))

    with pytest.raises(
        UsageError, match=r"^(demo and other|other and demo) both bring a pass 'sample': uninstall one$"
    ):
        registry.build("sample")


def test_one_distribution_may_be_found_twice(plug_in: PlugIn) -> None:
    plug_in("demo", "sample", sample("sample"))
    plug_in("demo", "sample", sample("sample"), at="again")

    assert registry.find("sample").name == "sample"


BROKEN = [
    ("import nonsense_", None, "cannot be loaded: ModuleNotFoundError: No module named 'nonsense_'"),
    ("1 / 0", None, "cannot be loaded: ZeroDivisionError: division by zero"),
    ("", None, "cannot be loaded: AttributeError: module 'plug_demo' has no attribute 'Sample'"),
    ("Sample = 3", None, "is plug_demo:Sample, which is no pass"),
    ("from onnxsqueeze.contract import Pass as Sample", None, "is plug_demo:Sample, which is no pass"),
    (sample("other"), None, "calls itself 'other'"),
    ("", "no_such_module_:x", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module_'"),
]


@pytest.mark.parametrize(("source", "value", "problem"), BROKEN)
def test_a_broken_plug_in_is_named(plug_in: PlugIn, source: str, value: str | None, problem: str) -> None:
    plug_in("demo", "sample", source, value)
    expected = f"the pass 'sample' of demo {problem}; update or uninstall it"

    with pytest.raises(UsageError) as error:
        registry.build("sample")
    assert str(error.value) == expected
    assert [each.error for each in registry.listing() if each.name == "sample"] == [expected]


def test_a_broken_plug_in_does_not_stop_the_others(plug_in: PlugIn, built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))
    plug_in("demo", "sample", "1 / 0")

    assert registry.build("zz-sample")[0].name == "zz-sample"


def test_text_and_passes_mix(built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))
    cls: Any = registry.find("zz-sample")

    assert registry.build("zz-sample") == (cls(),)
    assert registry.build(cls(2)) == (cls(2),)
    assert registry.build(["zz-sample,zz-sample{strength=2}", cls(3)]) == (cls(), cls(2), cls(3))


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ([], "the pipeline is empty"),
        (None, "a pipeline holds text and passes, not NoneType"),
        ([3], "a pipeline holds text and passes, not int"),
        (Pass, "a pipeline holds passes, not classes: write Pass()"),
    ],
)
def test_what_is_no_pipeline_is_refused(pipeline: Any, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.build(pipeline)
    assert str(error.value).startswith(problem)


def test_a_pass_from_python_is_held_to_its_types(built_in: Files) -> None:
    built_in("zz_sample", sample("zz-sample"))
    cls: Any = registry.find("zz-sample")

    with pytest.raises(UsageError, match=r"^zz-sample: strength takes an integer, not high$"):
        registry.build(cls("high"))
    with pytest.raises(UsageError, match=r"^zz-sample: an option cannot hold <object"):
        registry.build([cls(object())])


def test_text_that_does_not_parse_keeps_its_caret() -> None:
    with pytest.raises(SpecError, match=r"\^$"):
        registry.build("a{")
