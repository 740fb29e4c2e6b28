"""Rows of a prepared folder as one reads them, with what is learned set off."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cktrain.data.chat.stored_rows import stored_rows
from cktrain.data.shards import Split, open_source
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import read_tokenizer

OPEN, CLOSE = "⟦", "⟧"
"""Around what is learned where there are no colours."""


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
    found = islice(stored_rows(source), count)
    return [_shown(tokenizer, *each) for each in found]


def _shown(
    tokenizer: Tokenizer, sequence: int, ids: npt.NDArray[np.int32], learned: npt.NDArray[np.bool_]
) -> ShownRow:
    pieces = [
        (tokenizer.decode([int(token) for token, _ in group], skip_special_tokens=False), is_learned)
        for is_learned, group in groupby(zip(ids, learned.tolist(), strict=True), key=lambda pair: pair[1])
    ]
    return ShownRow(sequence, len(ids), int(learned.sum()), pieces)
