"""What a command makes is there whole or not at all: written beside its name, synced, and only then given the name.

Until then it is `.NAME.tmpPID` in the same folder. An error or a signal takes it away; what `kill -9` or a power cut left
of it is named by the next one that makes the same output, and kept: another host's process may be at it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from cktrain.durable import sync

log = logging.getLogger("cktrain")


def refuse_existing(path: Path, who: str) -> None:
    """Raises ValueError, said by `who`, where something has the name."""
    if os.path.lexists(path):
        raise ValueError(f"[{who}] {path} exists. Choose another name or delete it.")


def refuse_filled(folder: Path, who: str) -> None:
    """Raises ValueError, said by `who`, where something has the name that is no empty folder."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"[{who}] {folder} exists and is not an empty folder. Choose another or delete it.")


@contextlib.contextmanager
def whole_folder(folder: Path, who: str) -> Iterator[Path]:
    """A temporary folder to write into, that becomes `folder` at the end, or is removed after an error.

    Raises ValueError when `folder` exists and is not empty, OSError, naming `folder`, when writing fails.
    """
    refuse_filled(folder, who)
    with _renamed(folder, who) as temporary:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            sync(path)


@contextlib.contextmanager
def whole_file(path: Path, who: str) -> Iterator[Path]:
    """The name to write to in the block, which closes the file. Raises as `whole_folder`, where anything has the name."""
    refuse_existing(path, who)
    with _renamed(path, who) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary


@contextlib.contextmanager
def _renamed(path: Path, who: str) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    for left in left_behind(path):
        log.warning(
            "[%s] warning: %s was left by a process that was killed while it wrote. Delete it, unless one on another host "
            "is still at it.",
            who,
            left,
        )
    try:
        yield temporary
        sync(temporary)
        _give_name(temporary, path, who)
        sync(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space" if full else "Check the folder's permissions"
        raise OSError(
            error.errno,
            f"[{who}] cannot write {path}: {error.strerror or error}. {remedy}; nothing was kept",
        ) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _give_name(temporary: Path, path: Path, who: str) -> None:
    """Rename, and never over something: ValueError where another process has made a thing of this name meanwhile."""
    try:
        if temporary.is_dir():
            os.rename(temporary, path)  # over an empty folder alone
            return
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise ValueError(
            f"[{who}] {path} was made by another process meanwhile, and stays as it is; nothing of this one was kept. "
            "Choose another name."
        ) from None


def left_behind(path: Path) -> list[Path]:
    """What earlier processes that no longer run on this host left of this output."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.tmp(\d+)")
    try:
        entries = sorted(path.parent.iterdir())
    except OSError:  # the folder is made later, or cannot be read, which writing into it will say
        return []
    found = ((entry, pattern.fullmatch(entry.name)) for entry in entries)
    return [entry for entry, match in found if match and not Path(f"/proc/{match[1]}").exists()]
