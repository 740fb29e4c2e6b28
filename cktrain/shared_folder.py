"""Whether all ranks see the same folder: asked before the training, since a checkpoint is written together."""

from __future__ import annotations

import contextlib
import platform
import secrets
import time
from pathlib import Path

from cktrain.comm.group import Group

PATIENCE = 5.0
"""Seconds after which a file that another host wrote must be seen; network file systems keep listings for a while."""


def check_shared_folder(folder: Path, group: Group, patience: float = PATIENCE) -> None:
    """Make `folder`, and see that every rank finds in it what rank 0 writes there. Collective.

    Raises ValueError on all ranks, naming those that don't and their hosts, and OSError's text where rank 0 can't write.
    """
    if group.size == 1:
        return
    host, word = platform.node(), secrets.token_hex(8)
    mark, problem = folder / f".shared-{word}", ""
    if group.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(word)
        except OSError as error:
            problem = f"rank 0 ({host}) cannot write to {folder.absolute()}: {error.strerror}"
    told, word, writer = group.broadcast_bytes(f"{problem}\n{word}\n{host}".encode()).decode().split("\n")
    try:
        if not told and group.rank != 0 and not _seen(folder / f".shared-{word}", word, patience):
            problem = f"rank {group.rank} ({host}) does not see in {folder.absolute()} what rank 0 ({writer}) writes there"
        problems = [text.decode() for text in group.all_gather_bytes(problem.encode())]
    finally:
        if group.rank == 0:
            _remove(mark)
    if any(problems):
        raise ValueError(
            f"[checkpoint] {'; '.join(text for text in problems if text)}. "
            "Put run.dir on a file system that all hosts share, under the same path."
        )


def _remove(mark: Path) -> None:
    with contextlib.suppress(OSError):  # where it could not be written
        mark.unlink()


def _seen(file: Path, word: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            if file.read_text() == word:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
