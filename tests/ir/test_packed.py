"""Containers of models: the same bytes, the same answers, and nothing outside the folder."""

from __future__ import annotations

import errno
import json
import mmap
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import MODELS as SMALL

import onnxsqueeze
from onnxsqueeze.cli.main import main
from onnxsqueeze.container.encoding import Piece
from onnxsqueeze.container.format import BLOCK, Member, block, header
from onnxsqueeze.container.packing import Source, packed
from onnxsqueeze.errors import ModelError, SqueezeError, UsageError
from onnxsqueeze.ir.packed import pack, unpack

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with its weights in two data files, one of them in a folder, and a weight in an attribute."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weight[:8], "inside"))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["g"]), constant]
    nodes.append(helper.make_node("Gemm", ["g", "c"], ["y"], transB=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight * 2, "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "in/parts").mkdir(parents=True)
    for tensor, location in zip(model.graph.initializer, ("w.bin", "parts/v.bin"), strict=True):
        (tmp_path / "in" / location).write_bytes(b"front" + tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "5"), ("length", "16384")):
            tensor.external_data.add(key=key, value=value)
    onnx.save(model, tmp_path / "in/m.onnx")
    return tmp_path / "in/m.onnx"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_small_model_comes_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(SMALL[name]().SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.osq")
    unpack(tmp_path / "m.osq", tmp_path / "again.onnx")

    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("coder", ["rans", "huffman", "deflate"])
def test_a_model_that_ships_is_smaller_and_says_so(coder: str, tmp_path: Path) -> None:
    found = pack(MODELS / "cnn.onnx", tmp_path / "m.osq", coder=coder)
    unpack(tmp_path / "m.osq", tmp_path / "m.onnx")

    assert (tmp_path / "m.onnx").read_bytes() == (MODELS / "cnn.onnx").read_bytes()
    assert found.after == (tmp_path / "m.osq").stat().st_size < 0.84 * found.before
    assert found.rest + sum(tensor.coded for tensor in found.tensors) == pytest.approx(found.after)
    assert max(found.tensors, key=lambda tensor: tensor.size).elements == 147_456


def test_integers_take_their_entropy(tmp_path: Path) -> None:
    onnxsqueeze.squeeze(MODELS / "mlp.onnx", "int8", output=tmp_path / "m.onnx", validate="none")
    found = pack(tmp_path / "m.onnx", tmp_path / "m.osq")
    large = max(found.tensors, key=lambda tensor: tensor.size)

    assert large.entropy is not None
    assert 8 * large.coded / large.elements < 1.01 * large.entropy < 8


def test_data_files_come_along_and_back(external: Path, tmp_path: Path) -> None:
    pack(external, tmp_path / "m.osq")
    unpack(tmp_path / "m.osq", tmp_path / "out.onnx")
    feed = {"x": np.eye(3, 64, dtype=np.float32)}
    expected = onnxsqueeze.session(external).run(None, feed)[0]

    assert (tmp_path / "out.onnx").read_bytes() == external.read_bytes()
    for name in ("w.bin", "parts/v.bin"):
        assert (tmp_path / name).read_bytes() == (external.parent / name).read_bytes()
    shutil.rmtree(external.parent)
    assert np.array_equal(onnxsqueeze.session(tmp_path / "m.osq").run(None, feed)[0], expected)
    graph = onnxsqueeze.load(tmp_path / "m.osq")
    onnxsqueeze.save(graph, tmp_path / "whole.onnx")
    assert np.array_equal(onnxsqueeze.session(tmp_path / "whole.onnx").run(None, feed)[0], expected)


def test_a_container_is_a_model_to_everything(tmp_path: Path) -> None:
    pack(MODELS / "mlp.onnx", tmp_path / "m.osq")
    with np.load(MODELS / "mlp.calib.npz") as data:
        feed = {"input": data["input"][:4]}
    session = onnxsqueeze.session(tmp_path / "m.osq")
    plain = onnxsqueeze.session(MODELS / "mlp.onnx")

    assert np.array_equal(session.run(None, feed)[0], plain.run(None, feed)[0])
    onnxsqueeze.save(onnxsqueeze.load(tmp_path / "m.osq"), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == (MODELS / "mlp.onnx").read_bytes()


@pytest.mark.parametrize(
    "name", ["../w.bin", "/tmp/w.bin", "a/../../w.bin", "..\\w.bin", "C:\\w.bin", "", "m.onnx", "there"]
)
def test_no_file_is_written_outside_the_folder_or_over_another(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/there").write_bytes(b"mine")
    sources = [Source("x", memoryview(b"model"), [Piece(5)]), Source(name, memoryview(b"other"), [Piece(5)])]
    (tmp_path / "m.osq").write_bytes(b"".join(packed(sources)))

    with pytest.raises(SqueezeError, match=r"not a path inside|there already"):
        unpack(tmp_path / "m.osq", tmp_path / "in/m.onnx")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "m.osq", "there"]
    assert (tmp_path / "in/there").read_bytes() == b"mine"


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    sources = [Source("m.onnx", memoryview(b"model"), [Piece(5)]), Source("x" * 60000, memoryview(b"data"), [Piece(4)])]
    (tmp_path / "m.osq").write_bytes(b"".join(packed(sources)))

    with pytest.raises(ModelError, match="a name that cannot be here") as caught:
        unpack(tmp_path / "m.osq", tmp_path / "m.onnx")

    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == [tmp_path / "m.osq"]


def test_a_model_for_which_the_system_has_no_memory_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = block(BLOCK, 0, b"", b"")
    (tmp_path / "m.osq").write_bytes(header([Member("m.onnx", BLOCK * 100)]) + nothing * 100)
    real = mmap.mmap

    def full(file: int, *given: Any, **named: Any) -> mmap.mmap:
        if file == -1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(file, *given, **named)

    monkeypatch.setattr("mmap.mmap", full)
    with pytest.raises(ModelError, match="not enough memory"):
        onnxsqueeze.load(tmp_path / "m.osq")


def test_a_damaged_container_leaves_no_file(tmp_path: Path) -> None:
    pack(MODELS / "mlp.onnx", tmp_path / "m.osq")
    data = bytearray((tmp_path / "m.osq").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.osq").write_bytes(data)

    for use in (onnxsqueeze.load, onnxsqueeze.session, lambda path: unpack(path, tmp_path / "m.onnx")):
        with pytest.raises(ModelError, match=r"m\.osq: .*(damaged|too soon|where it should)"):
            use(tmp_path / "m.osq")
    assert [path.name for path in tmp_path.iterdir()] == ["m.osq"]


def test_the_command_line_packs_and_unpacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(MODELS / "mlp.onnx", tmp_path / "m.onnx")
    for arguments in (["pack", "m.onnx", "--compare"], ["unpack", "m.osq", "-o", "again.onnx"]):
        with pytest.raises(SystemExit) as exit_:
            main([str(tmp_path / each) if "." in each else each for each in arguments])
        assert exit_.value.code == 0
    out = capsys.readouterr().out

    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert "gzip -9" in out
    assert "bits each" in out
    with pytest.raises(SystemExit) as exit_:
        main(["unpack", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "x.onnx")])
    assert exit_.value.code == 3
    assert capsys.readouterr().err == f"onnxsqueeze: error: {tmp_path}/m.onnx: not a container of onnxsqueeze\n"


def test_inspect_says_what_pack_would_write_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(MODELS / "mlp.onnx", tmp_path / "m.onnx")
    outs = []
    for arguments in (["--json"], []):
        with pytest.raises(SystemExit):
            main(["inspect", str(tmp_path / "m.onnx"), "--packed", *arguments])
        outs.append(capsys.readouterr().out)
    found = json.loads(outs[0])["packed"]

    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    made = pack(tmp_path / "m.onnx", tmp_path / "m.osq")
    assert (found["before"], found["after"]) == (made.before, made.after)
    assert [each["coded"] for each in found["tensors"]] == [each.coded for each in made.tensors]
    assert found["plain"]["gzip -9"] > made.after
    assert "entropy" in outs[1] and "by gzip -9" in outs[1]


def test_bad_input_is_refused(tmp_path: Path) -> None:
    shutil.copy(MODELS / "mlp.onnx", tmp_path / "m.onnx")
    pack(tmp_path / "m.onnx", tmp_path / "m.osq")

    with pytest.raises(UsageError, match="packed already"):
        pack(tmp_path / "m.osq", tmp_path / "n.osq")
    with pytest.raises(UsageError, match="belongs to the input model"):
        pack(tmp_path / "m.onnx", tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="coder is rans, huffman, deflate or zstd, not 'lzw'"):
        pack(tmp_path / "m.onnx", tmp_path / "n.osq", coder="lzw")
    with pytest.raises(UsageError, match="is the container itself"):
        unpack(tmp_path / "m.osq", tmp_path / "m.osq")
    (tmp_path / "t.onnx").write_bytes(b"This is not a model.\n")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        pack(tmp_path / "t.onnx", tmp_path / "n.osq")
