"""A zstd file read as what is in it, frame by frame to its end; one that ends in the midst of a frame is an error."""

from __future__ import annotations

import io
from typing import IO

_BLOCK = 1 << 17


class ZstdFile(io.RawIOBase):
    """The uncompressed bytes of an open file. Raises EOFError where it is cut, and zstandard's ZstdError."""

    def __init__(self, file: IO[bytes]):
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._begun = False
        self._read = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill some of the buffer; 0 at the end."""
        while not self._ready:
            block = self._read or self._file.read(_BLOCK)
            if not block:
                if self._begun:
                    raise EOFError("it ends in the midst of a zstd frame")
                return 0
            self._begun, self._read = True, b""
            self._ready = memoryview(self._frame.decompress(block))
            if self._frame.eof:
                self._read = self._frame.unused_data
                self._frame, self._begun = self._decompressor.decompressobj(), False
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
