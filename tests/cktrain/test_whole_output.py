"""What a command makes appears whole or not at all, and what a killed one left is named and kept."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cktrain.whole_output import left_behind, whole_file, whole_folder

KILLED = """
import os, signal
from pathlib import Path
from cktrain.whole_output import whole_folder
with whole_folder(Path("out"), "export") as temporary:
    (temporary / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_and_a_file_appear_whole(tmp_path):
    with whole_folder(tmp_path / "deep/folder", "export") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "deep/folder").exists()
    with whole_file(tmp_path / "also/file", "gguf") as temporary:
        temporary.write_text("2")
    assert (tmp_path / "deep/folder/a").read_text() == "1" and (tmp_path / "also/file").read_text() == "2"
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "Free some space"), (errno.EACCES, "permissions")])
def test_after_an_error_nothing_is_left(tmp_path, number, remedy):
    for maker in (whole_folder, whole_file):
        message = f"cannot write .*out: .*{remedy}.*nothing was kept"
        with pytest.raises(OSError, match=message), maker(tmp_path / "out", "export") as temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            raise OSError(number, os.strerror(number))
        assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "out").write_text("mine")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled/mine").touch()
    for maker, name in (
        (whole_folder, "out"),
        (whole_file, "out"),
        (whole_folder, "filled"),
        (whole_file, "filled"),
    ):
        with pytest.raises(ValueError, match=f"{name} exists"), maker(tmp_path / name, "export"):
            raise AssertionError("the block runs")
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty", "export") as temporary:
        (temporary / "a").touch()
    assert (tmp_path / "empty/a").exists()


def test_what_a_killed_process_left_is_named_and_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left_behind(Path("out")) == [Path(left.name)]
    Path(f".out.tmp{os.getppid()}").mkdir()  # of a process that lives: not named
    with caplog.at_level(logging.WARNING, "cktrain"), whole_folder(Path("out"), "export") as temporary:
        (temporary / "whole").touch()
    assert caplog.text.count("was left by a process that was killed") == 1 and left.name in caplog.text
    assert (left / "half").exists() and Path("out/whole").exists()


@pytest.mark.parametrize("maker", [whole_folder, whole_file])
@pytest.mark.parametrize("links", [True, False], ids=["", "without links"])
def test_what_another_made_meanwhile_stays(tmp_path, monkeypatch, maker, links):
    def no_link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    ours = pytest.raises(ValueError, match="out was made by another process meanwhile")
    with ours, maker(tmp_path / "out", "export") as temporary:
        if temporary.is_dir():
            (temporary / "ours").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out/theirs").touch()
        else:
            temporary.write_text("ours")
            (tmp_path / "out").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if (tmp_path / "out").is_dir():
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    else:
        assert (tmp_path / "out").read_text() == "theirs"
