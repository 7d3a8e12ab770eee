"""Bad input, kind by kind: one sentence that names the thing and the way out, an exit code, and no file left behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxsqueeze.cli.failures import DEBUG
from onnxsqueeze.cli.main import main

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 64)).astype(np.float32)
HEAD = RNG.standard_normal((64, 10)).astype(np.float32)
ROWS = RNG.standard_normal((32, 64)).astype(np.float32)


def classifier(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """MatMul, Relu, MatMul on float32 [N, 64]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "head"], ["y"]),
    ]
    return model(nodes, {"w": WEIGHT, "head": HEAD}, 10, opset, ir_version)


def model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    outputs: int = 64,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.ops", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def with_data_in(location: str) -> bytes:
    """Return the classifier with both weights as external data of the file ``location``."""
    proto = classifier()
    for tensor in proto.graph.initializer:
        entries = {"location": location, "offset": "0", "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def quantized() -> onnx.ModelProto:
    scales = {"s": np.float32(0.1), "z": np.uint8(0)}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    nodes += [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    proto = model(nodes, {"w": WEIGHT})
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in scales.items())
    return proto


def spoilt(at: tuple[int, int], value: float) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = ROWS.copy()
    rows[at] = value
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good model, one good set of feeds, and everything that is wrong."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.bin").write_bytes(bytes(20_000))
    inside = tmp_path_factory.mktemp("inside")
    good = classifier().SerializeToString()
    files: dict[str, bytes] = {
        "model.onnx": good,
        "cut.onnx": good[: len(good) // 2],
        "text.onnx": b"This is not a model.\n",
        "noise.onnx": RNG.bytes(4096),
        "empty.onnx": b"",
        "pointer.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "lost.onnx": with_data_in("lost.bin"),
        "short.onnx": with_data_in("short.bin"),
        "short.bin": bytes(200),
        "above.onnx": with_data_in("../outside0/secret.bin"),
        "rooted.onnx": with_data_in(str(outside / "secret.bin")),
        "linked.onnx": with_data_in("link.bin"),
        "quantized.onnx": quantized().SerializeToString(),
        "future.onnx": classifier(opset=99, ir_version=10).SerializeToString(),
        "future_ir.onnx": classifier(ir_version=99).SerializeToString(),
        "typo.onnx": model([helper.make_node("MatMull", ["x", "w"], ["y"])], {"w": WEIGHT}).SerializeToString(),
        "dangling.onnx": model([helper.make_node("MatMul", ["x", "nowhere"], ["y"])], {}).SerializeToString(),
        "custom.onnx": custom().SerializeToString(),
        "notes.txt": b"x",
        "plain.npz": b"This is not a zip file.\n",
    }
    for name, data in files.items():
        (inside / name).write_bytes(data)
    (inside / "link.bin").symlink_to(outside / "secret.bin")
    (inside / "folder.onnx").mkdir()
    (inside / "nothing").mkdir()
    arrays: dict[str, dict[str, Any]] = {
        "good.npz": {"x": ROWS},
        "other.npz": {"z": ROWS},
        "two.npz": {"x": ROWS, "mask": ROWS},
        "none.npz": {},
        "narrow.npz": {"x": ROWS[:, :32]},
        "flat.npz": {"x": ROWS[:, 0]},
        "integers.npz": {"x": ROWS.astype(np.int64)},
        "nan.npz": {"x": spoilt((3, 5), np.nan)},
        "late_nan.npz": {"x": spoilt((20, 5), np.nan)},
        "objects.npz": {"x": np.array([{}], object)},
        "no_rows.npz": {"x": ROWS[:0]},
    }
    for name, content in arrays.items():
        np.savez(inside / name, **content)
    (inside / "cut.npz").write_bytes((inside / "good.npz").read_bytes()[:2000])
    return inside


def custom() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Fancy", ["h"], ["y"], domain="my.ops")]
    return model(nodes, {"w": WEIGHT})


INT8 = "-p int8"
OUTSIDE = "which is not a path inside the model's folder; save the model again with its data beside it"
UNRUN = "without calibration data, --validate none squeezes it without running it"
KINDS = (
    "a folder of .npz files, of images (.png .jpg .jpeg .bmp .webp) or of test_data_set_* folders, an .npz or an .npy"
)
TABLE: dict[str, tuple[str, int, str]] = {
    # the model
    "a model that is not there": (f"nowhere.onnx {INT8}", 3, "nowhere.onnx cannot be read: No such file or directory"),
    "a folder as the model": (f"folder.onnx {INT8}", 3, "folder.onnx is a folder; name the model file in it"),
    "an empty model file": (f"empty.onnx {INT8}", 3, "empty.onnx is empty; copy or download it again"),
    "a truncated model": (f"cut.onnx {INT8}", 3, "bytes of the model are missing; copy or download it again"),
    "a text file as the model": (f"text.onnx {INT8}", 3, "text.onnx is not an ONNX model"),
    "random bytes as the model": (f"noise.onnx {INT8}", 3, "noise.onnx is not an ONNX model"),
    "a pointer of Git LFS": (f"pointer.onnx {INT8}", 3, "is a pointer of Git LFS, not the model; run 'git lfs pull'"),
    "external data that is missing": (
        f"lost.onnx {INT8}",
        3,
        "lost.onnx: external data file 'lost.bin' of tensor 'w' is missing; copy it into the model's folder too",
    ),
    "external data that is too short": (f"short.onnx {INT8}", 3, "'short.bin' is too short for tensor 'w'"),
    "external data above the folder": (f"above.onnx {INT8}", 3, f"data in '../outside0/secret.bin', {OUTSIDE}"),
    "external data at an absolute path": (f"rooted.onnx {INT8}", 3, OUTSIDE),
    "external data behind a link": (
        f"linked.onnx {INT8}",
        3,
        "tensor 'w' keeps its data in 'link.bin', a link that leaves the model's folder; copy the file into the folder",
    ),
    "an opset from the future": (f"future.onnx {INT8}", 3, "its opset 99 of ai.onnx is newer than the "),
    "an IR version from the future": (f"future_ir.onnx {INT8}", 3, "its IR version 99 is newer than the "),
    "an operator that does not exist": (f"typo.onnx {INT8}", 3, f"no operator 'MatMull' in opset 17; {UNRUN}"),
    "a custom operator": (f"custom.onnx {INT8}", 3, f"it has no operator 'Fancy' of domain 'my.ops'; {UNRUN}"),
    "a custom operator on feeds": (
        f"custom.onnx {INT8} --validate none --calib good.npz",
        3,
        f"it has no operator 'Fancy' of domain 'my.ops'; {UNRUN}",
    ),
    "a node that reads what nobody makes": (f"dangling.onnx {INT8}", 3, "Node input 'nowhere' is not a graph input"),
    "a quantized model": (
        f"quantized.onnx {INT8}",
        2,
        "the model is already quantized (2 nodes such as QuantizeLinear): int8 needs the float model",
    ),
    # the pipeline
    "a search that may measure nothing": (
        "model.onnx --validate none",
        2,
        "auto measures what it tries: --validate none",
    ),
    "an empty pipeline": ("model.onnx -p ~", 2, "the pipeline is empty: name a pass, like lowrank,int8\n  \n  ^"),
    "an unknown pass": ("model.onnx -p lowrnk,int8", 2, "no pass 'lowrnk'; did you mean 'lowrank'?"),
    "an unknown option": ("model.onnx -p lowrank{enrgy=0.9}", 2, "lowrank: no option 'enrgy'; it has "),
    "an option of the wrong type": ("model.onnx -p lowrank{energy=a}", 2, "lowrank: energy takes a number"),
    "an option out of range": ("model.onnx -p lowrank{energy=2}", 2, "lowrank: energy is over 0 and at most 1"),
    "a brace that stays open": (
        "model.onnx -p lowrank{energy=0.9,int8",
        2,
        "this brace is never closed (the shell needs quotes around a pipeline with blanks)"
        "\n  lowrank{energy=0.9,int8\n         ^",
    ),
    "options in parentheses": (
        "model.onnx -p lowrank(energy=0.9)",
        2,
        "options stand in braces, not in parentheses: 'lowrank{energy=0.98}'\n  lowrank(energy=0.9)\n         ^",
    ),
    "a comma too many": ("model.onnx -p lowrank,,int8", 2, "a pass is missing here\n  lowrank,,int8\n          ^"),
    "passes in the wrong order": (
        "model.onnx -p int8,lowrank",
        2,
        "lowrank cannot follow int8, which leaves no float weights; write lowrank,int8",
    ),
    "int8 twice": (
        "model.onnx -p int8,int8",
        2,
        "int8 cannot follow int8, which leaves no float weights; write it once",
    ),
    # calibration data
    "feeds that are not there": (
        f"model.onnx {INT8} --calib no.npz",
        2,
        f"no.npz: no such file or folder; give {KINDS}",
    ),
    "feeds in an unknown format": (
        f"model.onnx {INT8} --calib notes.txt",
        2,
        "notes.txt is no calibration data; give",
    ),
    "an empty folder of feeds": (
        f"model.onnx {INT8} --calib nothing",
        2,
        "nothing holds no calibration data; looked for .npz files, images and test_data_set_* folders",
    ),
    "a truncated .npz": (f"model.onnx {INT8} --calib cut.npz", 2, "cut.npz cannot be read: File is not a zip file"),
    "an .npz that is none": (
        f"model.onnx {INT8} --calib plain.npz",
        2,
        "plain.npz cannot be read: File is not a zip file",
    ),
    "an .npz without arrays": (
        f"model.onnx {INT8} --calib none.npz",
        2,
        "no array for the input 'x', float32[N, 64]; add",
    ),
    "an .npz without samples": (f"model.onnx {INT8} --calib no_rows.npz", 2, "no_rows.npz"),
    "an array for no input": (
        f"model.onnx {INT8} --calib other.npz",
        2,
        "the model has no input 'z'; the model has 'x'",
    ),
    "an array too many": (f"model.onnx {INT8} --calib two.npz", 2, "the model has no input 'mask'; the model has 'x'"),
    "an array of the wrong shape": (
        f"model.onnx {INT8} --calib narrow.npz",
        2,
        "'x' takes float32[N, 64], found shape [4, 32]; resize or reshape the array",
    ),
    "an array of the wrong rank": (f"model.onnx {INT8} --calib flat.npz", 2, "add a leading axis"),
    "an array of the wrong type": (
        f"model.onnx {INT8} --calib integers.npz",
        2,
        "'x' takes float32[N, 64], found int64; convert it with .astype",
    ),
    "a NaN in the first feed": (
        f"model.onnx {INT8} --calib nan.npz",
        2,
        "nan.npz, samples 0 to 3: 'x' is NaN at [3, 5]; repair or leave out this sample",
    ),
    "a NaN in a later feed": (
        f"model.onnx {INT8} --calib late_nan.npz",
        2,
        "late_nan.npz, samples 20 to 23: 'x' is NaN at [0, 5]; repair or leave out this sample",
    ),
    "pickled objects": (
        f"model.onnx {INT8} --calib objects.npz",
        2,
        "'x' holds Python objects, and unpickling them could run code; save plain numbers",
    ),
    "image options without images": (
        f"model.onnx {INT8} --calib good.npz --mean 0.5",
        2,
        "only a folder of images takes mean; scale the arrays themselves",
    ),
    "statistics that are none": (f"model.onnx {INT8} --stats good.npz", 2, "'good.npz' is not a file of statistics"),
    "two new statistics files": (
        f"model.onnx {INT8} --stats a.npz --stats b.npz",
        2,
        "at most one may be new, but a.npz",
    ),
    "statistics to no folder": (f"model.onnx {INT8} --stats none/a.npz", 2, "none/a.npz: there is no folder none"),
    # what comes out
    "the model as its own output": (
        f"model.onnx {INT8} -o model.onnx",
        2,
        "would overwrite the model: name another file",
    ),
    "a folder as the output": (f"model.onnx {INT8} -o nothing", 2, "--output nothing is a folder: name a file"),
    "an output in no folder": (f"model.onnx {INT8} -o none/o.onnx", 2, "--output none/o.onnx: there is no folder none"),
    "a report in no folder": (
        f"model.onnx {INT8} --report none/r.json",
        2,
        "--report none/r.json: there is no folder none",
    ),
    "a tolerance that is not met": (
        f"model.onnx {INT8} --calib good.npz --min-sqnr 90",
        5,
        "dB SQNR, under the 90 dB asked for; nothing was written. Use milder options or leave a pass out",
    ),
    "a tolerance without a comparison": (
        f"model.onnx {INT8} --min-sqnr 20 --validate none",
        2,
        "--min-sqnr needs the comparison that --validate none leaves out: drop one of them",
    ),
    "a tolerance that is no number": (f"model.onnx {INT8} --min-sqnr high", 2, "'high' is not a number"),
    "a seed that is no number": (f"model.onnx {INT8} --seed x", 2, "'x' is not an integer of 0 or more"),
    "an option that does not exist": (f"model.onnx {INT8} --sed 1", 2, "No such option"),
}
assert len(TABLE) >= 15


def arguments(line: str) -> list[str]:
    return ["" if each == "~" else each for each in line.split()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def run(line: str) -> tuple[object, str, str]:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as exit_:
        main(arguments(line), prog_name="onnxsqueeze")
    return exit_.value.code, stdout.getvalue(), stderr.getvalue()


def check(code: object, stdout: str, stderr: str, expected_code: int, message: str) -> None:
    assert code == expected_code, stderr
    assert (stdout == "") == (code != 5)  # a result that is not good enough is shown
    assert stderr.startswith("onnxsqueeze: error: ")
    assert message in stderr
    assert "Traceback" not in stderr
    assert stderr.count("\n") == 1 + message.count("\n")


@pytest.mark.parametrize("kind", TABLE)
def test_bad_input_gets_one_sentence_an_exit_code_and_no_file(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, code, message = TABLE[kind]
    monkeypatch.chdir(folder)
    monkeypatch.delenv(DEBUG, raising=False)
    before = contents(folder)

    check(*run(line), code, message)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "kind", ["a truncated model", "a brace that stays open", "a NaN in a later feed", "a tolerance that is not met"]
)
def test_the_program_itself_fails_in_the_same_way(kind: str, folder: Path) -> None:
    line, code, message = TABLE[kind]
    root = str(Path(__file__).parents[2])
    environment = {key: value for key, value in os.environ.items() if key != DEBUG}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    before = contents(folder)

    result = subprocess.run(
        [sys.executable, "-m", "onnxsqueeze", *arguments(line)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    check(result.returncode, result.stdout, result.stderr, code, message)
    assert contents(folder) == before


def test_the_good_model_and_the_good_feeds_are_good(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "out.onnx"

    code, stdout, stderr = run(f"model.onnx {INT8} --calib good.npz --min-sqnr 20 -o {out}")
    assert (code, stderr) == (0, "")
    assert f"wrote{out}" in "".join(stdout.split())
    onnx.checker.check_model(onnx.load(out))


def test_a_custom_operator_is_squeezed_unrun_when_nothing_has_to_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "out.onnx"

    code, stdout, stderr = run(f"custom.onnx {INT8} --validate none -o {out}")
    assert (code, stderr) == (0, "")
    assert "The answers were not compared with the original." in stdout
    made = onnx.load(out)
    assert made.graph.node[-1].op_type == "Fancy"
    assert TensorProto.INT8 in {tensor.data_type for tensor in made.graph.initializer}


def test_a_folder_that_cannot_be_written_to_is_found_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    message = "--output nothing/out.onnx: the folder nothing cannot be written to; name a file elsewhere"
    check(*run(f"nowhere.onnx {INT8} -o nothing/out.onnx"), 2, message)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_turns_out_to_be_unwritable_is_one_sentence_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "access", lambda path, mode: True)

    check(*run(f"model.onnx {INT8} --validate none -o /proc/out.onnx"), 2, "/proc/out.onnx cannot be written: ")
