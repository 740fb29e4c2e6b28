"""What a rank calls: as the engine carries it out, as numbers that ranks compare, and as words of a message."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.all_to_all import AllToAll, spell_pair
from cktrain.comm.reduction import DTYPES, OPS

KIND = {kind: number for number, kind in enumerate(_engine.KINDS)}
OP = {op: number for number, op in enumerate(OPS)}
DTYPE = {dtype: number for number, dtype in enumerate(DTYPES)}
_ROOT_NAMES = {"send": "to", "recv": "source"}
_DTYPE_NAMES = [str(dtype) for dtype in DTYPES] + ["bytes"]
DTYPE[np.dtype(np.uint8)] = _engine.BYTES_DTYPE

_engine.register_dtypes(
    [
        [d.num] if d.kind != "i" else [np.dtype(c).num for c in "ilq" if np.dtype(c).itemsize == d.itemsize]
        for d in DTYPES
    ]
)


@dataclass(slots=True)
class Call:
    """A collective whose arguments are checked, as each kind of group carries it out."""

    kind: str
    count: int
    """Elements, as all ranks count them."""
    output: np.ndarray
    input: np.ndarray
    begins: Sequence[int] | None = None
    """(size + 1) first element of each rank's part."""
    op: str = "sum"
    root: int = -1
    read: int = 0
    """Bytes of the input that peers may read where they lie."""
    extra: int = 0
    """Checksum of the counts per rank."""
    all_to_all: AllToAll | None = None
    """Of an all_to_all."""

    def header(self) -> tuple[int, int, int, int, int, int]:
        """What ranks compare, as _engine's `make` takes it."""
        return KIND[self.kind], DTYPE[self.input.dtype], OP[self.op], self.root, self.count, self.extra

    def addresses(self) -> tuple[int, int]:
        """Of the input and of the output."""
        return self.input.ctypes.data, self.output.ctypes.data


def spell(kind: int, dtype: int, op: int, root: int, count: int, extra: int) -> str:
    """A call as a person would write it."""
    name = _engine.KINDS[kind]
    if name == "barrier":
        return name
    if name == "all_to_all":
        if root >= 0:
            return spell_pair(_DTYPE_NAMES[dtype], count, extra, root)
        extra = 0
    words = [f"{_DTYPE_NAMES[dtype]}[{count:,}]" if count >= 0 else _DTYPE_NAMES[dtype]]
    if name in ("all_reduce", "reduce_scatter"):
        words.append(OPS[op])
    if root >= 0:
        words.append(f"{_ROOT_NAMES.get(name, 'root')}={root}")
    if extra:
        words.append(f"counts #{extra:08x}")
    return f"{name}({', '.join(words)})"


def checksum(counts: Sequence[int]) -> int:
    """Of counts per rank, for comparing calls."""
    return zlib.crc32(np.asarray(counts, np.int64).tobytes())
