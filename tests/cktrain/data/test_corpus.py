"""Documents are read whole, in a stable order, and unreadable input is named with file and line."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data import corpus as module
from cktrain.data import documents
from cktrain.data.corpus import Corpus
from cktrain.data.documents import cut

SEPARATOR = "<|endoftext|>"


def test_a_folder_is_sorted_and_recursive(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y.md", "a.txt", "c.bin", "a/__pycache__/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text('{"text": "line one"}\n\n{"text": ""}\n{"text": "line two"}\n')
    (tmp_path / "empty.txt").write_text("")
    expected = ["a/y.md", "a/z.txt", "a.txt", "b.txt", "line one", "line two"]
    assert list(Corpus(tmp_path).documents()) == expected
    assert list(Corpus(tmp_path, suffixes=(".bin",)).documents()) == ["c.bin"]
    with pytest.raises(ValueError, match=r"no file ends in \.xyz"):
        Corpus(tmp_path, suffixes=[".xyz"])
    with pytest.raises(ValueError, match="no such file or folder"):
        Corpus(tmp_path / "missing")


def test_the_standard_library_is_stable_and_without_tests():
    one, two = Corpus("python-stdlib"), Corpus("python-stdlib")
    assert one.files == two.files and one.fingerprint() == two.fingerprint()
    names = [file.path.relative_to(one.root) for file in one.files]
    assert Path("argparse.py") in names and Path("json/decoder.py") in names
    assert not {"test", "tests", "site-packages", "__pycache__"} & {
        part for name in names for part in name.parts
    }
    assert names == sorted(names, key=lambda name: name.parts)
    assert one.bytes > 5e6, sys.version  # about 10 MB of real text


def test_undecodable_library_files_are_skipped_and_counted(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_bytes(b"# caf\xe9")
    (tmp_path / "b.py").write_text("b = 1")
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = Corpus("python-stdlib")
    for _ in range(2):
        assert list(corpus.documents()) == ["b = 1"]
        assert corpus.undecodable == 1


def test_undecodable_user_files_are_an_error_with_the_offset(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 9 + "é".encode() + b"\xff")
    for block in (1 << 20, 10, 3):  # 10 cuts the two bytes of é
        monkeypatch.setattr(documents, "_BLOCK", block)
        with pytest.raises(ValueError, match=r"a\.txt: byte 0xff at offset 11 is not UTF-8"):
            list(Corpus(path).documents())
    path.write_bytes(b"abc\xc3")
    with pytest.raises(ValueError, match="byte 0xc3 at offset 3"):
        list(Corpus(path).documents())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a\.jsonl:2: not JSON"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not UTF-8\. Convert the file: iconv -t UTF-8 -f "),
        (b'{"body": "x", "n": 1}', r'a\.jsonl:2: no key "text" \(found: body, n\)'),
        (b"[1]", r'a\.jsonl:2: no key "text" \(found: list\)'),
        (b'{"text": 3}', r'a\.jsonl:2: "text" is int, not text'),
        (b'{"text": "a\\ud800"}', r"a\.jsonl:2: .*half of a surrogate pair at character 1"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(Corpus(path).documents())


def test_another_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x\\ny"}\n')
    assert list(Corpus(path, text_key="body").documents()) == ["x\ny"]


def test_one_text_file_is_divided_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {i} é\n" for i in range(50_000))
    path.write_bytes(text.encode())
    pieces = list(Corpus(path).documents())
    assert "".join(pieces) == text
    assert len(pieces) > 100 and max(map(len, pieces)) < 2 * len(text) // 256
    assert all(piece.endswith("\n") for piece in pieces)


text = st.text(alphabet="ab\n", max_size=12)


@given(st.lists(text, min_size=1, max_size=8), st.integers(1, 30), st.integers(1, 40))
def test_cutting_does_not_depend_on_the_blocks(parts, limit, block):
    whole = (SEPARATOR + "\n").join(parts)
    pieces = list(cut([whole], limit))
    assert pieces == list(cut([whole[i : i + block] for i in range(0, len(whole), block)], limit))
    assert "".join(pieces) == "".join(parts)
    assert all(pieces) and all(SEPARATOR not in piece for piece in pieces)
    assert max(map(len, pieces), default=0) <= 2 * limit + len(SEPARATOR)


def test_separators_are_respected():
    assert list(cut([f"a\n{SEPARATOR}\nb\nc{SEPARATOR}d"], 100)) == ["a\n", "b\nc", "d"]


def test_the_fingerprint_sees_a_change(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = Corpus(tmp_path).fingerprint()
    assert Corpus(tmp_path).fingerprint() == before
    assert Corpus(tmp_path, text_key="body").fingerprint() != before
    (tmp_path / "a.txt").write_text("three")
    assert Corpus(tmp_path).fingerprint() != before
