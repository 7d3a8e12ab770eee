from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from onnxsqueeze.errors import UsageError
from onnxsqueeze.files import Files, whole


def test_files_appear_together_at_the_end(tmp_path: Path) -> None:
    with Files("both") as files:
        for name in ("a", "b"):
            with files.create(tmp_path / name) as file:
                file.write(name.encode())
        assert not (tmp_path / "a").exists()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}


def test_after_an_error_nothing_is_left_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a", "the file") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole(tmp_path / "link", "the file") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="no pipes among files")
def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole(pipe, "the file") as file:
        file.write(b"through")

    assert os.read(reader, 100) == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_what_the_system_objects_to_is_a_sentence(tmp_path: Path) -> None:
    message = "the report cannot be written: No such file or directory"
    with pytest.raises(UsageError, match=message), whole(tmp_path / "nowhere/file", "the report"):
        pass
