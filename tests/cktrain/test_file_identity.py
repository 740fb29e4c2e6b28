"""Digests of files and of sets of files, and what has changed since they were taken."""

from __future__ import annotations

import hashlib

import pytest

from cktrain import file_identity
from cktrain.file_identity import changed_files, sha256_of_file, sha256_of_files, sha256_of_set


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
