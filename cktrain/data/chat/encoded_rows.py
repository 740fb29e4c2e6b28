"""Encoded rows between being read and being packed: ids and labels in a temporary file, lengths in memory."""

from __future__ import annotations

import tempfile
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
        self._starts: list[int] = []
        self._size = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by close)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, sample: Sample) -> None:
        """Keep a row."""
        ids = np.asarray(sample.ids, "<u4") << 1 | np.asarray(sample.learned, "<u4")
        self._file.seek(0, 2)
        self._file.write(ids.astype("<u4").tobytes())
        self._starts.append(self._size)
        self._size += 4 * len(ids)
        self.lengths.append(len(ids))
        self.trained.append(sum(sample.learned))
        self.text_bytes.append(sample.text_bytes)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids and whether each is learned: int64, bool (length)."""
        self._file.seek(self._starts[index])
        both = np.frombuffer(self._file.read(4 * self.lengths[index]), "<u4")
        return (both >> 1).astype(np.int64), (both & 1).astype(bool)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
