"""What the system refuses is one line with path, reason and what to do; status 2, whichever command meets it."""

from __future__ import annotations

import errno
import os

import pytest

from cktrain.launch import cli
from cktrain.system_error import in_words


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), r"/x/y: Permission denied .*ls -ld"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), r"/x: No space left.* Free some space"),
        (OSError(errno.EIO, "Input/output error", b"/\xff"), r"/\\xff: Input/output error .*dmesg"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid cross-device link"),
        (OSError(errno.EMFILE, "Too many open files"), "^.system. Too many open files .*ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space where standard output goes"),
        (OSError("odd"), "odd .*system's log"),
        (OSError(), "OSError"),
        (OSError(errno.ENOSPC, "[hugging_face] cannot write x. Free some space"), r"^\[hugging_face\] cannot write x"),
    ],
)  # fmt: skip
def test_every_error_of_the_system_is_one_line(error, told):
    import re

    text = in_words(error)
    assert re.search(told, text), text
    assert text.startswith("[") and "\n" not in text and "Errno" not in text


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied", "/data"), OSError(5, "Input/output error", "/w")],
)
def test_any_command_ends_with_status_2_and_the_path(monkeypatch, capsys, error):
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cktrain.hf.config_json.read_json", refused)
    monkeypatch.setattr("cktrain.host.bind.bind", lambda *_, **__: None)
    assert cli.main(["import", "folder"]) == 2
    err = capsys.readouterr().err
    assert f"{error.filename}: {error.strerror} (on {os.uname().nodename})" in err and err.count("\n") == 1


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def refused(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9.1 TiB")

    monkeypatch.setattr("cktrain.hf.config_json.read_json", refused)
    assert cli.main(["import", "folder"]) == 1
    assert "[memory] there is not enough: Unable to allocate 9.1 TiB" in capsys.readouterr().err

    def refused_by_us(*_: object, **__: object) -> None:
        raise MemoryError("[memory] the arena needs 9 bytes. Use less.")

    monkeypatch.setattr("cktrain.hf.config_json.read_json", refused_by_us)
    assert cli.main(["import", "folder"]) == 1
    assert capsys.readouterr().err == "cktrain: [memory] the arena needs 9 bytes. Use less.\n"


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_a_terminal_that_lacks_a_character_ends_no_command(monkeypatch, encoding):
    import io

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert cli.main(["import", "東京\udce9"]) == 2
    assert rb"\u6771\u4eac\udce9/config.json" in err.buffer.getvalue()
