"""A GGUF file in the place of a Hugging Face folder: the values of its config.json, its side files, its tensors.

Tensors have Hugging Face's names, shapes and order of rows, and are dequantized a piece at a time. Blocks become fp32
values, exactly what llama.cpp takes them for; a frozen matrix of blocks is kept in bf16 (`StoredTensor.dtype`), whose
rounding is far below that of 4 bits and a quarter of that of Q8_0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cktrain.hf.gguf_file.architectures import to_halves
from cktrain.hf.gguf_file.hyperparameters import architecture_of, read_hyperparameters
from cktrain.hf.gguf_file.reader import AGAIN, BlockTensor, GGUFFile, block_types, read_gguf
from cktrain.hf.gguf_file.rope_keys import FACTORS
from cktrain.hf.gguf_file.tokenizer_in import (
    end_ids,
    has_tokenizer,
    json_bytes,
    special_token_ids,
    tokenizer_files,
)
from cktrain.safetensors_file import PIECE_BYTES, StoredTensor
from cktrain.side_files import CONFIG_FILE, GENERATION_FILE, SideFiles

PLAIN: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
"""Block types that are one number each."""


@dataclass(frozen=True)
class GGUFTensor(StoredTensor):
    """A tensor under Hugging Face's name and in its order of rows."""

    kind: str
    """Its block type; `dtype` is BF16 where that is no type of safetensors."""
    row_bytes: int
    head_dim: int
    """Where its rows stand in llama.cpp's order, the rows of a head; else 0."""
    added: float = 0.0
    """What its file has beyond Hugging Face's values: 1 in Gemma's norms, which are vectors of F32."""

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, values) in order; values are of the stored type, fp32 for blocks. ValueError as `StoredTensor.pieces`."""
        last = self.shape[0] if stop is None else stop
        if len(self.shape) == 1:
            values = self._reordered(self._read(0, 1).reshape(-1))[start:last]
            yield slice(start, last), values - values.dtype.type(self.added) if self.added else values
            return
        for first, end in self._spans(start, last):
            values = self._reordered(self._read(first, end).reshape(-1, *self.shape[1:]))
            rows = slice(max(first, start), min(end, last))
            yield rows, values[rows.start - first : rows.stop - first]

    @property
    def block_type(self) -> str:
        """As `StoredTensor.block_type`."""
        return "" if self.kind in PLAIN else self.kind

    def block_pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """As `StoredTensor.block_pieces`: of a matrix, in Hugging Face's order of rows."""
        for first, end in self._spans(0, self.shape[0]):
            yield slice(first, end), self._reordered(self._read_bytes(first, end))

    def _spans(self, start: int, last: int) -> Iterator[tuple[int, int]]:
        """Whole heads of rows that hold [start, last), some at a time."""
        step = max(1, PIECE_BYTES // (4 * math.prod(self.shape[1:])))
        unit = self.head_dim or 1
        step = max(unit, step // unit * unit)
        for first in range(start // unit * unit, last, step):
            yield first, min(first + step, self.shape[0])

    def _reordered(self, values: np.ndarray) -> np.ndarray:
        return to_halves(values, self.head_dim) if self.head_dim else values

    def _read(self, first: int, end: int) -> np.ndarray:
        """Rows of the file, dequantized: (rows, values of a row)."""
        data = self._read_bytes(first, end)
        if self.kind in PLAIN:
            return data.reshape(-1).view(PLAIN[self.kind]).reshape(end - first, -1)
        with np.errstate(all="ignore"):  # damaged scales are found as NaN or infinite weights
            return _dequantize(data, self.kind)

    def _read_bytes(self, first: int, end: int) -> np.ndarray:
        """Rows of the file: (rows, bytes of a row) uint8."""
        size = (end - first) * self.row_bytes
        try:
            data = np.fromfile(self.file, np.uint8, size, offset=self.start + first * self.row_bytes)
        except OSError as error:
            raise ValueError(
                f"[gguf] {self.file}: {self.name} cannot be read: {error.strerror or error}. Check the file and its disk."
            ) from None
        if data.size != size:
            raise ValueError(
                f"[gguf] {self.file}: {self.name} ends early, the file has become shorter. {AGAIN}"
            )
        return data.reshape(end - first, -1)


def open_gguf(path: str | Path) -> GGUFFile:
    """As `read_gguf`; the last file is kept, since config, tokenizer and tensors are read one after the other."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ValueError(f"[gguf] {path}: it cannot be read: {error.strerror}. Check the path.") from None
    return _kept(str(path), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=1)
def _kept(path: str, identity: tuple[int, ...]) -> GGUFFile:
    return read_gguf(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a config.json. Raises ValueError for what is not computed here."""
    file = open_gguf(path)
    divisors = {}
    for name in FACTORS:
        found = file.tensors.get(name)
        if found is not None:
            if found.kind != "F32" or len(found.shape) != 1:
                raise file.error(f"{name} is {found.kind} {found.shape}, not a list in F32. {AGAIN}")
            divisors[name] = next(_tensor(file, found, name, 0).pieces())[1]
    return {
        **read_hyperparameters(file, divisors),
        "torch_dtype": float_type(path),
        **special_token_ids(file),
    }


def read_tensors(path: str | Path) -> dict[str, GGUFTensor]:
    """The tensors by Hugging Face's names. Raises ValueError for one that the architecture has not."""
    file = open_gguf(path)
    architecture = architecture_of(file)
    name = architecture.name
    heads = file.need(f"{name}.attention.head_count", int)
    head_dim = (
        file.get(f"{name}.attention.key_length", int) or file.need(f"{name}.embedding_length", int) // heads
    )
    found: dict[str, GGUFTensor] = {}
    for tensor in file.tensors.values():
        if tensor.name in FACTORS:
            continue
        try:
            ours = architecture.ours(tensor.name)
        except KeyError:
            raise file.error(
                f"the tensor {tensor.name[:80]!r} is none of the architecture {name}, as it is read here. Give another "
                "model."
            ) from None
        permuted = architecture.permutes(ours)
        if permuted and (head_dim % 2 or tensor.shape[0] % head_dim):
            raise file.error(f"{tensor.name} has {tensor.shape[0]} rows, and a head has {head_dim}. {AGAIN}")
        found[ours] = _tensor(file, tensor, ours, head_dim if permuted else 0, architecture.added(ours))
    return found


def read_side(path: str | Path) -> SideFiles:
    """Tokenizer with its chat template, generation_config.json, config.json. ValueError for an unknown tokenizer."""
    file = open_gguf(path)
    ends = end_ids(file)
    ids = special_token_ids(file) | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})
    files = {CONFIG_FILE: json_bytes(read_config(path)), GENERATION_FILE: json_bytes(ids)}
    if has_tokenizer(file):
        files |= tokenizer_files(file)
    return SideFiles(files, found_in=str(path))


def float_type(path: str | Path) -> str:
    """The type of numbers that holds what most of the file's matrices hold: bfloat16 for those of blocks."""
    file = open_gguf(path)
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + math.prod(tensor.shape)
    kind = max(sizes, key=lambda name: sizes[name]) if sizes else "F32"
    return {"F64": "float32", "F32": "float32", "F16": "float16"}.get(kind, "bfloat16")


def block_kinds(path: str | Path) -> dict[str, int]:
    """How many tensors there are of each block type."""
    found: dict[str, int] = {}
    for tensor in open_gguf(path).tensors.values():
        found[tensor.kind] = found.get(tensor.kind, 0) + 1
    return found


def _tensor(file: GGUFFile, tensor: BlockTensor, name: str, head_dim: int, added: float = 0.0) -> GGUFTensor:
    if tensor.kind not in PLAIN:
        try:
            with np.errstate(all="ignore"):
                _dequantize(np.zeros((1, tensor.row_bytes), np.uint8), tensor.kind)
        except NotImplementedError:
            raise file.error(
                f"the tensor {tensor.name} is of type {tensor.kind}, which the package gguf does not dequantize. "
                "Convert the model to a common type."
            ) from None
    dtype = tensor.kind if tensor.kind in PLAIN else "BF16"
    return GGUFTensor(
        name, file.path, dtype, tensor.shape, tensor.start, tensor.kind, tensor.row_bytes, head_dim, added
    )


def _dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    gguf = block_types()
    values: np.ndarray = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    return values
