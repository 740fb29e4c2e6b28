"""Documents out of text files, JSONL files, folders, or the running Python's standard library.

A corpus is a stable list of files; its documents are read as a stream and never held together. A text file is
one document up to a limit, beyond which it is cut at the next line end, so that memory stays bounded; the
literal `<|endoftext|>` separates documents, too. A JSONL file has one document per line, under a key.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SEPARATOR = "<|endoftext|>"
PYTHON_STDLIB = "python-stdlib"
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".ndjson")

_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_BLOCK = 1 << 20
_LONGEST_DOCUMENT = 1 << 20  # characters of a text file in a folder
_LONGEST_PIECE = 1 << 16  # characters of a text file that is the whole corpus


class Corpus:
    """A list of files and how to read documents from them.

    After `documents` has been read to its end, `skipped` counts the files that were left out because they are
    not UTF-8 (standard library only; in the user's own files that is an error).
    """

    def __init__(self, source: str | Path, text_key: str = "text", suffixes: Sequence[str] | None = None):
        """`source` is a file, a folder (its files of the given suffixes, recursively) or "python-stdlib"."""
        self.source = str(source)
        self.text_key = text_key
        self.skipped = 0
        self._skip_undecodable = self.source == PYTHON_STDLIB
        self._limit = _LONGEST_DOCUMENT
        if self.source == PYTHON_STDLIB:
            self.root = Path(sysconfig.get_path("stdlib"))
            files = _find(self.root, (".py",), _STDLIB_LEFT_OUT)
        elif Path(source).is_dir():
            self.root = Path(source)
            files = _find(self.root, tuple(suffixes or TEXT_SUFFIXES + JSONL_SUFFIXES), {"__pycache__"})
        elif Path(source).is_file():
            self.root = Path(source).parent
            files = [Path(source)]
            # A single text file must be divided for a validation split to exist: about 256 pieces or more.
            self._limit = min(_LONGEST_PIECE, max(1024, Path(source).stat().st_size // 256))
        else:
            raise ValueError(
                f"[data.corpus] {source}: no such file or folder. Give a text file, a .jsonl, a folder or "
                f'"{PYTHON_STDLIB}".'
            )
        if not files:
            raise ValueError(
                f"[data.corpus] {source}: no file ends in "
                f"{', '.join(suffixes or TEXT_SUFFIXES + JSONL_SUFFIXES)}. "
                "Name the suffixes of the files to read."
            )
        self.files = files
        self.bytes = sum(path.stat().st_size for path in files)

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times of change, and of how they are read."""
        digest = hashlib.sha256()
        for path in self.files:
            status = path.stat()
            name = path.relative_to(self.root).as_posix()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        digest.update(f"{self.text_key}\0{self._limit}\0{platform.python_version()}".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[str]:
        """Every document that is not empty.

        Raises ValueError naming file and line (or byte) when one is unreadable.
        """
        self.skipped = 0
        for path in self.files:
            if path.name.endswith(JSONL_SUFFIXES):
                yield from _jsonl_documents(path, self.text_key)
            elif self._skip_undecodable:
                try:
                    text = path.read_bytes().decode("utf-8")
                except UnicodeDecodeError:
                    self.skipped += 1
                    continue
                yield from cut([text], self._limit)
            else:
                yield from cut(_text_blocks(path), self._limit)


def _find(root: Path, suffixes: tuple[str, ...], left_out: set[str]) -> list[Path]:
    """Files below `root` whose names end so, in the order of the parts of their relative paths."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in left_out]
        found += [Path(folder, name) for name in files if name.endswith(suffixes)]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).parts)


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


def _text_blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(_BLOCK)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"[data.corpus] {path}: byte {error.object[error.start]:#04x} at offset "
                    f"{offset - held + error.start:,} is not UTF-8. Convert the file to UTF-8."
                ) from error
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def _jsonl_documents(path: Path, key: str) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(
                    f"[data.corpus] {path}:{number}: not JSON: {error}. Correct the line."
                ) from error
            if not isinstance(record, dict) or key not in record:
                found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(
                    f'[data.corpus] {path}:{number}: no key "{key}" (found: {found}). Name the key that '
                    "holds the text."
                )
            text = record[key]
            if not isinstance(text, str):
                raise ValueError(
                    f'[data.corpus] {path}:{number}: "{key}" is {type(text).__name__}, not text. Correct '
                    "the line."
                )
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f'[data.corpus] {path}:{number}: "{key}" holds half of a surrogate pair at character '
                    f"{error.start}. "
                    "Correct the line."
                ) from error
            if text:
                yield text
