"""Megatron's indexed dataset: PREFIX.bin holds ids alone, PREFIX.idx what they are and where documents begin.

The index, little-endian, as megatron/core/datasets/indexed_dataset.py of Megatron-LM writes it:

    offset  size  field
    0       9     magic, b"MMIDIDX\\0\\0"
    9       8     version: 1
    17      1     code of the ids' type
    18      8     S, number of sequences
    26      8     D, number of documents and one
    34      4 S   tokens of each sequence (int32)
            8 S   byte in PREFIX.bin at which each begins (int64)
            8 D   number of the sequence with which each document begins (int64); the last is S

A document is one sequence or, where sentences were split, several. Both files are read by position; of the index, which may
have more entries than fit into memory, what lies in the window that is read.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cktrain.data.token_file import TokenFile

_MAGIC = b"MMIDIDX\0\0"
_OLDER = b"TNTIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_OTHER_DTYPES = {6: "float64", 7: "float32"}
_AT_ONCE = 1 << 20  # entries of the index


@dataclass(frozen=True)
class DocumentStarts:
    """The tokens with which the documents of a file begin, in order, by number: an index of them, read when asked."""

    sequences: TokenFile
    """By document: its first sequence; one entry more, the number of sequences."""
    pointers: TokenFile
    """By sequence: its first byte."""
    tokens: int
    item: int
    """Bytes of an id."""

    def __len__(self) -> int:
        return len(self.sequences) - 1

    def __getitem__(self, number: int) -> int:
        sequence = int(self.sequences[number : number + 1][0])
        if sequence == len(self.pointers):  # documents without a token, at the end
            return self.tokens
        return int(self.pointers[sequence : sequence + 1][0]) // self.item

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Whether a document begins with each of the tokens [start, start + count): bool (count)."""
        out = np.zeros(count, dtype=bool)
        first = bisect_left(self, start, 0, len(self))
        last = bisect_left(self, start + count, first, len(self))
        for at in range(first, last, _AT_ONCE):
            here = self.sequences[at : min(at + _AT_ONCE, last)]
            pointers = self.pointers[int(here[0]) : int(here[-1]) + 1]
            out[pointers[here - here[0]] // self.item - start] = True
        return out


def index_of(path: Path) -> Path | None:
    """The Megatron index beside a .bin, if there is one: a file that begins as one does."""
    index = path.with_suffix(".idx")
    try:
        with open(index, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError:
        return None
    if head.startswith(_OLDER):
        raise ValueError(
            f"[data.shards] {index}: an index of an older Megatron (TNTIDX). Make both files again with today's "
            "tools/preprocess_data.py, or give the text."
        )
    return index if head == _MAGIC else None


def open_megatron(path: Path, index: Path, size: int) -> tuple[TokenFile, DocumentStarts]:
    """The ids of PREFIX.bin, of `size` bytes, and where its documents begin.

    Raises ValueError that names the file and the place when the index is cut or damaged, or is another file's.
    """
    held = index.stat().st_size
    with open(index, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise _damaged(index, f"truncated, it holds {held} bytes and its header alone has {_HEADER.size}")
    _, version, code, sequences, documents = _HEADER.unpack(head)
    if version != 1:
        raise ValueError(
            f"[data.shards] {index}: version {version} of Megatron's index, and version 1 is read. Make both files again "
            "with today's tools/preprocess_data.py, or give the text."
        )
    if code not in _DTYPES:
        name = _OTHER_DTYPES.get(code, f"of an unknown type, code {code}")
        raise _damaged(index, f"says that the ids are {name}, and ids are integers")
    dtype: np.dtype[Any] = np.dtype(_DTYPES[code])
    expected = _HEADER.size + 12 * sequences + 8 * documents
    if held == expected + sequences:
        raise ValueError(
            f"[data.shards] {index}: of text and images (a mode for each sequence). Only text is trained: make both files "
            "of the text alone."
        )
    if held != expected:
        what = "truncated" if held < expected else "too long"
        raise _damaged(
            index,
            f"{what}, it holds {held:,} bytes, and {sequences:,} sequences and {documents:,} borders of documents need "
            f"{expected:,}",
        )
    lengths = TokenFile(index, np.dtype("<i4"), _HEADER.size, sequences)
    pointers = TokenFile(index, np.dtype("<i8"), _HEADER.size + 4 * sequences, sequences)
    starts = TokenFile(index, np.dtype("<i8"), _HEADER.size + 12 * sequences, documents)
    end = _check_sequences(index, lengths, pointers, dtype.itemsize)
    _check_documents(index, starts, sequences)
    if end != size:
        what = "truncated" if size < end else "too long"
        raise ValueError(
            f"[data.shards] {path}: {what}, it holds {size:,} bytes, and the sequences of {index.name} have {end:,}. Copy "
            "both files again."
        )
    tokens = TokenFile(path, dtype, 0, size // dtype.itemsize)
    return tokens, DocumentStarts(starts, pointers, len(tokens), dtype.itemsize)


def _check_sequences(index: Path, lengths: TokenFile, pointers: TokenFile, item: int) -> int:
    """The byte at which the last sequence ends. ValueError where one does not begin where the one before ends."""
    end = 0
    for at in range(0, len(lengths), _AT_ONCE):
        sizes = lengths[at : at + _AT_ONCE].astype(np.int64) * item
        ends = end + np.cumsum(sizes)
        wrong = (pointers[at : at + _AT_ONCE] != ends - sizes) | (sizes < 0)
        if wrong.any():
            number = int(np.argmax(wrong))
            raise _damaged(
                index,
                f"sequence {at + number:,} begins at byte {pointers[at + number : at + number + 1][0]:,} and has "
                f"{sizes[number] // item:,} ids, and the ones before end at byte {ends[number] - sizes[number]:,}",
            )
        end = int(ends[-1])
    return end


def _check_documents(index: Path, starts: TokenFile, sequences: int) -> None:
    before = 0
    for at in range(0, len(starts), _AT_ONCE):
        here = starts[at : at + _AT_ONCE]
        steps = np.diff(here, prepend=before if at else 0)
        if (at == 0 and here[0] != 0) or (steps < 0).any():
            number = 0 if at == 0 and here[0] != 0 else int(np.argmax(steps < 0))
            raise _damaged(
                index, f"document {at + number:,} begins with sequence {here[number]:,}, out of order"
            )
        before = int(here[-1])
    if len(starts) == 0 or before != sequences:
        raise _damaged(index, f"its documents end with sequence {before:,} of {sequences:,}")


def _damaged(index: Path, what: str) -> ValueError:
    return ValueError(f"[data.shards] {index}: {what}. Copy both files again, or make them again.")
