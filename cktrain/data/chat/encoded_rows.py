"""Encoded rows between being read and being packed: ids and labels in a temporary file, lengths in memory.

A row is packed as a whole. Mostly it is one document; a preference pair is two, one behind the other.
"""

from __future__ import annotations

import tempfile
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cktrain.data.chat.samples import Sample


class EncodedRows:
    """Rows of one split, in the order in which they came. The file is gone when it is closed, or its process ends."""

    def __init__(self, folder: Path):
        self.lengths: list[int] = []
        self.trained: list[int] = []
        """Labels of each row."""
        self.text_bytes: list[int] = []
        self.begins: list[tuple[int, ...]] = []
        """Of each row, where in it its documents begin."""
        self._starts: list[int] = []
        self._size = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by close)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, *samples: Sample) -> None:
        """Keep a row: one document, or several that stay together."""
        documents = [np.asarray(s.ids, "<u4") << 1 | np.asarray(s.learned, "<u4") for s in samples]
        ids = np.concatenate(documents).astype("<u4")
        self._file.seek(0, 2)
        self._file.write(ids.tobytes())
        self._starts.append(self._size)
        self._size += 4 * len(ids)
        self.lengths.append(len(ids))
        self.trained.append(sum(sum(sample.learned) for sample in samples))
        self.text_bytes.append(sum(sample.text_bytes for sample in samples))
        self.begins.append(tuple(accumulate(map(len, documents[:-1]), initial=0)))

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids and whether each is learned: int64, bool (length)."""
        self._file.seek(self._starts[index])
        both = np.frombuffer(self._file.read(4 * self.lengths[index]), "<u4")
        return (both >> 1).astype(np.int64), (both & 1).astype(bool)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
