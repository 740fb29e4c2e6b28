"""Reads what runs leave: metrics.jsonl, digests of folders, and the tensors of a checkpoint or of an exported folder.

Nothing of cktrain is used: a format that both sides read wrongly in the same way would go unnoticed. A checkpoint's
tensors are put together from blocks (`NAME[rows]`, `NAME[rows,columns]`) in whatever files of the folder they lie, so
that neither the layout nor the number of files matters. A checkpoint format whose names differ needs its line here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = re.compile(r"(.+)\[(\d+):(\d+)(?:,(\d+):(\d+))?\]")
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def newest_checkpoint(run: Path) -> Path:
    """The last complete checkpoint of a run's folder."""
    return max(marker.parent for marker in (run / "checkpoints").glob("step-*/COMPLETE"))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the safetensors files of a folder, whole, by name; bf16 and other types without a numpy
    twin as unsigned integers. Raises ValueError where blocks do not cover a tensor exactly.
    """
    whole: dict[str, np.ndarray] = {}
    blocks: dict[str, list[tuple[int, int, np.ndarray]]] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in _read_file(file):
            match = _BLOCK.fullmatch(name)
            if match is None:
                whole[name] = tensor
            else:
                blocks.setdefault(match[1], []).append((int(match[2]), int(match[4] or 0), tensor))
    for name, parts in blocks.items():
        whole[name] = _assemble(name, parts)
    return dict(sorted(whole.items()))


def _read_file(file: Path) -> list[tuple[str, np.ndarray]]:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        size = (stop - start) // max(1, math.prod(entry["shape"]))
        kind = _TYPES.get(entry["dtype"], f"<u{size}")
        found.append((name, np.frombuffer(raw[start:stop], kind).reshape(entry["shape"])))
    return found


def _assemble(name: str, parts: list[tuple[int, int, np.ndarray]]) -> np.ndarray:
    flat = parts[0][2].ndim == 1
    rows = max(row + part.shape[0] for row, _, part in parts)
    columns = 1 if flat else max(column + part.shape[1] for _, column, part in parts)
    tensor = np.zeros((rows, columns), parts[0][2].dtype)
    written = np.zeros((rows, columns), np.uint8)
    for row, column, part in parts:
        square = part.reshape(part.shape[0], -1)
        where = slice(row, row + square.shape[0]), slice(column, column + square.shape[1])
        tensor[where] = square
        written[where] += 1
    if not (written == 1).all():
        missing, twice = int((written == 0).sum()), int((written > 1).sum())
        raise ValueError(f"{name}: {missing:,} elements are in no block, {twice:,} in several")
    return tensor.reshape(-1) if flat else tensor
