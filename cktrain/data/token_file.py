"""The ids in an open file, read by position.

Ids are read (pread) and not mapped: a file that is cut, or whose disk or server fails, is then an error with a name and a
place; under a mapping it would be a signal (SIGBUS) that ends the process in the midst of a step. The file stays open, so it
may be renamed, replaced or deleted meanwhile.
"""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class TokenFile:
    """`count` ids of `dtype` from byte `offset` of a file on; slices of it are arrays (count) of `dtype`.

    Raises ValueError that names the file when it cannot be opened or read, or has become shorter.
    """

    def __init__(self, path: str | Path, dtype: np.dtype[Any], offset: int, count: int):
        self.path = Path(path)
        self.dtype = dtype
        self._offset = offset
        self._count = count
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            remedy = "Correct its permissions or data.path."
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "Allow more open files (ulimit -n), or prepare the data with more --shard-tokens."
            raise ValueError(
                f"[data.shards] {path}: cannot be opened ({error.strerror}). {remedy}"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, step = part.indices(self._count)
        assert step == 1, part
        out = np.empty(max(0, stop - start), self.dtype)
        view = out.view(np.uint8).data
        done = 0
        while done < len(view):
            place = self._offset + start * self.dtype.itemsize + done
            try:
                got = os.preadv(self._descriptor, [view[done:]], place)
            except OSError as error:
                raise ValueError(
                    f"[data.shards] {self.path}: cannot be read at byte {place:,} ({error.strerror}). "
                    "Look after the disk or the mount, then resume."
                ) from error
            if got == 0:
                raise ValueError(
                    f"[data.shards] {self.path}: ends at byte {os.fstat(self._descriptor).st_size:,}, and had "
                    f"{self._count:,} ids when it was opened: it was cut meanwhile. Put it back, then resume."
                )
            done += got
        return out
