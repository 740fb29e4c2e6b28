"""A file that is written, or a name that is given, outlasts a power cut only once it is synced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NOT_KNOWN = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What file systems that do not sync folders answer (CIFS, some of FUSE's, 9p): they order names by themselves."""


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable. Raises OSError where the disk fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_KNOWN or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)
