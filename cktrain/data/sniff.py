"""What a file is: told by how it begins and, where that leaves it open, by its name.

Every file that enters is looked at before it is read. What documents can be read from has a format: text, JSON lines
(`jsonl`: an object per line) or JSON (`json`: an array of objects, or objects one after the other over several lines),
each of them as it is or inside gzip, bzip2, xz or zstd; or it is a table in Parquet or Arrow. Everything else is named, with
one command that makes text of it.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["text", "jsonl", "json", "parquet", "arrow"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow")
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
HEAD_BYTES = 1 << 16
"""How much of a file's start is looked at."""


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not read: what it is, and what to do; {path} stands for the file, quoted for a shell."""

    what: str
    remedy: str


class BadFile(ValueError):
    """A file that can't be read as documents; the message names it, what it is and what to do."""


_UNPACK = "Unpack it and give what was inside."
_CONVERT = "Write its text as JSON lines: {command}"
_PANDAS = "python3 -c \"import pandas; pandas.{call}.to_json('out.jsonl', orient='records', lines=True)\""


def _table(call: str) -> str:
    return _CONVERT.format(command=_PANDAS.format(call=call))


_PREPARE = "It is read by: cktrain data prepare {path} OUT --tokenizer MODEL (without --format)"

_BINARY = Kind("a binary file", "Give the text that it was made from.")
_UTF16 = Kind("text in UTF-16", "Convert it: iconv -f UTF-16{end} -t UTF-8 {{path}} > utf8.txt")
_UTF32 = Kind("text in UTF-32", "Convert it: iconv -f UTF-32{end} -t UTF-8 {{path}} > utf8.txt")
_IMAGE_REMEDY = "Give text; cktrain reads no images, sound or video."

# (offset, bytes there, what it is, what to do): the first that fits.
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"CKTOKENS", "a shard of tokens", "Give it as data.path, or give the text that it was made from."),
    (0, b"(\xb5/\xfd", "a zstd file", "pip install zstandard, or unpack it: zstd -d {path}"),
    (0, b"\x04\x22M\x18", "an lz4 file", "Unpack it: lz4 -d {path}"),
    (0, b"\x1f\x9d", "a file of compress (.Z)", "Unpack it: uncompress {path}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it: 7z x {path}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "Unpack it: unrar x {path}"),
    (0, b"PAR1", "a Parquet file", _PREPARE),
    (0, b"ARROW1", "an Arrow (Feather) file", _PREPARE),
    (0, b"FEA1", "a Feather file", _table("read_feather({path!r})")),
    (0, b"\xff\xff\xff\xff", "an Arrow stream, or binary", _PREPARE),
    (0, b"ORC", "an ORC file", _table("read_orc({path!r})")),
    (0, b"Obj\x01", "an Avro file", "Write its text as JSON lines: avro-tools tojson {path}"),
    (0, b"%PDF-", "a PDF", "Take its text out: pdftotext {path}"),
    (0, b"%!PS", "a PostScript file", "Take its text out: ps2ascii {path}"),
    (0, b"{\\rtf", "an RTF document", "Take its text out: pandoc -t plain {path}"),
    (
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old Office document",
        "Save it as text in the program that made it.",
    ),
    (0, b"AT&TFORM", "a DjVu document", "Take its text out: djvutxt {path}"),
    (
        0,
        b"SQLite format 3\0",
        "an SQLite database",
        "Write a column as JSON lines: sqlite3 -json {path} 'SELECT ...'",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Write its text as JSON lines with h5py."),
    (
        0,
        b"\x93NUMPY",
        "a numpy array (.npy)",
        "Text is read here; give ids as data.path.",
    ),
    (0, b"GGUF", "a GGUF model", "Give text; weights are read by model.from_pretrained, as safetensors."),
    (0, b"\x7fELF", "a program (ELF)", "Give text."),
    (0, b"\0asm", "a WebAssembly program", "Give text."),
    (0, b"\xca\xfe\xba\xbe", "a program", "Give text."),
    (0, b"\x89PNG\r\n", "an image (PNG)", _IMAGE_REMEDY),
    (0, b"\xff\xd8\xff", "an image (JPEG)", _IMAGE_REMEDY),
    (0, b"GIF8", "an image (GIF)", _IMAGE_REMEDY),
    (0, b"II*\0", "an image (TIFF)", _IMAGE_REMEDY),
    (0, b"MM\0*", "an image (TIFF)", _IMAGE_REMEDY),
    (0, b"RIFF", "sound, video or an image (RIFF)", _IMAGE_REMEDY),
    (0, b"OggS", "sound (Ogg)", _IMAGE_REMEDY),
    (0, b"fLaC", "sound (FLAC)", _IMAGE_REMEDY),
    (0, b"ID3", "sound (MP3)", _IMAGE_REMEDY),
    (4, b"ftyp", "video (MP4)", _IMAGE_REMEDY),
    (257, b"ustar", "a tar archive", "Unpack it, tar -xf {path}, and give the folder."),
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself",
        "Fetch it: git lfs pull",
    ),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself", "Fetch it: git annex get {path}"),
    (0, b"WARC/1.", "a web archive (WARC)", "Take the text of its pages out first, as JSON lines."),
    (0, b"-----BEGIN PGP MESSAGE", "an encrypted file", "Decrypt it: gpg -d {path}"),
    (0, b"age-encryption.org/", "an encrypted file", "Decrypt it: age -d {path}"),
    (0, b"Salted__", "an encrypted file (openssl)", "Decrypt it first."),
)
# What a zip's first members are called, and what the zip then is.
_ZIPPED: tuple[tuple[bytes, str, str], ...] = (
    (b"word/", "a Word document", "Take its text out: pandoc -t plain {path}"),
    (b"xl/", "an Excel sheet", _table("read_excel({path!r})")),
    (b"ppt/", "a PowerPoint file", "Save its text as .txt."),
    (b"application/epub", "an EPUB book", "Take its text out: pandoc -t plain {path}"),
    (b"opendocument", "an OpenDocument file", "Take its text out: pandoc -t plain {path}"),
    (b"data.pkl", "a PyTorch file", "Give text; weights are read by model.from_pretrained, as safetensors."),
    (
        b".npy",
        "a numpy archive (.npz)",
        "Text is read here; write ids with numpy.save and give them as data.path.",
    ),
    (b"", "a zip archive", "Unpack it, unzip {path}, and give the folder."),
)
_CSV_TO_JSONL = (
    'python3 -c "import csv, json, sys; csv.field_size_limit(2**31 - 1); '
    '[print(json.dumps(row)) for row in csv.DictReader(sys.stdin{more})]" < {{path}} > out.jsonl'
)
# Text, but not the text that one trains on; told by the name.
_NAMED: dict[str, Kind] = {
    ".csv": Kind("a table (CSV)", _CONVERT.format(command=_CSV_TO_JSONL.format(more=""))),
    ".tsv": Kind(
        "a table (TSV)", _CONVERT.format(command=_CSV_TO_JSONL.format(more=", dialect='excel-tab'"))
    ),
    ".ipynb": Kind("a Jupyter notebook", "Take its text out: jupyter nbconvert --to markdown {path}"),
}
_HTML = Kind("an HTML page", "Take its text out: pandoc -f html -t plain {path} -o out.txt")
_XML = Kind("an XML document", "Take its text out, without the tags, with a parser for what it holds.")
_NAMED |= dict.fromkeys((".html", ".htm", ".xhtml", ".mhtml"), _HTML) | dict.fromkeys((".xml", ".svg"), _XML)

_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\xf8-\xff]")  # bytes that no UTF-8 text has, or hardly any
_JSON_OBJECT = re.compile(r'\s*(\[\s*)?\{\s*("(?:[^"\\]|\\.)*"\s*:|\})')
_COLUMN = re.compile(r"[a-z_]\w{0,30}( \w+)?", re.IGNORECASE)
_TABLE_ROWS = 10
_JSON_STRINGS = re.compile(r'\s*\[\s*"(?:[^"\\]|\\.)*"\s*[,\]]')


def packing(head: bytes) -> str | None:
    """The compression that a file's start tells, of those that are read through: gz, bz2, xz, and zst with zstandard."""
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    if re.match(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", head):
        return "bz2"
    if head.startswith(b"(\xb5/\xfd") and importlib.util.find_spec("zstandard"):
        return "zst"
    return "xz" if head.startswith(b"\xfd7zXZ\0") else None


def table_form(head: bytes) -> Literal["parquet", "arrow"] | None:
    """Which kind of table a file is, read by pyarrow; Arrow's stream begins with a mark and the length of its schema."""
    if head.startswith(b"PAR1") and _CONTROL.search(head):
        return "parquet"
    stream = head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 28
    return "arrow" if head.startswith(b"ARROW1\0\0") or stream else None


def refuse_packed_table(path: Path, form: str, packed: str | None) -> None:
    """BadFile for a table in a compressed file: it is read from its end, and compresses its columns itself."""
    if packed is not None:
        raise BadFile(f"[data.corpus] {shown(path)}: {form.capitalize()} inside of {packed}. Unpack it.")


def binary_kind(head: bytes, only_sure: bool = False) -> Kind | None:
    """What a file that is not UTF-8 text begins like; None when it may be text. `head` is HEAD_BYTES or the whole.

    `only_sure` is for files that may begin with any bytes, numbers: signs of fewer than four bytes do not count then.
    """
    if head.startswith(b"PK\x03\x04"):
        return next(Kind(what, remedy) for name, what, remedy in _ZIPPED if name in head)
    if head.startswith(b"PK\x05\x06"):
        return Kind("an empty zip archive", _UNPACK)
    for offset, magic, what, remedy in _MAGIC:
        # A magic of letters may begin a sentence, too.
        sure = len(magic) >= 4 and offset == 0 if only_sure else not magic.isalnum() or _CONTROL.search(head)
        if sure and head.startswith(magic, offset):
            return Kind(what, remedy)
    if only_sure:
        return None
    if re.match(rb"\x80[\x02-\x05][\x8a\x95cK\]\}(GX\x8c]", head):
        return Kind("a Python pickle", "Write its text as JSON lines in the program that made it.")
    if len(head) > 8 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 32:
        return Kind("a safetensors file", "Give text; weights are read by model.from_pretrained.")
    if (wide := _wide_text(head)) is not None:
        return wide
    if b"\0" in head:
        return _BINARY
    return None


def _wide_text(head: bytes) -> Kind | None:
    """UTF-16 or UTF-32, told by its mark or by where its zero bytes are."""
    for mark, kind, end in (
        (b"\xff\xfe\0\0", _UTF32, ""),
        (b"\0\0\xfe\xff", _UTF32, ""),
        (b"\xff\xfe", _UTF16, ""),
        (b"\xfe\xff", _UTF16, ""),
    ):
        if head.startswith(mark):
            return Kind(kind.what, kind.remedy.format(end=end))
    if len(head) < 8 or b"\0" not in head:
        return None
    zeros = [head[place::4].count(0) / len(head[place::4]) for place in range(4)]
    for places, kind, end in (
        ((1, 2, 3), _UTF32, "LE"),
        ((0, 1, 2), _UTF32, "BE"),
        ((1, 3), _UTF16, "LE"),
        ((0, 2), _UTF16, "BE"),
    ):
        # Letters, digits and spaces have zero bytes there; the other byte of each character has none.
        others = [zeros[place] for place in range(4) if place not in places]
        if min(zeros[place] for place in places) > 0.6 and max(others) < 0.05:
            return Kind(kind.what, kind.remedy.format(end=end))
    return None


def document_format(path: Path, head: bytes, asked: str) -> Format:
    """How to read a file's documents. `head` is the start of what is in it, unpacked, and `asked` is auto or a format.

    Raises BadFile when it is nothing of that, or when name and content say different things.
    """
    if asked == "auto" and (table := table_form(head)) is not None:
        return table
    kind = binary_kind(head)
    if kind is not None:
        raise refusal(path, kind)
    if asked != "auto":
        return asked  # type: ignore[return-value]  # one of Format's
    suffix = suffix_of(path)
    text = head.decode("utf-8", "ignore").removeprefix("\ufeff")
    begins = text[:2048].lstrip().lower()
    if suffix in _NAMED:
        raise refusal(path, _NAMED[suffix], override=True)
    if re.match(r"<!doctype html|<html[\s>]", begins):
        raise refusal(path, _HTML, override=True)
    if begins.startswith("<?xml") and suffix not in (".py", ".md", ".rst"):
        raise refusal(path, _XML, override=True)
    if suffix in JSON_SUFFIXES:
        return _json_format(text, len(head) == HEAD_BYTES, suffix)
    if suffix in ("", ".txt") and (rows := _table_kind(text, len(head) == HEAD_BYTES)) is not None:
        raise refusal(path, rows, override=True)
    if _JSON_OBJECT.match(text) or _JSON_STRINGS.match(text):
        if suffix in TEXT_SUFFIXES:
            found = _json_format(text, len(head) == HEAD_BYTES, suffix)
            raise BadFile(
                f"[data.corpus] {shown(path)}: named as text, but it holds JSON. Say how to read it: "
                f"--format {found} for the documents in it, --format text for the characters as they are."
            )
        return _json_format(text, len(head) == HEAD_BYTES, suffix)
    return "text"


def _table_kind(text: str, cut: bool) -> Kind | None:
    """A table with a line of names and ten rows or more, all of as many fields; None for anything less regular."""
    first = text.partition("\n")[0].rstrip("\r")
    for sign, kind in ((",", _NAMED[".csv"]), ("\t", _NAMED[".tsv"])):
        names = [name.strip().strip('"') for name in first.split(sign)]
        if len(names) < 2 or len(set(names)) < len(names):
            continue
        if not all(_COLUMN.fullmatch(name) for name in names):
            continue
        rows: list[list[str]] = []
        try:
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True):
                rows.append(row)
        except csv.Error:
            if not cut:  # where the head ends in the midst of a field, what was read so far counts
                continue
            rows.append([])
        rows = [row for row in (rows[:-1] if cut else rows) if row]
        if len(rows) > _TABLE_ROWS and all(len(row) == len(names) for row in rows):
            return kind
    return None


def _json_format(text: str, cut: bool, suffix: str) -> Format:
    """JSON lines when the first line is a whole JSON value and no array with everything in it; JSON otherwise."""
    first, end, rest = text.lstrip().partition("\n")
    if not end and "\r" in first:
        return "json"  # lines that end in CR alone: to JSON that is a space
    if not end and cut:  # a first line longer than the head: an array begins with its bracket
        return "json" if first.startswith("[") else "jsonl"
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # Half an object or array on the first line is JSON over several lines; anything else is a bad line.
        opened = first.strip()
        several = opened in ("[", "{", "[{") or (suffix == ".json" and opened[:1] in ("[", "{"))
        return "json" if several or opened.endswith((",", ":", "{", "[")) else "jsonl"
    return "json" if isinstance(value, list) and not rest.strip() else "jsonl"


def suffix_of(path: Path) -> str:
    """The suffix that tells what is in a file: in lower case, without that of the compression."""
    inner = path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path
    return inner.suffix.lower()


def refusal(path: Path, kind: Kind, override: bool = False) -> BadFile:
    """The error that names a file and its kind; `override`: it may be read as text all the same."""
    quoted = shlex.quote(str(path))
    remedy = kind.remedy.replace("{path!r}", repr(str(path))).replace("{path}", quoted)
    text = f"[data.corpus] {shown(path)}: {kind.what}. {remedy}"
    return BadFile(text + (" (--format text reads it as it is)" if override else ""))


def shown(path: str | Path) -> str:
    """A path as one line of text: line ends, control characters and bytes that are not UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
