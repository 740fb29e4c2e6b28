"""A shuffle of any size in constant memory.

An epoch's order is a bijection of [0, size) computed index by index, so that no array of the epoch's size
exists and any step can be resumed without replaying the ones before it. It is a Feistel network (Luby &
Rackoff 1988) on the smallest even number of bits that holds `size`, with cycle walking (Black & Rogaway
2002): an output of `size` or more is fed in again until it falls inside; the domain is at most 4 times
larger, so few rounds of that are needed. Round keys come from Philox (Salmon et al. 2011), keyed by seed and
epoch; the round function is the finaliser of SplitMix64 (Steele, Lea & Flood 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_WORD = (1 << 64) - 1


class Permutation:
    """The order of epoch `epoch` over [0, size): a pure function of its three arguments."""

    def __init__(self, size: int, seed: int, epoch: int):
        assert size >= 1 and epoch >= 0, (size, epoch)
        self.size = size
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._shift = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        key = np.array([seed & _WORD, epoch & _WORD], dtype=np.uint64)
        self._keys = np.random.Philox(key=key).random_raw(_ROUNDS)

    def __call__(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Where the given positions (n), each in [0, size), go: int64 (n)."""
        x = np.array(positions, dtype=np.uint64, ndmin=1)
        assert x.size == 0 or x.max() < self.size, (x.max(), self.size)
        outside = np.ones(x.shape, dtype=bool)
        while outside.any():
            x[outside] = self._permute_domain(x[outside])
            outside = x >= self.size
        return x.astype(np.int64)

    def _permute_domain(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = x >> self._shift, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._shift) | right


def _mix(z: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
