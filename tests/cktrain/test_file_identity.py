"""Digests of files and of sets of files, and what has changed since they were taken."""

from __future__ import annotations

import hashlib
import os

import pytest

from cktrain import file_identity
from cktrain.file_identity import (
    changed_files,
    sha256_of_file,
    sha256_of_files,
    sha256_of_set,
    stamp_of_file,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "sub" / "b.jinja").write_bytes(b"text")
    return tmp_path


def test_a_file_of_several_pieces(folder, monkeypatch):
    monkeypatch.setattr(file_identity, "_PIECE_BYTES", 3)
    data = bytes(range(256)) * 3
    (folder / "long").write_bytes(data)
    assert sha256_of_file(folder / "long") == hashlib.sha256(data).hexdigest()


def test_a_set_is_its_names_and_contents_in_any_order(folder):
    digests = sha256_of_files(folder, ["sub/b.jinja", "a.json"])
    assert list(digests) == ["a.json", "sub/b.jinja"]
    one = sha256_of_set(digests)
    assert one == sha256_of_set(dict(reversed(digests.items())))
    (folder / "a.json").rename(folder / "c.json")
    assert one != sha256_of_set(sha256_of_files(folder, ["c.json", "sub/b.jinja"]))
    assert one != sha256_of_set({"a.json": digests["a.json"]})


def test_a_file_that_is_not_there_is_named(folder):
    with pytest.raises(OSError, match=r"nothing\.json"):
        sha256_of_files(folder, ["a.json", "nothing.json"])


def test_what_has_changed_is_told(folder):
    digests = sha256_of_files(folder, ["sub/b.jinja", "a.json"])
    (folder / "other").write_text("not recorded")
    assert changed_files(folder, digests) == []
    (folder / "a.json").write_bytes(b"[]")
    (folder / "sub" / "b.jinja").unlink()
    assert changed_files(folder, digests) == ["a.json is not the one recorded", "sub/b.jinja is missing"]
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    assert changed_files(folder, {"a.json": digests["a.json"]}) == ["a.json cannot be read (Is a directory)"]


def test_a_file_with_the_recorded_stamp_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(file_identity, "_UNCHANGED_NS", 0)
    digests = sha256_of_files(folder, ["a.json", "sub/b.jinja"])
    stamps = {name: stamp_of_file(folder / name) for name in digests}
    monkeypatch.setattr(file_identity, "sha256_of_file", lambda path: f"read {path.name}")
    assert changed_files(folder, digests, stamps) == []
    os.utime(folder / "a.json")
    assert changed_files(folder, digests, stamps) == ["a.json is not the one recorded"]
    (folder / "sub" / "b.jinja").unlink()
    assert changed_files(folder, digests, stamps)[1] == "sub/b.jinja is missing"


def test_a_file_that_was_changed_just_now_has_no_stamp(folder, monkeypatch):
    """Its next change could fall into the same tick of the file system's clock."""
    monkeypatch.setattr(file_identity, "_UNCHANGED_NS", 3_600_000_000_000)
    assert stamp_of_file(folder / "a.json") == []
    assert changed_files(folder, {"a.json": "0"}, {"a.json": []}) == ["a.json is not the one recorded"]
