"""Which files of a folder hold the ids of which split: nanoGPT's, llm.c's, OLMo-core's and Megatron's folders.

A folder of files of ids has train.bin, and val.bin for validation (nanoGPT), or any files NAME.bin (llm.c; Megatron's, each
with its NAME.idx) or NAME.npy (OLMo-core), in the order of their names. Where names say train or val, each belongs to that
split; where none says so, all are trained on.
"""

from __future__ import annotations

import re
from pathlib import Path

from cktrain.data.sniff import shown

_NAMES = {"train": "train.bin", "validation": "val.bin"}
_SUFFIXES = (".bin", ".npy")
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    "test": "test",
}


def id_files(folder: Path, split: str) -> list[Path]:
    """The files of ids of a split, in order; empty where the folder has none. Raises ValueError where that is not clear."""
    if (folder / _NAMES["train"]).exists() or (folder / _NAMES["validation"]).exists():
        named = folder / _NAMES[split]
        return [named] if named.exists() else []
    files = sorted(
        path for path in folder.iterdir() if path.suffix in _SUFFIXES and not path.name.startswith(".")
    )
    if len({path.suffix for path in files}) > 1:
        one, other = (next(path for path in files if path.suffix == suffix) for suffix in _SUFFIXES)
        raise ValueError(
            f"[data.shards] {shown(folder)}: holds files of ids of two kinds, {shown(one.name)} and {shown(other.name)}. "
            "Give each kind a folder of its own."
        )
    said = {path: _split_in(path.stem) for path in files}
    if not any(said.values()):
        return files if split == "train" else []
    if silent := [path for path in files if said[path] is None]:
        told = next(path for path in files if said[path])
        raise ValueError(
            f"[data.shards] {shown(folder)}: {shown(told.name)} says in its name what it is for, and "
            f"{shown(silent[0].name)} does not. Put train or val into its name, or move it away."
        )
    return [path for path in files if said[path] == split]


def is_prefix(path: Path) -> bool:
    """Whether this is what Megatron calls a dataset: PREFIX of PREFIX.bin and PREFIX.idx."""
    return not path.exists() and all(path.with_name(path.name + end).is_file() for end in (".bin", ".idx"))


def _split_in(name: str) -> str | None:
    return next((_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS), None)
