"""The plug-in of the docs: installed into a fresh environment, used, and refused when it breaks the contract."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "docs/examples/plugin/onnxsqueeze_narrow.py"
SOURCE = TEMPLATE.read_text(encoding="utf-8")
MODEL = ROOT / "models/mlp.onnx"

FOR_APPLY = "    def apply(self, site: Site, graph: Graph) -> None:\n"
FOR_PLAN = '        for node in view.of("Conv", "Gemm", "MatMul"):\n'
LAYER = "'/3/BatchNormalization_output_0'"
WHO = "the pass 'narrow' of onnxsqueeze-narrow"


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def run(venv: Path, *arguments: str, path: Path | None = None) -> Done:
    """Run the command of the environment; modules in ``path`` come before those that are installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [str(venv / "bin/onnxsqueeze"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=venv.parent, check=False)
    return Done(found.returncode, found.stdout, found.stderr)


def test_the_template_has_less_than_forty_lines_and_stands_in_the_docs_as_it_is() -> None:
    guide = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")

    assert len(SOURCE.splitlines()) == 37
    assert f"```python\n{SOURCE}```" in guide
    assert f"```toml\n{TEMPLATE.with_name('pyproject.toml').read_text(encoding='utf-8')}```" in guide


def test_an_installed_plug_in_is_listed_with_its_origin_and_used_by_name(fresh_venv: Path, tmp_path: Path) -> None:
    listed = run(fresh_venv, "passes")
    output = tmp_path / "small.onnx"
    used = run(fresh_venv, str(MODEL), "-p", "narrow{min-size=2000}", "-o", str(output), "--validate", "none")

    assert (listed.code, listed.stderr) == (0, "")
    assert "weights in 16 bits on disk, in 32 at work [onnxsqueeze-narrow 1.0]" in " ".join(listed.stdout.split())
    assert "min-size=1024  (an integer): Weights with fewer elements" in listed.stdout
    assert (used.code, used.stderr) == (0, "")
    assert output.stat().st_size < 0.52 * MODEL.stat().st_size


def test_a_plug_in_is_held_to_the_order_that_it_declares(fresh_venv: Path) -> None:
    done = run(fresh_venv, str(MODEL), "-p", "int8,narrow{min-size=2000}")

    assert done.code == 2
    assert "narrow cannot follow int8, which leaves no float weights; write narrow{min-size=2000},int8\n" in done.stderr


BREACHES = {
    "needs yields garbage": (
        (FOR_APPLY, '    def needs(self, view):\n        yield "ranges"\n\n' + FOR_APPLY),
        f"{WHO} breaks the contract: needs() yields 'ranges': yield Range, Mean, Channels or Gram",
    ),
    "plan edits the graph": (
        (FOR_PLAN, FOR_PLAN + '            node.attrs["seen"] = 1\n'),
        f"{WHO} breaks the contract: plan() changes the graph at {LAYER}: it may only look, "
        "so move the change to apply()",
    ),
    "plan yields no site": (
        ('yield Site(key_of(node), "stored in 16 bits")', "yield key_of(node)"),
        f"{WHO} breaks the contract: plan() yields {LAYER}: yield Site(key, action) or Skip(key, reason)",
    ),
    "apply leaves a cycle": (
        (
            FOR_APPLY,
            FOR_APPLY + "        node = edit.find(graph, site.key)[0]\n        node.inputs[0] = node.outputs[0]\n",
        ),
        f"{WHO} breaks the contract: apply() leaves a broken graph: it has a cycle at 'logits', which",
    ),
    "apply gives a name twice": (
        ('narrow = edit.constant(graph, f"{weight.name}_narrow",', "narrow = type(weight)(node.outputs[0].name,"),
        f"{WHO} breaks the contract: apply() leaves a broken graph: two tensors are called",
    ),
    "an option has a type that no text can have": (
        ("min_size: int = 1024", "min_size: dict | None = None"),
        "Narrow.min_size has the type dict | None, which pipeline text cannot hold",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_plug_in_that_breaks_the_contract_is_refused(breach: str, fresh_venv: Path, tmp_path: Path) -> None:
    (old, new), message = BREACHES[breach]
    assert old in SOURCE
    (tmp_path / TEMPLATE.name).write_text(SOURCE.replace(old, new), encoding="utf-8")
    output = tmp_path / "small.onnx"
    done = run(fresh_venv, str(MODEL), "-p", "narrow", "-o", str(output), "--validate", "none", path=tmp_path)

    assert done.code in (2, 4), done
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_a_plug_in_with_the_name_of_a_built_in_pass_is_refused(fresh_venv: Path, tmp_path: Path) -> None:
    info = tmp_path / "onnxsqueeze_narrow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxsqueeze-narrow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[onnxsqueeze.passes]\nint8 = onnxsqueeze_narrow:Narrow\n")
    done = run(fresh_venv, str(MODEL), "-p", "clean", path=tmp_path)

    assert done.code == 2
    assert "onnxsqueeze-narrow brings a pass 'int8', which is built in: uninstall it" in done.stderr
