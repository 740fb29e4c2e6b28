"""Keys from which what is random in a sequence follows: pure functions of numbers, whatever the layout and the process.

SplitMix64 (Steele et al. 2014): a counter by the golden ratio, then two multiplications between xor-shifts, so that keys of
neighbouring numbers have nothing in common.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15


def sequence_keys(seed: int, first: int, count: int) -> Keys:
    """The keys (count) of the training sequences from number `first` on: how many were consumed before each."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return mix(numbers + np.uint64(hash_of(f"seed {seed}")))


def row_keys(sequences: Keys, length: int, module: str) -> npt.NDArray[np.int32]:
    """int32 (B·T): the keys of the rows of sequences of so many tokens in a module, by its name in the whole model."""
    places = np.arange(length, dtype=np.uint64) * np.uint64(_GOLDEN)
    keys = mix((sequences[:, None] ^ np.uint64(hash_of(module))) + places[None])
    return (keys.reshape(-1) >> np.uint64(32)).astype(np.uint32).view(np.int32)


def hash_of(text: str) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(counters: Keys) -> Keys:
    """SplitMix64's outputs for these counters."""
    z = counters * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
