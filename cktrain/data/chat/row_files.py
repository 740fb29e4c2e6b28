"""The rows of files: JSON lines, JSON arrays, tables (CSV, TSV), each as it is or compressed, Parquet and Arrow.

Rows come one at a time, each with its file and line (of Parquet and Arrow, the number of the row), and as a BadRow where a
line is none, so that all bad rows of a source can be told at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal

from cktrain.data.chat.rows import shape_of
from cktrain.data.documents import TO_UTF_8, BadRow, Seen, head_of, reading, rows_of, unpacked
from cktrain.data.json_values import LONGEST_VALUE
from cktrain.data.listing import LeftOut, how_to_fetch, list_files
from cktrain.data.saved_dataset import saved_parts
from cktrain.data.sniff import (
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    BadFile,
    document_format,
    refuse_packed_table,
    shown,
    suffix_of,
    table_form,
)
from cktrain.file_identity import sha256_of_file

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = (";", "\t", ",", "|")  # spreadsheets write the first where a comma is the decimal point
_SUFFIXES = (*JSON_SUFFIXES, *_SEPARATORS, *TABLE_SUFFIXES)
_LOOKED_AT = 100

Form = Literal["jsonl", "json", "table", "parquet", "arrow"]


@dataclass(frozen=True)
class RawRow:
    """What a file has at a line: an object, or a BadRow that says why it is none."""

    file: Path
    line: int
    value: Any

    @property
    def place(self) -> str:
        """file:line."""
        return f"{shown(self.file)}:{self.line}"


class RowFiles:
    """A file of rows, or a folder's, in order. `left_out` says which of a folder's are not read."""

    def __init__(self, source: str | Path):
        """Raises ValueError that names the file when one is nothing with rows."""
        path = Path(source)
        self.source = str(source)
        self.left_out = LeftOut()
        self.folders: set[tuple[int, int]] = set()
        files = [path]
        if path.is_dir() and (parts := saved_parts(path)) is not None:
            files = parts
        elif path.is_dir():
            listing = list_files(path, _SUFFIXES, ())
            files, self.left_out, self.folders = listing.files, listing.left_out, listing.folders
        elif not path.is_file():
            raise ValueError(
                f"[data.chat] {shown(source)}: no such file or folder, or a pipe. Give a .jsonl, .json, .csv or .parquet."
                f"{how_to_fetch(source)}"
            )
        self.root = path if path.is_dir() else path.parent
        self.files = [(each, *_form_of(each)) for each in files]
        if not self.files:
            raise ValueError(
                f"[data.chat] {shown(source)}: no file in it ends in {', '.join(_SUFFIXES)}. Name a file of rows."
            )
        self.bytes = sum(each.stat().st_size for each, *_ in self.files)

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""
        digest = hashlib.sha256()
        for path, form, _ in self.files:
            with reading(path, can_skip=False):
                content = sha256_of_file(path)
            digest.update(
                os.fsencode(path.relative_to(self.root).as_posix()) + f"\0{form}\0{content}\n".encode()
            )
        return digest.hexdigest()

    def rows(self) -> Iterator[RawRow]:
        """Every row. Raises BadFile where a file cannot be read on."""
        for path, form, packed in self.files:
            with reading(path, can_skip=False):
                for line, value in _rows(path, form, packed):
                    yield RawRow(path, line, value)


def first_shape(source: str | Path) -> str | None:
    """The shape of the first row that has one, of the first 100 of a file or folder; None where none has."""
    path = Path(source)
    try:
        if not path.is_dir() and not path.is_file():
            return None
        for raw in islice(RowFiles(path).rows(), _LOOKED_AT):
            if not isinstance(raw.value, dict):
                continue
            given = {key: item for key, item in raw.value.items() if item is not None}
            if (shape := shape_of(given)) is not None:
                return shape
    except (ValueError, OSError):  # whoever reads it says what is wrong
        pass
    return None


def _form_of(path: Path) -> tuple[Form, str | None]:
    head, packed = head_of(path, can_skip=False)
    if (columnar := table_form(head)) is not None:
        refuse_packed_table(path, columnar, packed)
        return columnar, None
    if suffix_of(path) in _SEPARATORS:
        return "table", packed
    form = document_format(path, head, "auto")
    if form == "text":
        raise BadFile(
            f"[data.chat] {shown(path)}: text, and no rows with keys. Give .jsonl, .json, .csv or .parquet. To train on "
            f"text, prepare it: cktrain data prepare {shlex.quote(str(path))} OUT --tokenizer MODEL, and give OUT."
        )
    return form, packed


def _rows(path: Path, form: Form, packed: str | None) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as raw:
        file = raw if packed is None else unpacked(raw, packed)
        if form == "table":
            yield from _table(path, file)
        else:
            yield from rows_of(path, file, form, Seen())


def _table(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(LONGEST_VALUE)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        first = text.readline()
        separator = _separator(first, _SEPARATORS[suffix_of(path)])
        reader = csv.reader(chain([first], text), delimiter=separator, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise BadFile(f"[data.chat] {shown(path)}:1: two columns of one name. Rename one.")
        if blank := [name for name in names if name != name.strip()]:
            raise BadFile(
                f"[data.chat] {shown(path)}:1: the column {blank[0]!r} has blanks around its name, and its fields may have, "
                f"too. Write the table without blanks beside {separator!r}."
            )
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(names):
                yield line, dict(zip(names, fields, strict=True))
            elif fields:
                yield (
                    line,
                    BadRow(
                        f"another number of fields than the {len(names)} columns",
                        f"Put fields that hold {separator!r}, a quote or a line end into quotes.",
                    ),
                )
            line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise BadFile(f"[data.chat] {shown(path)}: a table that is not UTF-8. {TO_UTF_8}") from error
    except csv.Error as error:
        raise BadFile(
            f"[data.chat] {shown(path)}:{reader.line_num}: no table ({error}). Write it again as CSV in UTF-8."
        ) from error


def _separator(names: str, usual: str) -> str:
    """What stands between the columns' names: the usual one of the suffix, unless they have only others."""
    if usual in names:
        return usual
    return next((other for other in _OTHER_SEPARATORS if other in names), usual)


def as_json(raw: RawRow, reason: str) -> str:
    """A rejected row as a line of JSON: where it stood, why, and what it was where it could be read."""
    bad = isinstance(raw.value, BadRow)
    row = {"text": raw.value.text} if bad and raw.value.text is not None else None if bad else raw.value
    entry = {"file": shown(raw.file), "line": raw.line, "reason": reason, "row": row}
    return json.dumps(entry, ensure_ascii=True, default=repr)
