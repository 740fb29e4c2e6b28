"""What an all_to_all moves: where its parts begin, and a sum by which every rank sees that two of them differ in a count.

Two ranks compare what passes between them: the one's count to the other must be the other's count from it. A third rank
does not see that, so each adds up its own counts, those that it sends times a number of the pair and its direction, those
that it receives times the same number of theirs, with the other sign. Where each pair agrees, all terms meet their
negative, and the sums of all ranks are 0 together, modulo 2^64; where one does not, they are not, since the numbers are odd;
and that the terms of several that do not meet by chance is as unlikely as a 64-bit hash that two texts share.

Legend: counts[r] elements to (of the input) or from (of the output) rank r; begins (size + 1) where those parts begin.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, eq=False)
class AllToAll:
    """An all_to_all of a rank: a key of what is made for it (equal ones are one, as long as they are in use)."""

    rank: int
    parts: np.ndarray
    """begins of the input and of the output, (2, size + 1) int64."""
    balance: int
    """This rank's sum, modulo 2^64."""


@lru_cache(maxsize=64)
def all_to_all_of(rank: int, input_counts: tuple[int, ...], output_counts: tuple[int, ...]) -> AllToAll:
    """The one of these counts."""
    counts = np.array([input_counts, output_counts], np.int64)
    begins = np.zeros((2, len(input_counts) + 1), np.int64)
    np.cumsum(counts, axis=1, out=begins[:, 1:])
    begins.flags.writeable = False
    to, source = _numbers(rank, len(input_counts))
    terms = counts[0].view(np.uint64) * to - counts[1].view(np.uint64) * source
    return AllToAll(rank, begins, int(terms.sum()))


@lru_cache(maxsize=64)
def _numbers(rank: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(size) uint64, odd: of this rank and each other one, and of each other one and this rank."""

    def number(source: int, to: int) -> int:
        return (
            int.from_bytes(hashlib.blake2b(f"{source} {to}".encode(), digest_size=8).digest(), "little") | 1
        )

    return (
        np.array([number(rank, r) for r in range(size)], np.uint64),
        np.array([number(r, rank) for r in range(size)], np.uint64),
    )


def spell_pair(dtype: str, to: int, source: int, peer: int) -> str:
    """What an all_to_all moves between its caller and one other rank, as a person would write it."""
    return f"all_to_all({dtype}, {to:,} to and {source:,} from rank {peer})"
