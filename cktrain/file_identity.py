"""Files known by what they hold: a SHA-256 per file, one for a set of named files, and what has changed since.

A path says where a file lay, not which one it is: folders are moved, renamed, written again. What must stay the same file
is recorded by its digest, and compared wherever it is used.

Large files are read for it once: a `stamp` (inode, bytes, times of the last writing and of the last change of any kind, in
ns) is recorded beside the digest, and a file whose stamp is still the same is not read again. Nobody can set the time of
the last change; a copy, a move to another file system or a write in place gives the file another stamp.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

_PIECE_BYTES = 1 << 16
_UNCHANGED_NS = 2_000_000_000
"""A file that was changed more recently has no stamp yet: its file system may count in seconds, and hide a next change."""


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read through 64 KiB of memory. Raises OSError, which names the file."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def sha256_of_bytes(data: bytes) -> str:
    """The SHA-256 of what was read of a file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_files(folder: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each named file, by its path below `folder` (`a.json`, `sub/b.json`), names in order.

    Raises OSError, which names the file, for one that is missing or cannot be read.
    """
    return {name: sha256_of_file(Path(folder) / name) for name in sorted(names)}


def stamp_of_file(path: str | Path) -> list[int]:
    """[inode, bytes, ns of the last writing, ns of the last change]; empty for a file that was changed just now.

    Raises OSError, which names the file. Taken before the file is read, it shows a change that came meanwhile.
    """
    found = os.stat(path)
    if time.time_ns() - found.st_ctime_ns < _UNCHANGED_NS:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def sha256_of_set(digests: Mapping[str, str]) -> str:
    """One SHA-256 for a set of named files, of their names and digests: the order in which they are given is no matter."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(f"{digests[name]}  {name}\0".encode())
    return digest.hexdigest()


def changed_files(
    folder: str | Path,
    recorded: Mapping[str, str],
    stamps: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[str]:
    """What is no longer as recorded, one text per file: `a.json is missing`, `b.json is not the one recorded`.

    A file that cannot be read is told with the reason; files that are not recorded are not looked at. One whose stamp is
    the one in `stamps` is not read.
    """
    found = []
    for name in sorted(recorded):
        file = Path(folder) / name
        try:
            if stamps.get(name) and stamp_of_file(file) == stamps[name]:
                continue
            digest = sha256_of_file(file)
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
        else:
            if digest != recorded[name]:
                found.append(f"{name} is not the one recorded")
    return found
