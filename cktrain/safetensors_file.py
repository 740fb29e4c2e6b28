"""Reads and writes safetensors files a piece of a tensor at a time.

The `safetensors` package wants all tensors of a file at once to write it; here a model is never in memory
twice: a tensor is read or written in pieces of whole rows. The format
(https://github.com/huggingface/safetensors): the header's size as a 64-bit little-endian number, a JSON
header {name: {dtype, shape, data_offsets}}, then the data.

Shapes: a tensor is (rows, …); a piece is (some of the rows, …).
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Protocol

import ml_dtypes
import numpy as np
from pydantic import BaseModel, Field

from cktrain.foreign_file import checked, parse_json, taken_for_another

PIECE_BYTES = 16 << 20
DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_HEADER_LIMIT = 100 << 20  # the format's own


class Rows(Protocol):
    """What can be written: an array, or what makes an array's rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy has it."""

    @property
    def size(self) -> int:
        """Elements."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some rows."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type as the format names it, its shape and the offset of its first byte."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def block_type(self) -> str:
        """Of what is stored in blocks, ggml's name of them; empty for numbers, which safetensors alone hold."""
        return ""

    def block_pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, blocks (n, bytes) uint8) in order, of a tensor with a `block_type`."""
        raise NotImplementedError

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some rows, read. Raises ValueError as `pieces`."""
        start, stop, _ = rows.indices(self.shape[0])
        return np.concatenate([values for _, values in self.pieces(start, stop)])

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, values): the tensor's rows [start, stop) in order, values (rows, …) of the stored type."""
        dtype = np.dtype(DTYPES[self.dtype])
        row = math.prod(self.shape[1:])
        first, last = start, self.shape[0] if stop is None else stop
        for part in _row_slices((last - first, *self.shape[1:]), dtype.itemsize):
            rows = slice(first + part.start, first + part.stop)
            count = (rows.stop - rows.start) * row
            start = self.start + rows.start * row * dtype.itemsize
            try:
                values = np.fromfile(self.file, dtype, count, offset=start)
            except OSError as error:
                raise ValueError(
                    f"[safetensors] {self.file}: {self.name} cannot be read: {error.strerror or error}. {_remedy(error)}"
                ) from None
            if values.size != count:
                raise ValueError(
                    f"[safetensors] {self.file}: {self.name} ends early, the file has become shorter since it was "
                    "opened. Fetch it again."
                )
            yield rows, values.reshape(-1, *self.shape[1:])


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a file; sizes are checked against the file's. Raises ValueError when it is damaged."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                stream.seek(0)
                if (kind := taken_for_another(stream.read(64))) is not None:
                    raise ValueError(f"[safetensors] {file}: it is {kind}.")
                raise ValueError(
                    f"[safetensors] {file}: {size:,} bytes do not hold the header of {length:,} bytes that they "
                    "announce. "
                    "The file is truncated or no safetensors file: fetch it again."
                )
            text = stream.read(length)
    except OSError as error:
        raise ValueError(
            f"[safetensors] {file}: it cannot be read: {error.strerror or error}. {_remedy(error)}"
        ) from None
    remedy = "The header is damaged: fetch the file again."
    header = parse_json(text, dict[str, dict[str, Any]], name=str(file), area="safetensors", remedy=remedy)
    header.pop("__metadata__", None)
    specs = checked(header, dict[str, _Spec], name=str(file), area="safetensors", remedy=remedy)
    try:
        found = [_entry(name, file, 8 + length, spec) for name, spec in specs.items()]
    except ValueError as error:
        raise ValueError(f"[safetensors] {file}: {error}. {remedy}") from None
    for tensor, end in found:
        if end > size:
            raise ValueError(
                f"[safetensors] {file}: {tensor.name} ends at byte {end:,} and the file has {size:,}. "
                "The file is truncated: fetch it again."
            )
    at = 8 + length
    for tensor, end in sorted(found, key=lambda entry: (entry[0].start, entry[1])):
        if tensor.start != at:
            raise ValueError(
                f"[safetensors] {file}: {tensor.name} begins at byte {tensor.start:,}, and what stands before it ends at "
                f"{at:,}. {remedy}"
            )
        at = end
    if at != size:
        raise ValueError(
            f"[safetensors] {file}: {size - at:,} bytes follow the last tensor. The file is damaged: fetch it again."
        )
    return [tensor for tensor, _ in found]


def _remedy(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return (
            "It was deleted meanwhile; a run that goes on deletes its older checkpoints (checkpoint.keep). Try again, or "
            "give a copy."
        )
    return "Check the file, its permissions and its disk."


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a file's header keeps beside its tensors, after `read_header` has checked the file."""
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    found = header.get("__metadata__")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


class _Spec(BaseModel):
    """What the header says of a tensor."""

    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=32)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=2, max_length=2)]


def _entry(name: str, file: Path, data: int, spec: _Spec) -> tuple[StoredTensor, int]:
    begin, end = spec.data_offsets
    tensor = StoredTensor(name, file, spec.dtype, tuple(spec.shape), data + begin)
    shape = tensor.shape
    if tensor.dtype in DTYPES and end - begin != math.prod(shape) * np.dtype(DTYPES[tensor.dtype]).itemsize:
        raise ValueError(f"{name} has {end - begin:,} bytes for {tensor.dtype} {shape}")
    return tensor, data + end


def write_safetensors(
    file: Path,
    tensors: Sequence[tuple[str, Rows]],
    dtype: str,
    digest: Any = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write (name, array) pairs, converted to `dtype` (a name of the format), and sync the file; returns its bytes.

    `metadata` are texts that the header keeps. `digest`, of hashlib, is fed what is written, in another thread while it is
    written. Arrays may be strided views, and need not be in memory (`Rows`).
    Raises OSError when the disk is full, ValueError when a weight is NaN or infinite in the written type.
    """
    kind = np.dtype(DTYPES[dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, array in tensors:
        begin, end = end, end + array.size * kind.itemsize
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream, ThreadPoolExecutor(1) as other:

        def write(data: Any) -> None:
            digested = None if digest is None else other.submit(digest.update, data)
            stream.write(data)
            if digested is not None:
                digested.result()

        write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors:
            for rows in _row_slices(array.shape, kind.itemsize):
                piece = to_finite(array[rows], kind, f"{name} of the model")
                write(np.ascontiguousarray(piece).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
    return 8 + len(text) + end


def to_finite(values: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """The values in `dtype`. Raises ValueError, naming `what`, when one is NaN or infinite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(dtype, copy=False)
    finite = np.isfinite(converted)
    if not finite.all():
        bad = int(finite.size - np.count_nonzero(finite))
        raise ValueError(
            f"[safetensors] {what}: {bad:,} of these {finite.size:,} weights are NaN or infinite in {dtype}. "
            "Use weights from before the model diverged."
        )
    return converted


def _row_slices(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    """Slices of the first dimension that hold about PIECE_BYTES each."""
    step = max(1, PIECE_BYTES // max(1, math.prod(shape[1:]) * itemsize))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
