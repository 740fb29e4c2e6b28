"""Whether a prepared folder's shards are still those that were made with its dataset.json, before a run reads them.

dataset.json is written after all shards and holds the SHA-256 of each. A shard whose last change of any kind (its ctime,
which nobody can set) is not later than that of dataset.json was not touched since, and is not read for this. Others are: of
a folder that was copied perhaps all of them, at about 1 GB a second, by the ranks of a host together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from cktrain.data.shards import DATASET_FILE, SUFFIX, read_dataset
from cktrain.file_identity import sha256_of_file

log = logging.getLogger("cktrain")

_MUCH = 4 << 30
"""Bytes that take so long to read that it is said."""


def touched_shards(folder: str | Path) -> dict[Path, str]:
    """The shards that were changed after dataset.json was written, each with the SHA-256 that this has of it.

    Empty for what is no prepared folder, and for one of an older cktrain, which recorded none. Raises ValueError for a
    damaged dataset.json, and OSError for a shard that is not there.
    """
    folder = Path(folder)
    if not (folder / DATASET_FILE).is_file():
        return {}
    written = read_dataset(folder).get("written")
    if not isinstance(written, dict):
        return {}
    made = os.stat(folder / DATASET_FILE).st_ctime_ns
    files = {folder / name: str(digest) for name, digest in sorted(written.items()) if name.endswith(SUFFIX)}
    return {file: digest for file, digest in files.items() if os.stat(file).st_ctime_ns > made}


def refuse_changed_shards(folders: Iterable[str | Path], part: int = 0, parts: int = 1) -> None:
    """Hold every `parts`-th touched shard, from number `part`, against its digest.

    Raises ValueError, naming the file, for one that is another, and OSError for one that cannot be read.
    """
    touched = {file: digest for folder in folders for file, digest in touched_shards(folder).items()}
    mine = list(touched.items())[part::parts]
    size = sum(file.stat().st_size for file, _ in mine)
    if size > _MUCH:
        log.info(
            "data: %s bytes of shards were copied or touched since they were prepared, and are held against their digests",
            f"{size:,}",
        )
    for file, digest in mine:
        if sha256_of_file(file) != digest:
            raise ValueError(
                f"[data.shards] {file}: is not the shard that was prepared: {DATASET_FILE} beside it has another SHA-256. "
                "Put that one back, or prepare the data again."
            )
