"""Rows of a prepared folder as one reads them, with what is learned set off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cktrain.data.shards import Split, TokenSource, open_source
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import read_tokenizer

OPEN, CLOSE = "⟦", "⟧"
"""Around what is learned where there are no colours."""

_AT_ONCE = 1 << 16  # tokens of a stream


@dataclass(frozen=True)
class ShownRow:
    """A row in pieces of text, each learned or not."""

    sequence: int
    """The packed sequence that it is in; of a stream, the number of the document."""
    tokens: int
    trained: int
    pieces: list[tuple[str, bool]]

    def plain(self) -> str:
        """The row with marks around what is learned."""
        return "".join(f"{OPEN}{text}{CLOSE}" if learned else text for text, learned in self.pieces)


def shown_rows(folder: str | Path, count: int, split: Split = "train") -> list[ShownRow]:
    """The first rows of a split. Raises ValueError when the folder or its tokenizer cannot be read."""
    source = open_source(folder, split)
    tokenizer = Tokenizer.of(read_tokenizer(folder), None, "parse")
    found = islice(_packed(source) if source.row_length is not None else _documents(source), count)
    return [_shown(tokenizer, *each) for each in found]


def _packed(source: TokenSource) -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    length = source.row_length
    assert length is not None
    for sequence in range(len(source) // length):
        start = sequence * length
        ids, learned = source.read(start, length), source.learned(start, length)
        borders = np.flatnonzero(source.begins(start, length))
        for begin, end in zip(borders, [*borders[1:], length], strict=True):
            if learned[begin:end].any():  # padding has no label
                yield sequence, ids[begin:end], learned[begin:end]


def _documents(source: TokenSource) -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    start = number = 0
    while start < len(source):
        size = min(_AT_ONCE, len(source) - start)
        ids = source.read(start, size)
        ends = np.flatnonzero(ids == source.eos_id) if source.eos_id is not None else np.array([], int)
        size = int(ends[0]) + 1 if len(ends) else size
        yield number, ids[:size], source.learned(start, size)
        start, number = start + size, number + 1


def _shown(
    tokenizer: Tokenizer, sequence: int, ids: npt.NDArray[np.int32], learned: npt.NDArray[np.bool_]
) -> ShownRow:
    pieces = [
        (tokenizer.decode([int(token) for token, _ in group], skip_special_tokens=False), is_learned)
        for is_learned, group in groupby(zip(ids, learned.tolist(), strict=True), key=lambda pair: pair[1])
    ]
    return ShownRow(sequence, len(ids), int(learned.sum()), pieces)
