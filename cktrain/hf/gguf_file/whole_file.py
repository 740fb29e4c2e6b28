"""A GGUF file is there whole or not at all: it is written beside its name, and gets the name when it is on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cktrain.durable import sync


def refuse_existing(path: Path) -> None:
    """Raises ValueError where something has the name."""
    if os.path.lexists(path):
        raise ValueError(f"[gguf] {path} exists. Choose another name or delete it.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write to in the block, which closes the file. Raises OSError, saying so, when writing fails."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"[gguf] cannot write {path}: {error.strerror or error}. Free some space or check the folder; nothing was kept",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
