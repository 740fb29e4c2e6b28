"""What the system refused, in one line: the file, the reason, and one thing to do."""

from __future__ import annotations

import errno
import os
import platform

_REMEDIES = {
    errno.ENOENT: "Check the path",
    errno.EACCES: "Check who owns it and its permissions (ls -ld), also of the folders above it",
    errno.EPERM: "Check who owns it and its permissions (ls -ld), also of the folders above it",
    errno.EROFS: "Its file system is read-only: give a path that can be written",
    errno.ENOSPC: "Free some space on its disk",
    errno.EDQUOT: "Free some space: your quota there is used up",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or use a file system that takes such files",
    errno.EISDIR: "Give a file, not a folder",
    errno.ENOTDIR: "A part of the path is a file: check it",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "The host has no more open files to give: look for a process that leaks them",
    errno.ENAMETOOLONG: "Shorten the path",
    errno.ELOOP: "A symbolic link leads back to itself: mend it",
    errno.EIO: "Its disk or file server has an error: look into dmesg",
    errno.ESTALE: "The file server has replaced it: mount it anew, or start again",
    errno.ENOMEM: "Free some memory, or use fewer ranks",
}


def in_words(error: OSError) -> str:
    """`[system] PATH: reason on HOST. What to do.`"""
    names = [
        os.fspath(name)
        for name in (error.filename, error.filename2)
        if isinstance(name, str | bytes | os.PathLike)
    ]
    shown = " -> ".join(
        name.decode(errors="backslashreplace") if isinstance(name, bytes) else name for name in names
    )
    reason = error.strerror or str(error) or type(error).__name__
    if reason.startswith("["):  # a sentence of ours already
        return reason
    remedy = _REMEDIES.get(error.errno or 0, "Look into the system's log")
    if not shown and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ):  # a stream's, which knows no name
        remedy = (
            "Free some space where standard output goes, or raise its limit (ulimit -f), and run it again"
        )
    return f"[system] {shown + ': ' if shown else ''}{reason} (on {platform.node()}). {remedy}."
