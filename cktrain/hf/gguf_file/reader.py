"""The container GGUF: keys, and for each tensor its type, shape and place. Nothing of the tensors is read here.

Format (github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 2 and 3, little-endian:

    "GGUF"  u32 version  u64 tensors  u64 keys
    each key      string name, u32 type, value       a string is u64 bytes and UTF-8; an array u32 type, u64 items, items
    each tensor   string name, u32 dimensions, u64 sizes (the contiguous one first), u32 block type, u64 offset
    padding to general.alignment, then the tensors' data, from which offsets count

A file may come from anywhere. Every count is held against the bytes that are left before anything is read or allocated
for it, so neither time nor memory is more than the file's size. The `gguf` package's own reader trusts the counts.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cktrain.foreign_file import shorten
from cktrain.hf.gguf_file import MAGIC

AGAIN = "The file is damaged or cut short: fetch it again."
_HEADER_LIMIT = 1 << 30
"""Bytes of all keys and tensors' descriptions; the largest vocabularies have some tens of MB."""
_MOST_DIMENSIONS = 4
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True)
class BlockTensor:
    """A tensor as the file describes it."""

    name: str
    kind: str
    """Its block type, as ggml calls it: F32, Q4_K."""
    shape: tuple[int, ...]
    """As numpy has it: the contiguous dimension is the last."""
    start: int
    """Its first byte in the file."""
    row_bytes: int
    """Of one row, a whole number of blocks."""


@dataclass(frozen=True)
class GGUFFile:
    """What a file holds besides the tensors' data."""

    path: Path
    keys: dict[str, Any]
    """Numbers, strings, booleans; lists of strings; arrays of numbers."""
    tensors: dict[str, BlockTensor]

    def error(self, what: str) -> ValueError:
        """An error about this file; `what` ends with one thing to do."""
        return ValueError(f"[gguf] {self.path}: {what}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A key's value, of int, float, bool, str or list (of either kind of array). ValueError for another type."""
        value = self.keys.get(key, default)
        if value is None or value is default:
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is float and (isinstance(value, float) or whole) and math.isfinite(value):
            return float(value)
        if (kind is list and isinstance(value, list | np.ndarray)) or (kind is int and whole):
            return value
        if kind in (bool, str) and isinstance(value, kind):
            return value
        raise self.error(
            f"{key} is {shorten(value)}, and {kind.__name__} is needed. Convert the model again."
        )

    def need(self, key: str, kind: type) -> Any:
        """As `get`, and ValueError where the key is missing."""
        value = self.get(key, kind)
        if value is None:
            raise self.error(f"the key {key} is missing. Convert the model again.")
        return value


def read_gguf(path: str | Path) -> GGUFFile:
    """The keys and the tensors' places. Raises ValueError, naming the file, for whatever is not whole or not known."""
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            file = _Header(path, stream).read()
    except OSError as error:
        raise ValueError(
            f"[gguf] {path}: it cannot be read: {error.strerror or error}. Check the path and its permissions."
        ) from None
    parts = file.get("split.count", int, 1)
    if parts > 1:
        raise file.error(f"it is one of {parts} parts. Join them with llama-gguf-split --merge first.")
    return file


def block_types() -> Any:
    """The package `gguf`. Raises ValueError, saying how to install it, where it is missing."""
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "[gguf] the package that knows the block types is not installed. pip install 'cktrain[gguf]', or pip "
            "install gguf."
        ) from None
    return gguf


class _Header:
    """Reads the header in order, and never beyond the file."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.at = 0

    def read(self) -> GGUFFile:
        if self.take(4, "the magic") != MAGIC:
            raise self.error("it does not begin with GGUF. Give a GGUF file.")
        version = self.number("<I", "the version")
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0
            what = "it is big-endian" if swapped else f"it is of version {version}"
            raise self.error(f"{what}; versions 2 and 3, little-endian, are read. Convert the model again.")
        tensors, keys = self.number("<Q", "the counts"), self.number("<Q", "the counts")
        self.room(keys, _SMALLEST_KEY, f"{keys:,} keys")
        found: dict[str, Any] = {}
        for number in range(keys):
            name = self.string(f"the name of key {number + 1} of {keys}")
            if name in found:
                raise self.error(f"the key {shorten(name)} stands twice. {AGAIN}")
            found[name] = self.value(self.number("<I", shorten(name)), name)
        self.room(tensors, _SMALLEST_TENSOR, f"{tensors:,} tensors")
        described = [self.tensor(number + 1, tensors) for number in range(tensors)]
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment < 1 << 20:
            raise self.error(f"general.alignment is {shorten(alignment)}. {AGAIN}")
        data = -(-self.at // alignment) * alignment
        placed: dict[str, BlockTensor] = {}
        for name, shape, kind, offset in described:
            if name in placed:
                raise self.error(f"the tensor {shorten(name)} stands twice. {AGAIN}")
            placed[name] = self.place(name, shape, kind, data + offset)
        return GGUFFile(self.path, found, placed)

    # ------------------------------------------------------------------------------------- what a header has

    def value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self.string(name)
        if kind == _ARRAY:
            inner, count = self.number("<I", name), self.number("<Q", name)
            if inner == _STRING:
                self.room(count, 8, f"{shorten(name)} with {count:,} strings")
                return [self.string(name) for _ in range(count)]
            dtype = self.dtype(inner, name)
            self.room(count, dtype.itemsize, f"{shorten(name)} with {count:,} numbers")
            return np.frombuffer(self.take(count * dtype.itemsize, name), dtype)
        dtype = self.dtype(kind, name)
        number = np.frombuffer(self.take(dtype.itemsize, name), dtype)[0].item()
        return bool(number) if kind == _BOOL else number

    def dtype(self, kind: int, name: str) -> np.dtype:
        if kind not in _NUMBERS:
            raise self.error(f"the key {shorten(name)} has the unknown type {kind}. {AGAIN}")
        return np.dtype(_NUMBERS[kind])

    def tensor(self, number: int, count: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string(f"the name of tensor {number} of {count}")
        dimensions = self.number("<I", name)
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise self.error(f"the tensor {shorten(name)} has {dimensions:,} dimensions. {AGAIN}")
        sizes = [self.number("<Q", name) for _ in range(dimensions)]
        return name, tuple(reversed(sizes)), self.number("<I", name), self.number("<Q", name)

    def place(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> BlockTensor:
        gguf = block_types()
        try:
            known = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise self.error(
                f"the tensor {shorten(name)} is of block type {kind}, which the package gguf does not know. "
                "Install a newer one (pip install -U gguf), or convert the model to a common type."
            ) from None
        if 0 in shape or shape[-1] % block:
            raise self.error(
                f"the tensor {shorten(name)} has shape {shape} and type {known.name}, of {block} values a block. {AGAIN}"
            )
        row_bytes = shape[-1] // block * block_bytes
        end = start + math.prod(shape[:-1]) * row_bytes
        if end > self.size:
            raise self.error(
                f"the tensor {shorten(name)} {shape} ends at byte {end:,}, and the file has {self.size:,}. {AGAIN}"
            )
        return BlockTensor(name, known.name, shape, start, row_bytes)

    # ---------------------------------------------------------------------------------------- bytes, in order

    def string(self, what: str) -> str:
        data = self.take(self.number("<Q", what), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(f"{shorten(what)} is no UTF-8 text (byte {self.at:,}). {AGAIN}") from None

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def room(self, count: int, smallest: int, what: str) -> None:
        """Raise ValueError unless so many things can stand in what is left of the file."""
        left = min(self.size, _HEADER_LIMIT) - self.at
        if count * smallest > left:
            raise self.error(f"it announces {what}, and {left:,} bytes are left at byte {self.at:,}. {AGAIN}")

    def take(self, count: int, what: str) -> bytes:
        if count > min(self.size, _HEADER_LIMIT) - self.at:
            raise self.error(
                f"{shorten(what)} needs {count:,} bytes at byte {self.at:,}, and the file has {self.size:,}. {AGAIN}"
            )
        data = self.stream.read(count)
        if len(data) != count:
            raise self.error(f"it has become shorter while it was read. {AGAIN}")
        self.at += count
        return data

    def error(self, what: str) -> ValueError:
        return ValueError(f"[gguf] {self.path}: {what}")


def decimal(value: float) -> float:
    """The number that was meant by an fp32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")
