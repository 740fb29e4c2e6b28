"""Documents out of one file's bytes: text, JSON lines, JSON, unpacked on the way; Parquet and Arrow.

Readers are generators that hold a block, a line or a value of the file and never the whole. What they leave out or change
on the way is counted in `Seen`: rows without text, bad rows where those may be skipped, marks of byte order (BOM), and
line ends other than LF, which become LF in text (in JSON a string is what it says).
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cktrain.data.json_values import LONGEST_VALUE, TWICE, JsonValues, NotJson, object_of
from cktrain.data.sniff import HEAD_BYTES, BadFile, Format, packing, shown
from cktrain.data.tables import columns_of, table_rows

SEPARATOR = "<|endoftext|>"

_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_PLACES = 3  # of bad rows that are named
TO_UTF_8 = (
    "Convert the file: iconv -t UTF-8 -f WINDOWS-1252 (Western European), GB18030 (Chinese) or what it is in."
)
"""What to do with text of another encoding."""


@dataclass
class Seen:
    """What one reading of a corpus has met besides documents. `places` are the first bad rows, as file:line."""

    bad_rows: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    empty_rows: int = 0
    carriage_returns: int = 0
    byte_order_marks: int = 0

    def bad_row(self, place: str, error: BadRow, skip: bool) -> None:
        """Count one that is left out. Raises BadFile that says what is wrong with it unless that was asked for."""
        if not skip:
            raise BadFile(
                f"[data.corpus] {place}: {error.why}. {error.remedy} (--skip-bad-rows leaves out such rows and counts them)"
            ) from error
        self.bad_rows[error.why if len(error.why) < 60 else error.why[:57] + "..."] += 1
        if len(self.places) < _PLACES:
            self.places.append(place)


class BadRow(ValueError):
    """A row without usable text: why, and what to do; `text` is the line, where it is no JSON."""

    def __init__(self, why: str, remedy: str = "Correct the line.", text: str | None = None):
        super().__init__(why)
        self.why = why
        self.remedy = remedy
        self.text = text


def head_of(path: Path, can_skip: bool = True) -> tuple[bytes, str | None]:
    """The first HEAD_BYTES of what is in a file, and the compression around it. Raises BadFile."""
    with reading(path, can_skip), open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        packed = packing(head)
        if packed is not None:
            file.seek(0)
            head = unpacked(file, packed).read(HEAD_BYTES)
        return head, packed


def documents_of(
    path: Path,
    packed: str | None,
    form: Format,
    key: str,
    limit: int,
    seen: Seen,
    skip_bad_rows: bool = False,
) -> Iterator[str]:
    """Every document of a file that is not empty. Raises BadFile, with line or offset.

    `form` is how to read it, `packed` its compression, `key` that of the text in a JSON object, `limit` the characters
    after which a text is cut.
    """
    with reading(path), open(path, "rb") as raw:
        file = raw if packed is None else unpacked(raw, packed)
        if form == "text":
            yield from cut(_normalised(path, file, seen), limit)
            return
        rows = rows_of(path, file, form, seen, key)
        for line, row in rows:
            try:
                text = row_text(row, key)
            except BadRow as error:
                seen.bad_row(f"{shown(path)}:{line}", error, skip_bad_rows)
                continue
            if text:
                yield text
            else:
                seen.empty_rows += 1


def unlike_documents(path: Path, packed: str | None, form: Format, key: str) -> str | None:
    """Why the first row of a JSON file is none with text: it may be a configuration, or a vocabulary. None if it is one."""
    with reading(path), open(path, "rb") as raw:
        file = raw if packed is None else unpacked(raw, packed)
        for _, row in rows_of(path, file, form, Seen()):
            try:
                row_text(row, key)
            except BadRow as error:
                return f"JSON, but {error.why}"
            return None
    return "JSON without a row"


@contextlib.contextmanager
def reading(path: Path, can_skip: bool = True) -> Iterator[None]:
    """Within it an error of reading becomes a BadFile that names the file. `can_skip`: there is --skip-bad-files."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
            what_to_do = "It was cut or changed on its way: copy it again"
        else:
            what_to_do = "Correct the file or its permissions"
        skip = " (--skip-bad-files leaves out such files and counts them)" if can_skip else "."
        raise BadFile(f"[data.corpus] {shown(path)}: cannot be read ({why}). {what_to_do}{skip}") from error
    except Exception as error:
        # Of modules that are imported only where such a file is read.
        if type(error).__name__ not in ("LZMAError", "ZstdError"):
            raise
        raise BadFile(f"[data.corpus] {shown(path)}: cannot be unpacked ({error}). Copy it again.") from error


def unpacked(file: IO[bytes], packed: str) -> IO[bytes]:
    """What is inside of a compressed file, see `sniff.packing`."""
    if packed == "zst":
        from cktrain.data.zstd_file import ZstdFile

        return io.BufferedReader(ZstdFile(file), _BLOCK)
    if packed == "gz":
        import gzip

        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if packed == "bz2":
        import bz2

        return bz2.BZ2File(file)
    import lzma

    return lzma.LZMAFile(file)


def _text_blocks(path: Path, file: IO[bytes], seen: Seen) -> Iterator[str]:
    """A file's UTF-8 text, block by block, without a byte order mark at its start."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = file.read(_BLOCK)
        if offset == 0:
            block += file.read(len(_BOM) - len(block)) if 0 < len(block) < len(_BOM) else b""
            if block.startswith(_BOM):
                seen.byte_order_marks += 1
                offset, block = len(_BOM), block[len(_BOM) :] + file.read(1)
        zero = block.find(0)
        if zero >= 0:
            raise BadFile(
                f"[data.corpus] {shown(path)}: a zero byte at offset {offset + zero:,}, which text has not. "
                "Give the text without it."
            )
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise BadFile(
                f"[data.corpus] {shown(path)}: byte {error.object[error.start]:#04x} at offset "
                f"{offset - held + error.start:,} is not UTF-8. {TO_UTF_8}"
            ) from error
        if text:
            yield text
        if not block:
            return
        offset += len(block)


def _normalised(path: Path, file: IO[bytes], seen: Seen) -> Iterator[str]:
    """A text with LF at the end of its lines, whether they ended in LF, CR LF or CR."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for block in _text_blocks(path, file, seen):
        seen.carriage_returns += block.count("\r")
        yield newlines.decode(block)
    yield newlines.decode("", final=True)


def cut(blocks: Iterable[str], limit: int) -> Iterator[str]:
    """Cut a text, given in blocks, at the separators and at the first line end after `limit` characters.

    A line longer than `limit` is cut after 2 * `limit` characters. Nothing but the separators, each with the
    line end that follows it, is lost; empty documents are left out.
    """
    pending = ""
    ended = False
    parts = iter(blocks)
    keep = len(SEPARATOR)  # a separator may stand across two blocks, with its line end in the second
    while not ended:
        block = next(parts, None)
        ended = block is None
        pending += block or ""
        start = 0
        while True:
            end, after = _next_cut(pending, start, limit)
            if end < 0 or (not ended and after > len(pending) - keep):
                break
            if end > start:
                yield pending[start:end]
            start = after
        pending = pending[start:]
    if pending:
        yield pending


def _next_cut(text: str, start: int, limit: int) -> tuple[int, int]:
    """Where the document from `start` ends and where the next begins; (-1, -1) if the text ends before."""
    separator = text.find(SEPARATOR, start, start + 2 * limit + len(SEPARATOR))
    line = text.find("\n", start + limit, start + 2 * limit)
    if separator >= 0 and (line < 0 or separator <= line):
        after = separator + len(SEPARATOR)
        return separator, after + (text[after : after + 1] == "\n")
    if line >= 0:
        return line + 1, line + 1
    if len(text) - start > 2 * limit + len(SEPARATOR):
        return start + 2 * limit, start + 2 * limit
    return -1, -1


def row_text(row: Any, key: str) -> str:
    """The text of a row. `key` is a key of it, or `a.b` for key b of the object under a. Raises BadRow."""
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, str):
        raise BadRow(
            f'a string, not an object with "{key}" in it',
            "Write rows: jq -c '{text: .}' FILE > rows.jsonl, or of an array jq -c '.[] | {text: .}'",
        )
    value = row
    for part in [key] if isinstance(row, dict) and key in row else key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise _no_key(value, key)
        value = value[part]
    if value is TWICE:
        raise BadRow(f'the key "{key}" stands twice in one object')
    if value is None:
        raise BadRow(f'"{key}" is null, not text')
    if not isinstance(value, str):
        hint = "Name the key that holds the text, or correct the line."
        if isinstance(value, dict) and "0" in value:
            hint = "These are the columns of a table: write rows, to_json(orient='records', lines=True) in pandas."
        raise BadRow(f'"{key}" is {type(value).__name__}, not text', hint)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f'"{key}" holds half of a surrogate pair at character {error.start}') from error
    return value


def _no_key(value: Any, key: str) -> BadRow:
    remedy = "Name the key that holds the text with --text-key."
    found = type(value).__name__
    if isinstance(value, dict):
        found = ", ".join(list(value)[:12]) + (", ..." if len(value) > 12 else "")
        for name, rows in value.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                remedy = f"If its rows are under {json.dumps(name)}: jq -c '.[{json.dumps(name)}][]' FILE > rows.jsonl"
                if "role" in rows[0] or "from" in rows[0]:
                    remedy = (
                        "These are chats, which are known by their keys: leave --text-key and --format out."
                    )
        if "nbformat" in value:
            remedy = "Take a notebook's text out: jupyter nbconvert --to markdown FILE"
    return BadRow(f'no key "{key}" (found: {found})', remedy)


def rows_of(
    path: Path, file: IO[bytes], form: Format, seen: Seen, key: str | None = None
) -> Iterator[tuple[int, Any]]:
    """Each value of a file of JSON with its line, a BadRow where a line is none, or each row of a table with its number.

    Of a table's columns only that which holds the text under `key`, where one is given. Raises BadFile.
    """
    if form == "parquet" or form == "arrow":
        if key is None:
            return table_rows(path, form)
        return table_rows(path, form, key if key in columns_of(path, form) else key.partition(".")[0])
    return _lines(path, file, seen) if form == "jsonl" else _values(path, file, seen)


def _lines(path: Path, file: IO[bytes], seen: Seen) -> Iterator[tuple[int, Any]]:
    """Each line's number and its value, a BadRow where it is none; lines of spaces are none."""
    number = 0
    while line := file.readline(LONGEST_VALUE + 1):
        number += 1
        if len(line) > LONGEST_VALUE:
            raise BadFile(
                f"[data.corpus] {shown(path)}:{number}: a line of more than {LONGEST_VALUE:,} bytes. "
                "Divide it into documents."
            )
        if number == 1 and line.startswith(_BOM):
            seen.byte_order_marks += 1
            line = line[len(_BOM) :]
        if not line.strip():
            continue
        try:
            # Without its end: of a line that was cut inside a text that is told, and not a control character.
            yield number, json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=object_of)
        except UnicodeDecodeError:
            yield number, BadRow("not UTF-8", TO_UTF_8, text=_as_read(line))
        except (ValueError, RecursionError) as error:  # not JSON, or nested too deeply
            yield number, BadRow(f"not JSON: {error}", text=_as_read(line))


def _as_read(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").strip()


def _values(path: Path, file: IO[bytes], seen: Seen) -> Iterator[tuple[int, Any]]:
    """The values of a JSON file's arrays, or those that follow each other, each with the line on which it begins."""
    try:
        yield from JsonValues(_text_blocks(path, file, seen))
    except NotJson as error:
        raise BadFile(
            f"[data.corpus] {shown(path)}:{error.line}: not JSON: {error}. Correct the file."
        ) from error
