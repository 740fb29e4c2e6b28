"""Rows of a prepared folder one by one, as they were before they were packed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cktrain.data.shards import TokenSource

StoredRow = tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""The packed sequence that it is in, or of a stream the number of the document; ids, and whether each is learned."""

_AT_ONCE = 1 << 16  # tokens of a stream


def stored_rows(source: TokenSource) -> Iterator[StoredRow]:
    """Rows of packed sequences without padding, or of a stream the documents, cut at 65,536 tokens."""
    return _packed(source) if source.row_length is not None else _documents(source)


def _packed(source: TokenSource) -> Iterator[StoredRow]:
    length = source.row_length
    assert length is not None
    for sequence in range(len(source) // length):
        start = sequence * length
        ids, learned = source.read(start, length), source.learned(start, length)
        borders = np.flatnonzero(source.begins(start, length))
        for begin, end in zip(borders, [*borders[1:], length], strict=True):
            if learned[begin:end].any():  # padding has no label
                yield sequence, ids[begin:end], learned[begin:end]


def _documents(source: TokenSource) -> Iterator[StoredRow]:
    start = number = 0
    while start < len(source):
        size = min(_AT_ONCE, len(source) - start)
        ids = source.read(start, size)
        ends = np.flatnonzero(ids == source.eos_id) if source.eos_id is not None else np.array([], int)
        size = int(ends[0]) + 1 if len(ends) else size
        yield number, ids[:size], source.learned(start, size)
        start, number = start + size, number + 1
