"""Files that someone else wrote: whatever they hold, one ValueError that names the file, what was found and what to do."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from pydantic import BaseModel

from cktrain import foreign_file
from cktrain.foreign_file import parse_json, read_json, read_text


class Sizes(BaseModel):
    steps: int
    names: list[str] = []


def read(path, shape: Any = Sizes, **options: Any) -> Any:
    return read_json(path, shape, area="checkpoint", remedy="Give another.", **options)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b" \n ", "it is empty"),
        (b"{", "not valid JSON"),
        (b'{"steps": 1} {"steps": 2}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"steps": 1, "steps": 2}', "'steps' stands twice"),
        (b'{"steps": 1, "names": [{"a": 1, "a": 1}]}', "'a' stands twice"),
        (b'{"steps": NaN}', "NaN is no number"),
        (b'{"steps": 1, "x": [-Infinity]}', "-Infinity is no number"),
        (b'{"steps": 1, "x": 1e999}', "1e999 is beyond"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "valid dictionary or instance of Sizes, found []"),
        (b"null", "found None"),
        (b'"steps"', "found 'steps'"),
        (b"{}", "steps: field required"),
        (b'{"steps": "1"}', "steps: input should be a valid integer, found '1'"),
        (b'{"steps": 1.0}', "steps: input should be a valid integer, found 1.0"),
        (b'{"steps": true}', "steps: input should be a valid integer, found True"),
        (b'{"steps": null}', "found None"),
        (b'{"steps": 1, "names": {"0": "a"}}', "names: input should be a valid list"),
        (b'{"steps": 1, "names": ["a", 2, 3]}', "names.1: input should be a valid string, found 2 (and 1 more)"),
        ('{"steps": 1}'.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b'{"steps": "\xff"}', "not UTF-8 text (byte 11)"),
        (b"\x00\x01\x02\xff", "a binary file"),
        (b"{\x00}", "a binary file (a NUL at character 1)"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"x" * 2000, "more than the 1,000 bytes"),
    ],
)  # fmt: skip
def test_any_content_is_refused_by_name(tmp_path, content, told):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    limit = 1000 if len(content) == 2000 else 1 << 20
    with pytest.raises(ValueError) as caught:
        read(path, limit_bytes=limit)
    message = str(caught.value)
    assert message.startswith(f"[checkpoint] {path}: ") and message.endswith(". Give another.")
    assert told in message and len(message) < 500


def test_what_is_right_is_read_with_a_byte_order_mark_and_unknown_keys(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"steps": 3, "names": ["caf\xc3\xa9"], "more": {"x": 1.5}}')
    assert read(path) == Sizes(steps=3, names=["café"])
    assert read(path, dict[str, Any])["more"] == {"x": 1.5}


@pytest.mark.parametrize("shape", [dict[str, int], list[int]])
def test_plain_types_are_shapes_too(shape):
    with pytest.raises(ValueError, match=r"^\[data\] line 3: .*found 'a'. Mend it.$"):
        parse_json('{"x": "a"}' if shape == dict[str, int] else '["a"]', shape, name="line 3", area="data",
                   remedy="Mend it.")  # fmt: skip


def test_what_cannot_be_opened_is_refused_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("{}")
    for path, told in (
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / ("a" * 300), "File name too long"),
        ("/proc/self/mem", "Input/output error"),
        (f"{tmp_path}/nul\0", "null byte"),
        (f"{tmp_path}/\ud800", "surrogates"),
    ):
        with pytest.raises(ValueError, match=told):
            read_text(path, area="config", remedy="Give a file.")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(foreign_file.os, "open", refused)
    with pytest.raises(ValueError, match=r"a\.json: it cannot be read: Permission denied"):
        read(tmp_path / "a.json")


def test_endless_and_silent_files_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_file, "PIPE_PATIENCE_S", 0.05)
    os.mkfifo(tmp_path / "fifo")
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"nothing came out of it for 0\.05 s"):
        read(tmp_path / "fifo")
    with pytest.raises(ValueError, match="more than the 4,096 bytes"):
        read("/dev/zero", limit_bytes=4096)
    inlet, outlet = os.pipe()
    with pytest.raises(ValueError, match=r"nothing came out of it for 0\.05 s"):
        read(f"/dev/fd/{inlet}")
    os.write(outlet, b'{"steps": 7}')
    os.close(outlet)
    assert read(f"/dev/fd/{inlet}") == Sizes(steps=7)
    os.close(inlet)
    assert time.monotonic() - begun < 30
