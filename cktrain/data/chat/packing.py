"""Rows of many lengths into sequences of one length: best-fit decreasing.

The longest row comes first; each goes where it leaves the least room, or opens a sequence. No row is cut. The room of the
open sequences is a number whose bit s says that one has s tokens left, so the best fit is the lowest bit from a row's
length on.
"""

from __future__ import annotations

from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the rows in each sequence; every length is in [1, capacity]. The same lengths give the same packing."""
    sequences: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[row]
        assert 1 <= length <= capacity, (length, capacity)
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = capacity, len(sequences)
            sequences.append([])
        sequences[chosen].append(row)
        left = room - length
        with_room[left].append(chosen)
        rooms |= (1 << left) & ~1  # a full one is no room
    return sequences
