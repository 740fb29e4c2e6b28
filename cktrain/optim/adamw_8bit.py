"""AdamW with moments of 8 bits: 2 bytes of state per parameter instead of 8.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization". A moment is a byte per element and a scale for 256
neighbours (`cython_kernels/dynamic_map.py`); it is rounded after it was used. Parameters of fewer than 4,096 elements, which
are norms and biases, keep numbers of 32 bits, as in bitsandbytes.

Blocks are counted from a parameter's first element on this tensor rank, and data ranks never cut one (`block`): a run's
numbers are the same for any number of data ranks and stages. A checkpoint holds the numbers that the bytes stand for, which
become the same bytes again under such a layout; tensor ranks that cut rows have blocks of their own.

    n elements of a parameter on this rank: bytes (n) uint8, scales (ceil(n / 256)) f32
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.cython_kernels.dynamic_map import BLOCK, SIGNED, UNSIGNED, DynamicMap
from cktrain.memory.arena import CACHE_LINE, Arena, round_up
from cktrain.memory.param import Param
from cktrain.memory.param_store import Segment
from cktrain.optim.optimizer import AdamW, Piece
from cktrain.safetensors_file import Rows

SMALLEST = 4096
"""Elements of the smallest parameter whose moments are bytes."""
MAPS = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
_AT_ONCE = 4096 * BLOCK
"""Elements that are read from a checkpoint at a time."""


@dataclass(frozen=True)
class _Bytes:
    """A moment of the elements [start, stop) of one parameter."""

    map: DynamicMap
    codes: np.ndarray
    scales: np.ndarray

    def numbers(self, first: int, stop: int) -> np.ndarray:
        """What the bytes [first, stop) stand for."""
        block = first // BLOCK
        return self.map.numbers_of(self.codes[first:stop], self.scales[block:], first - block * BLOCK)


@dataclass(frozen=True)
class _BytesAsRows:
    """Numbers that are made when they are asked for: rows of `shape` from a byte on."""

    moment: _Bytes
    first: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some rows."""
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        return self.moment.numbers(self.first + start * width, self.first + stop * width).reshape(
            -1, *self.shape[1:]
        )


class AdamW8bit(AdamW):
    """`state` has a moment's bytes as NAME.bytes and NAME.scales, and as NAME the numbers of small parameters."""

    block = BLOCK

    def apart(self, param: Param) -> bool:
        """Whether its moments are bytes: by the size of the whole parameter, so that every layout says the same."""
        return math.prod(param.global_shape) >= SMALLEST

    def numbers_of(self, apart: bool) -> tuple[str, ...]:
        """Both moments of small parameters."""
        return () if apart else self.moments

    def moment_rows(self, moment: str, start: int, shape: tuple[int, ...]) -> Rows:
        """As `Optimizer.moment_rows`."""
        found = self._find(moment, start)
        return super().moment_rows(moment, start, shape) if found is None else _BytesAsRows(*found, shape)

    def fill_moment(
        self, moment: str, start: int, stop: int, read: Callable[[int, np.ndarray], None]
    ) -> None:
        """As `Optimizer.fill_moment`."""
        found = self._find(moment, start)
        if found is None:
            super().fill_moment(moment, start, stop, read)
            return
        kept, first = found
        assert first == 0 and stop - start == kept.codes.size, "blocks are filled whole"
        for low in range(0, stop - start, _AT_ONCE):
            high = min(low + _AT_ONCE, stop - start)
            numbers = np.empty(high - low, kept.scales.dtype)
            read(start + low, numbers)
            kept.map.encode(kept.codes[low:high], kept.scales[low // BLOCK : -(-high // BLOCK)], numbers)

    def _allocate(self, segments: Sequence[Segment]) -> None:
        super()._allocate(segments)
        f32 = self.params.numerics.master_dtype
        large = [segment for segment in segments if segment.param is not None]
        sizes = [segment.stop - segment.start for segment in large]
        scales = sum(-(-size // BLOCK) for size in sizes)
        each = round_up(sum(sizes), CACHE_LINE) + round_up(scales * f32.itemsize, CACHE_LINE)
        arena = Arena("optimizer", each * len(self.moments))
        self._bytes: dict[str, dict[tuple[int, int], _Bytes]] = {}
        for moment in self.moments:
            codes = self.state[f"{moment}.bytes"] = arena.array((sum(sizes),), np.dtype(np.uint8))
            scale = self.state[f"{moment}.scales"] = arena.array((scales,), f32)
            codes.fill(MAPS[moment].zero)
            kept = self._bytes[moment] = {}
            first = block = 0
            for segment, size in zip(large, sizes, strict=True):
                blocks = -(-size // BLOCK)
                kept[segment.start, segment.stop] = _Bytes(
                    MAPS[moment], codes[first : first + size], scale[block : block + blocks]
                )
                first, block = first + size, block + blocks

    def _find(self, moment: str, start: int) -> tuple[_Bytes, int] | None:
        """Where the flat element `start` has its byte; None: it has none."""
        for (low, high), kept in self._bytes[moment].items():
            if low <= start < high:
                return kept, start - low
        return None

    def _piece(self, segment: Segment) -> Piece:
        piece = super()._piece(segment)
        for moment in self.moments if segment.param is not None else ():
            kept = self._bytes[moment][segment.start, segment.stop]
            piece.moments.extend((kept.codes, kept.scales))
        return piece

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        kernels = self.params.numerics.kernels
        self._adamw(
            kernels.adamw_step if piece.param is None else kernels.adamw_8bit_step,
            piece,
            lr,
            grad_scale,
            step,
        )
