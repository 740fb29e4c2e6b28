"""Documents out of text files, JSON files, folders, or the running Python's standard library.

A corpus is a stable list of files, each of which has been sniffed; its documents are read as a stream and never held
together. A text file is one document up to a limit, beyond which it is cut at the next line end, so that memory stays
bounded; the literal `<|endoftext|>` separates documents, too. A JSON file has one document per object, under a key; a table
one per row, in a column. Rows of ids (`input_ids`) in a table without text are documents as they are.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cktrain.data.documents import Seen, documents_of, head_of, reading, unlike_documents
from cktrain.data.id_rows import has_ids_alone, id_rows_of
from cktrain.data.listing import LeftOut, Listing, cannot_read, how_to_fetch, list_files
from cktrain.data.saved_dataset import saved_parts
from cktrain.data.sniff import (
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    BadFile,
    Format,
    document_format,
    refuse_packed_table,
    shown,
    suffix_of,
)
from cktrain.file_identity import sha256_of_file

PYTHON_STDLIB = "python-stdlib"
FORMATS = ("auto", "text", "jsonl", "json")

_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_LONGEST_DOCUMENT = 1 << 20  # characters of a text file in a folder
_LONGEST_PIECE = 1 << 16  # characters of a text file that is the whole corpus


@dataclass(frozen=True)
class SourceFile:
    """A file, how to read it, and what it was when it was listed: size and time of change."""

    path: Path
    format: Format
    packed: str | None
    bytes: int
    changed_ns: int
    ids: bool = False
    """A table without the text's column and with input_ids."""


class Corpus:
    """A list of files and how to read documents from them.

    `left_out` says which files are not read and why. After `documents` has been read to its end, `seen` counts what was
    met besides documents, and `undecodable` the files that are not UTF-8 (standard library only; in the user's own files
    that is an error).
    """

    def __init__(
        self,
        source: str | Path,
        text_key: str = "text",
        suffixes: Sequence[str] | None = None,
        file_format: str = "auto",
        skip_bad_rows: bool = False,
        skip_bad_files: bool = False,
    ):
        """`source` is a file, a folder (its files of the given suffixes, recursively) or "python-stdlib".

        Raises ValueError that names the file when one is not what can be read; `skip_bad_files` leaves it out.
        """
        if file_format not in FORMATS:
            raise ValueError(f"[data.corpus] format {file_format!r}: give one of {', '.join(FORMATS)}.")
        self.source = str(source)
        self.text_key = text_key
        self.seen = Seen()
        self.undecodable = 0
        self.skip_bad_rows = skip_bad_rows
        self.skip_bad_files = skip_bad_files
        self._stdlib = self.source == PYTHON_STDLIB
        self._asked = "text" if self._stdlib else file_format
        self._is_folder = True
        self._limit = _LONGEST_DOCUMENT
        wanted = tuple(suffixes or TEXT_SUFFIXES + JSON_SUFFIXES + TABLE_SUFFIXES)
        if self._stdlib:
            self.root = Path(sysconfig.get_path("stdlib"))
            listing = list_files(self.root, (".py",), _STDLIB_LEFT_OUT)
            listing.left_out = LeftOut()  # the library's other files are not the user's
        else:
            self.root, listing = self._listing(Path(source), wanted)
        self.left_out = listing.left_out
        self.folders = listing.folders
        self.files = [file for path in listing.files if (file := self._sniffed(path)) is not None]
        if not self.files:
            found = "".join(f"\n  {line}" for line in self.left_out.lines())
            raise ValueError(
                f"[data.corpus] {shown(source)}: nothing to read: no file ends in {', '.join(wanted)} and holds "
                f"anything. Name the suffixes of the files to read (--suffixes).{found}"
            )
        self.bytes = sum(file.bytes for file in self.files)
        self.of_ids = self.files[0].ids
        """Its rows are ids: `id_rows` gives them, and `documents` has none."""
        if other := next((file for file in self.files if file.ids != self.of_ids), None):
            first, second = (self.files[0], other) if self.of_ids else (other, self.files[0])
            raise BadFile(
                f"[data.corpus] {shown(source)}: {shown(first.path)} holds ids, and {shown(second.path)} text. Prepare each "
                "kind by itself."
            )

    def fingerprint(self) -> str:
        """A hash of the files' names and contents, and of how they are read."""
        digest = hashlib.sha256()
        for file in self.files:
            with reading(file.path):
                content = sha256_of_file(file.path)
            name = os.fsencode(file.path.relative_to(self.root).as_posix())
            digest.update(name + f"\0{file.format}\0{content}\n".encode())
        how = (
            self.text_key,
            self._limit,
            platform.python_version() if self._stdlib else "",
            self.skip_bad_rows,
        )
        digest.update(repr(how).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """Every document that is not empty.

        Raises ValueError naming file and line (or byte) when one is unreadable.
        """
        self.seen = Seen()
        self.undecodable = 0
        for file in self.files:
            if self._stdlib:
                try:
                    file.path.read_bytes().decode("utf-8")
                except UnicodeDecodeError:
                    self.undecodable += 1
                    continue
            yield from self._documents_of(file)

    def id_rows(self) -> Iterator[tuple[str, list[int]]]:
        """Every row of ids that is not empty, with file and number. Raises as `documents`."""
        self.seen = Seen()
        for file in self.files:
            for number, ids in id_rows_of(file.path, file.format, self.seen, self.skip_bad_rows):
                yield f"{shown(file.path)}:{number}", ids
            self._refuse_changed(file)

    def _documents_of(self, file: SourceFile) -> Iterator[str]:
        key, limit = self.text_key, self._limit
        yield from documents_of(
            file.path, file.packed, file.format, key, limit, self.seen, self.skip_bad_rows
        )
        self._refuse_changed(file)

    def _refuse_changed(self, file: SourceFile) -> None:
        with reading(file.path):
            status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.bytes, file.changed_ns):
            raise BadFile(
                f"[data.corpus] {shown(file.path)}: changed while it was read (from {file.bytes:,} to "
                f"{status.st_size:,} bytes). Run it again when nothing writes to it any more."
            )

    def _listing(self, source: Path, suffixes: tuple[str, ...]) -> tuple[Path, Listing]:
        try:
            status = source.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
            if source.is_symlink():
                raise cannot_read(source, FileNotFoundError(2, "")) from None
            raise ValueError(
                f"[data.corpus] {shown(source)}: no such file or folder. Give a text file, a .jsonl, a folder or "
                f'"{PYTHON_STDLIB}".{how_to_fetch(source)}'
            ) from None
        except OSError as error:
            raise cannot_read(source, error) from error
        if stat.S_ISDIR(status.st_mode):
            if (parts := saved_parts(source)) is not None:
                return source, Listing(parts, folders={(status.st_dev, status.st_ino)})
            return source, list_files(source, suffixes, (), self.skip_bad_files)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"[data.corpus] {shown(source)}: a pipe, socket or device, and the documents are read twice. "
                "Write them into a file first."
            )
        self._is_folder = False
        # A single text file must be divided for a validation split to exist: about 256 pieces or more.
        self._limit = min(_LONGEST_PIECE, max(1024, status.st_size // 256))
        return source.parent, Listing([source])

    def _sniffed(self, path: Path) -> SourceFile | None:
        """How to read a file; None when it is left out."""
        name = path.relative_to(self.root).as_posix()
        try:
            head, packed = head_of(path)
            if not head and not self._stdlib:
                self.left_out.add("empty", name)
                return None
            form = document_format(path, head, self._asked) if not self._stdlib else "text"
            if form in ("parquet", "arrow"):
                refuse_packed_table(path, form, packed)
            if self._is_folder and suffix_of(path) == ".json":  # as many a file beside documents is named
                unlike = unlike_documents(path, packed, form, self.text_key)
                if unlike is not None:
                    self.left_out.add(unlike if len(unlike) < 80 else unlike[:77] + "...", name)
                    return None
            with reading(path):
                status = path.stat()
            ids = has_ids_alone(path, form, self.text_key)
            file = SourceFile(path, form, packed, status.st_size, status.st_mtime_ns, ids)
            if self.skip_bad_files:  # read to its end once, so that one is left out whole or not at all
                skip, key = self.skip_bad_rows, self.text_key
                for _ in (
                    id_rows_of(path, form, Seen(), skip)
                    if ids
                    else documents_of(path, packed, form, key, self._limit, Seen(), skip)
                ):
                    pass
            return file
        except BadFile as error:
            if not self.skip_bad_files:
                raise
            self.left_out.add(str(error).partition(": ")[2].partition(". ")[0], name)
            return None
