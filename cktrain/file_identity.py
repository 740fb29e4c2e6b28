"""Files known by what they hold: a SHA-256 per file, one for a set of named files, and what has changed since.

A path says where a file lay, not which one it is: folders are moved, renamed, written again. What must stay the same file
is recorded by its digest, and compared wherever it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

_PIECE_BYTES = 1 << 16


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


def sha256_of_set(digests: Mapping[str, str]) -> str:
    """One SHA-256 for a set of named files, of their names and digests: the order in which they are given is no matter."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(f"{digests[name]}  {name}\0".encode())
    return digest.hexdigest()


def changed_files(folder: str | Path, recorded: Mapping[str, str]) -> list[str]:
    """What is no longer as recorded, one text per file: `a.json is missing`, `b.json is not the one recorded`.

    A file that cannot be read is told with the reason; files that are not recorded are not looked at.
    """
    found = []
    for name in sorted(recorded):
        try:
            digest = sha256_of_file(Path(folder) / name)
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
        else:
            if digest != recorded[name]:
                found.append(f"{name} is not the one recorded")
    return found
