"""Every kind of file that comes to the door is read as what it is, or named, with one thing to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from cktrain.data.corpus import Corpus
from cktrain.data.sniff import BadFile, document_format, shown

ROWS = [{"text": "one é"}, {"text": "two\nlines"}]
TEXTS = ["one é", "two\nlines"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def packed(content: bytes) -> bytes:
    """By gzip and without the time, since a test's name holds its bytes and must be the same in every process."""
    return gzip.compress(content, mtime=0)


def read(path, **options):
    return list(Corpus(path, **options).documents())


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TABLE = "id,text\n" + "".join(f'{i},"hello, {i}"\n' for i in range(12))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("E.JSONL", LINES),
        ("e.NdJson", LINES),
        ("e.json", LINES),
        ("no_suffix", LINES),
        ("e.jsonl", json.dumps(ROWS)),  # an array under the wrong name
        ("e.jsonl", json.dumps(ROWS, indent=2)),
        ("e.json", json.dumps(ROWS)),
        ("e.json", json.dumps(ROWS, indent="\t").replace("\n", "\r\n")),
        ("e.json", "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)),  # one after the other
        ("e.jsonl", "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)),
        ("e.json", "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]"),
        ("e.json", "".join(json.dumps(row) for row in ROWS)),  # with nothing between
        ("e.jsonl", LINES.replace("\n", "\r\n")),
        ("e.jsonl", LINES.replace("\n", "\r")),
        ("e.jsonl", "\ufeff" + LINES),
        ("e.json", "\ufeff" + json.dumps(ROWS)),
        ("e.jsonl", "\n\n" + LINES.replace("\n", "\n\n")),
        ("e.jsonl", LINES.rstrip("\n")),
        ("e.jsonl.gz", packed(LINES.encode())),
        (
            "e.jsonl.gz",
            packed(LINES[:20].encode()) + packed(LINES[20:].encode()),
        ),  # two members
        ("e.JSON.GZ", packed(json.dumps(ROWS).encode())),
        ("e.jsonl.bz2", bz2.compress(LINES.encode())),
        ("e.jsonl.xz", lzma.compress(LINES.encode())),
        ("e.jsonl", packed(LINES.encode())),  # packed, and the name doesn't say so
    ],
)
def test_json_is_read_as_documents(tmp_path, name, content):
    assert read(put(tmp_path / name, content)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.TXT", b"hello\n"),
        ("a.log", b"hello\n"),
        ("a", b"hello\n"),
        ("a.txt", b"\xef\xbb\xbfhello\n"),
        ("a.txt", b"hello\r\n"),
        ("a.txt", b"hello\r"),
        ("a.txt.gz", packed(b"hello\r\n")),
        ("a.md.xz", lzma.compress(b"hello\n")),
    ],
)
def test_text_is_read_without_marks_and_foreign_line_ends(tmp_path, name, content):
    corpus = Corpus(put(tmp_path / name, content))
    assert list(corpus.documents()) == ["hello\n"]
    assert corpus.seen.byte_order_marks == (b"\xef\xbb\xbf" in content)
    assert (corpus.seen.carriage_returns == 1) == (name.endswith(".gz") or b"\r" in content)


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return buffer.getvalue()


def saved(save, *arguments):
    buffer = io.BytesIO()
    save(buffer, *arguments)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nhello,1\n", r"a table \(CSV\)\. Write its text as JSON lines: python3 -c"),
        ("a.TSV", "text\tlabel\nhello\t1\n", r"a table \(TSV\)"),
        ("a.csv.gz", packed(b"text\nhello\n"), r"a table \(CSV\)"),
        ("a.txt", TABLE, r"a table \(CSV\)\. .*--format text"),
        ("a", TABLE.replace(",", "\t"), r"a table \(TSV\)"),
        ("a.txt", TABLE * 4000, r"a table \(CSV\)"),
        ("a.html", "<p>hello</p>", "an HTML page. .*pandoc"),
        ("a.txt", "\n<!DOCTYPE html>\n<html>404", "an HTML page"),
        ("a", "<html lang='en'>", "an HTML page"),
        ("a.XML", "<doc>hello</doc>", "an XML document"),
        ("a.txt", "<?xml version='1.0'?><doc/>", "an XML document"),
        ("a.txt", LINES, "named as text, but it holds JSON. .*--format jsonl"),
        ("a.txt", json.dumps(ROWS, indent=1), "holds JSON. .*--format json "),
        ("a.md", json.dumps(["one", "two"]), "holds JSON"),
        ("a.ipynb", '{"cells": []}', "a Jupyter notebook"),
        ("a.txt", "hello".encode("utf-16"), "text in UTF-16.*iconv -f UTF-16 -t UTF-8"),
        ("a.txt", "hello there".encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("a.txt", "hello there".encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("a.jsonl", LINES.encode("utf-16"), "text in UTF-16"),
        ("a.txt", "hello".encode("utf-32"), "text in UTF-32"),
        ("a.txt", "hello there".encode("utf-32-be"), "iconv -f UTF-32BE"),
        ("a.txt.gz", packed("hello".encode("utf-16")), "UTF-16"),
        ("a.txt", b"hello\0world", "a binary file"),
        ("a.lz4", b"\x04\x22M\x18abc", "an lz4 file"),
        ("a.Z", b"\x1f\x9d\x90", "compress"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0", "a 7z archive"),
        ("a.zip", zipped("a.txt"), "a zip archive. Unpack it, unzip"),
        ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), "a Word document"),
        ("a.txt", zipped("xl/workbook.xml"), "an Excel sheet"),
        ("a.pt", zipped("archive/data.pkl"), "a PyTorch file"),
        ("a.npz", saved(np.savez, np.arange(3)), "a numpy archive"),
        ("a.tar", tarred(), "a tar archive"),
        ("a.tar.gz", packed(tarred()), "a tar archive"),
        ("a.tgz", packed(tarred()), "a tar archive"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF. .*pdftotext"),
        ("a.rtf", b"{\\rtf1\\ansi hello}", "an RTF document"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"),
        ("a.db", b"SQLite format 3\0", "an SQLite database"),
        ("a.pkl", pickle.dumps(TEXTS), "a Python pickle"),
        ("a.txt", pickle.dumps({"text": 1}, protocol=2), "a Python pickle"),
        ("a.npy", saved(np.save, np.arange(3)), "a numpy array"),
        ("a.safetensors", (16).to_bytes(8, "little") + b'{"a":{}}        ', "a safetensors file"),
        ("a.gguf", b"GGUF\3\0\0\0", "a GGUF model"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "an image"),
        ("a.txt", b"\xff\xd8\xff\xe0", "an image"),
        (
            "a.txt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        ("a.txt", b"/annex/objects/SHA256E-s1--0.txt\n", "a git-annex pointer"),
        ("a.warc", b"WARC/1.0\r\nWARC-Type: warcinfo\r\n", "a web archive"),
        ("a.warc.gz", packed(b"WARC/1.0\r\n"), "a web archive"),
        ("a.txt", b"CKTOKENS\1\0\0\0", "a shard of tokens"),
        ("a.txt", b"-----BEGIN PGP MESSAGE-----\n", "an encrypted file"),
        ("a.txt.gz", packed(b"hello " * 99)[:-9], "cannot be read .*ended before"),
        ("a.txt.gz", packed(b"hello")[:-8] + b"\1" * 8, "cannot be read .*CRC"),
        ("a.txt.xz", lzma.compress(b"hello" * 999)[:40] + b"junk" * 9, "cannot be unpacked|cannot be read"),
        ("a.txt.gz", packed(b"hello") + b"trailing", "cannot be read"),
    ],
)
def test_anything_else_is_named_with_what_to_do(tmp_path, name, content, message):
    with pytest.raises(BadFile, match=message) as error:
        read(put(tmp_path / name, content))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, ', r"e\.json:1: not JSON"),
        ('[{"text": "a"}', r"e\.json:1: not JSON: an array goes on with 'the end of the file'"),
        ('[\n{"text": "a"}\n{"text": "b"}]', r"e\.json:3: not JSON: an array goes on with '\{'"),
        ('[{"text": "a"},]', r"not JSON"),
        ('{"data": [{"text": "a"}]}', r"""found: data.* jq -c '\.\["data"\]\[\]' FILE"""),
        ('{"text": {"0": "a", "1": "b"}}', "columns of a table"),
        ('[{"messages": [{"role": "user", "content": "a"}]}]', "found: messages.*known by their keys"),
        ('[{"a": 1, "text": null}]', '"text" is null, not text'),
        ('[{"text": "a", "text": "b"}]', 'the key "text" stands twice'),
        ('["one", "two"]', r"""a string, not an object with "text" in it.* jq -c '\.\[\] \| \{text: \.\}'"""),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ("[]", "documents"),
    ],
)
def test_a_json_file_that_holds_no_documents(tmp_path, content, message):
    path = put(tmp_path / "e.json", content)
    if content == "[]":
        assert read(path) == []
        return
    with pytest.raises(BadFile, match=message):
        read(path)


def test_what_is_asked_for_is_done(tmp_path):
    path = put(tmp_path / "a.txt", LINES)
    assert read(path, file_format="jsonl") == read(path, file_format="json") == TEXTS
    assert read(path, file_format="text") == [LINES]
    assert read(put(tmp_path / "a.csv", "a,b\n"), file_format="text") == ["a,b\n"]
    with pytest.raises(BadFile, match="an lz4 file"):  # no text, whoever says so
        read(put(tmp_path / "a.lz4", b"\x04\x22M\x18"), file_format="text")
    with pytest.raises(ValueError, match="give one of auto, text, jsonl, json"):
        Corpus(path, file_format="yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[a link](https://example.org) and more\n",
        "{% macro %}\n",
        "{a: 1}\n",
        "# <html> in a heading\n",
        "[1] Knuth, The Art of Computer Programming\n",
        '"quoted"\n',
        "ORCs and RIFFs, GIF89a, PAR1 and ID3\n",
        "ID3 tags are read.\n",
        "RIFF raff\n",
        "BM BZh9 are letters\n",
        '"""A module."""\n',
        "who, what\n" + "one, two\n" * 9,  # too short to be sure
        "Roses, violets\n" + "Sugar and honey\n" * 20,
        "id,text\n" + 'a,"b\n' * 20,
        "one, two, one\n" + "a, b, c\n" * 20,
    ],
)
def test_prose_is_not_taken_for_something_else(tmp_path, text):
    assert read(put(tmp_path / "a.txt", text)) == [text]
    assert read(put(tmp_path / "a.md", text)) == [text]


def test_a_zero_byte_far_in_is_found_with_its_place(tmp_path):
    path = put(tmp_path / "a.txt", b"x\n" * 50_000 + b"\0\n")
    with pytest.raises(BadFile, match=r"a zero byte at offset 100,000"):
        read(path)


def test_a_row_longer_than_the_head(tmp_path):
    text = "word " * 40_000
    assert read(put(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n" + LINES)) == [text, *TEXTS]
    assert read(put(tmp_path / "b.json", json.dumps([{"text": text}, *ROWS]))) == [text, *TEXTS]
    with pytest.raises(BadFile, match="holds JSON"):
        read(put(tmp_path / "c.txt", json.dumps([{"text": text}])))


def test_a_line_without_end_is_bounded(tmp_path, monkeypatch):
    from cktrain.data import documents, json_values

    monkeypatch.setattr(documents, "LONGEST_VALUE", 100)
    monkeypatch.setattr(json_values, "LONGEST_VALUE", 100)
    monkeypatch.setattr(documents, "_BLOCK", 64)
    with pytest.raises(BadFile, match=r"a\.jsonl:2: a line of more than 100 bytes"):
        read(put(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "' + "b" * 200 + '"}\n'))
    with pytest.raises(BadFile, match=r"b\.json:2: not JSON: a value of more than 100 characters"):
        read(put(tmp_path / "b.json", '[{"text": "a"},\n{"text": "' + "b" * 999 + '"}]'))


def test_a_nested_key(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"doc": {"body": "x"}, "a.b": "y"}\n')
    assert read(path, text_key="doc.body") == ["x"]
    assert read(path, text_key="a.b") == ["y"]
    with pytest.raises(BadFile, match=r'no key "doc.title" \(found: body\)'):
        read(path, text_key="doc.title")


def test_paths_are_shown_on_one_line():
    assert shown("a\nb\x1b[31m\udcff é") == "a\\nb\\x1b[31m\\udcff é"


def test_the_format_does_not_hang_on_what_the_head_cuts(tmp_path):
    assert document_format(tmp_path / "a.jsonl", b'{"text": "' + b"x" * 65_526, "auto") == "jsonl"
    assert document_format(tmp_path / "a.jsonl", b'[{"text": "' + b"x" * 65_525, "auto") == "json"
