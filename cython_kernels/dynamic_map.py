"""The numbers that a byte of an optimizer's moment may stand for, and which byte a number becomes.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", with bitsandbytes' dynamic map (Dettmers 2015): of
seven decades, the i-th from below, [10^(i-7), 10^(i-6)], is cut in 2^i equal intervals (2^(i+1) where there is no sign),
whose midpoints are numbers of the map; 0 and 1 are the others. So large magnitudes are kept to 0.7 % of the largest one
(0.35 % without a sign), and small ones down to a three-millionth of it.

BLOCK neighbours share a scale: the number of the largest magnitude, with its sign. A number divided by the scale becomes the
byte of the map's nearest number. The largest is then 1, which is kept exactly, so that the numbers that bytes stand for
become the same bytes again: a checkpoint may hold the numbers. (bitsandbytes divides by the magnitude, and keeps 0.993 of a
largest number that is negative.) A second moment above 0 never becomes 0, by which a step would be divided.

    n    elements of a flat array, in ceil(n / BLOCK) blocks, of which the last may be shorter
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 256
"""Numbers that share a scale."""
VANISHING = 2.0**-100
"""A block whose magnitudes are all below this becomes zeros."""
_CELL_BITS = 16
"""Bits of an fp32 magnitude below those that name its cell."""
_FIRST_CELL = 103 << 7
"""The upper bits of 2^-24: smaller magnitudes are in the first cell too."""
_DECADES = 7


@dataclass(frozen=True)
class DynamicMap:
    """One of the two maps; `zero` is the byte of 0, beyond which negative numbers count down."""

    zero: int

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """0 and the magnitudes in rising order, f32: of rank r is byte zero + r, and zero - r of its negative."""
        found = [np.zeros(1)]
        for decade in range(_DECADES):
            count = 2 ** (decade + (self.zero == 0))
            edges = np.linspace(0.1, 1.0, count + 1)
            found.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1))
        return np.concatenate([*found, np.ones(1)]).astype(np.float32)

    @cached_property
    def values(self) -> np.ndarray:
        """(256,) f32: the number of each byte, in rising order."""
        return np.concatenate([-self.magnitudes[self.zero : 0 : -1], self.magnitudes])

    @cached_property
    def limits(self) -> np.ndarray:
        """Of each rank the magnitude, f32, above which the next one is nearer; the last has none."""
        middle = (self.magnitudes[:-1].astype(np.float64) + self.magnitudes[1:]) / 2
        if self.zero == 0:
            middle[0] = 0.0
        return np.append(middle, np.inf).astype(np.float32)

    @cached_property
    def cells(self) -> np.ndarray:
        """uint8: of each cell, the magnitudes up to 1 with the same upper bits, the rank of the least one.

        No cell has more than one limit, so a magnitude's rank is its cell's or the next.
        """
        last = np.array(1.0, np.float32).view(np.uint32) >> _CELL_BITS
        least = (np.arange(_FIRST_CELL, int(last) + 1, dtype=np.uint32) << _CELL_BITS).view(np.float32)
        least[0] = 0.0
        return np.searchsorted(self.limits, least).astype(np.uint8)

    def numbers_of(self, codes: np.ndarray, scales: np.ndarray, first: int = 0) -> np.ndarray:
        """The numbers (n) of codes (n) uint8, in the scales' type; the first code is the `first` of its block."""
        blocks = (np.arange(first, first + codes.size) // BLOCK).astype(np.intp)
        return self.values.astype(scales.dtype)[codes] * scales[blocks]

    def encode(self, codes: np.ndarray, scales: np.ndarray, numbers: np.ndarray) -> None:
        """Write codes (n) uint8 and scales (ceil(n / BLOCK)) of numbers (n) of the scales' type."""
        whole = numbers.size // BLOCK
        end = whole * BLOCK
        self._encode(codes[:end], scales[:whole], numbers[:end].reshape(whole, BLOCK))
        if end < numbers.size:
            self._encode(codes[end:], scales[whole:], numbers[None, end:])

    def _encode(self, codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
        """Of x (blocks, numbers of a block)."""
        if x.size == 0:
            return
        most, least = x.max(axis=1), x.min(axis=1)
        scale = np.where(most >= -least, most, least)
        scale[np.abs(scale) < VANISHING] = 0.0
        y = x * np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)[:, None]
        rank = self._ranks(np.abs(y).reshape(-1))
        below = np.minimum(rank, self.zero)
        codes[...] = np.where(y.reshape(-1) < 0, self.zero - below, self.zero + rank)
        scales[...] = scale

    def _ranks(self, sizes: np.ndarray) -> np.ndarray:
        """The ranks of magnitudes (n); of fp32 by their cells, which takes a fraction of the time."""
        if sizes.dtype != np.float32:
            return np.searchsorted(self.limits.astype(sizes.dtype), sizes)
        cell = (sizes.view(np.uint32) >> _CELL_BITS).astype(np.int32) - _FIRST_CELL
        rank = self.cells[np.clip(cell, 0, self.cells.size - 1)].astype(np.int16)
        return rank + (sizes > self.limits[rank])


SIGNED = DynamicMap(127)
"""Of first moments."""
UNSIGNED = DynamicMap(0)
"""Of second moments, which are never negative."""
