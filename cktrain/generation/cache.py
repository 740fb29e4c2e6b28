"""Keys and values of what a model has read, for every attention layer.

Shapes: keys, values (B, P, K, D) of B sequences and P positions; new ones k, v (1, S, K, D). Token i of a sequence stands in
row i mod P: P is the capacity, or, where a layer sees a window alone, the window and `SPARE_POSITIONS`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cktrain.memory.slot import Slot

SPARE_POSITIONS = 256
"""Kept beyond a window: so far a sequence can go back without being read again."""


class _Layer(NamedTuple):
    keys: np.ndarray
    values: np.ndarray
    window: int

    @property
    def positions(self) -> int:
        return int(self.keys.shape[1])


class KeyValueCache:
    """The keys and values of `batch` sequences of up to `capacity` tokens each.

    They are held in `dtype`; None: in that of the keys.
    """

    def __init__(self, capacity: int, batch: int = 1, dtype: np.dtype | None = None) -> None:
        self.capacity = capacity
        self.dtype = dtype
        self.lengths = np.zeros(batch, np.int32)
        """(B,) int32: tokens that every layer has read; made less, what comes next overwrites the rest."""
        self.sequence = 0
        """The one that is read by `extend` and `advance`."""
        self._reached = np.zeros(batch, np.int64)
        """(B,): positions that were ever written."""
        self._layers: dict[str, _Layer] = {}

    @property
    def length(self) -> int:
        """Tokens of the sequence at hand."""
        return int(self.lengths[self.sequence])

    @length.setter
    def length(self, length: int) -> None:
        """Go back to so many of them, or begin anew."""
        self.lengths[self.sequence] = length
        if length == 0:
            self._reached[self.sequence] = 0

    def keeps(self, length: int) -> bool:
        """Whether the sequence at hand can go on after so many of its first tokens: a window's ring may have come round."""
        reached = int(self._reached[self.sequence])
        needed = (
            (layer, max(0, length - layer.window + 1) if layer.window else 0)
            for layer in self._layers.values()
        )
        return length == 0 or all(first >= reached - layer.positions for layer, first in needed)

    def is_step(self, slot: Slot) -> bool:
        """Whether the slot's rows are one new token of each sequence."""
        return slot.sequence_length == 1 and slot.batch_size == len(self.lengths)

    def layer(
        self, name: str, heads: tuple[int, ...], dtype: np.dtype, window: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """All keys and values of a layer (B, P, K, D), of heads (K, D) that were computed in `dtype`."""
        if name not in self._layers:
            positions = min(self.capacity, window + SPARE_POSITIONS) if window else self.capacity
            shape = (len(self.lengths), positions, *heads)
            keys, values = (np.zeros(shape, self.dtype or dtype) for _ in range(2))
            self._layers[name] = _Layer(keys, values, window)
        found = self._layers[name]
        return found.keys, found.values

    def extend(self, name: str, k: np.ndarray, v: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Append k and v (1, S, K, D) of the sequence at hand; returns what they see (1, T, K, D), themselves at its end."""
        self.layer(name, k.shape[2:], k.dtype, window)
        layer = self._layers[name]
        return self._extend(layer, layer.keys, k), self._extend(layer, layer.values, v)

    def begin(self, count: int) -> None:
        """So many tokens of the sequence at hand are about to be read."""
        self._reached[self.sequence] = max(self._reached[self.sequence], self.length + count)

    def begin_step(self) -> None:
        """One token of each sequence is about to be read."""
        np.maximum(self._reached, self.lengths + 1, out=self._reached)

    def advance(self, count: int) -> None:
        """Every layer has been given `count` tokens of the sequence at hand."""
        self.length += count

    @property
    def memory(self) -> list[np.ndarray]:
        """All arrays."""
        return [array for layer in self._layers.values() for array in (layer.keys, layer.values)]

    def read_bytes(self, length: int) -> int:
        """What the next token of a sequence reads after `length` others."""
        return sum(
            2 * min(length + 1, layer.window or length + 1) * layer.keys[0, 0].nbytes
            for layer in self._layers.values()
        )

    def _extend(self, layer: _Layer, array: np.ndarray, x: np.ndarray) -> np.ndarray:
        held = array[self.sequence]
        begin, count = self.length, x.shape[1]
        end = begin + count
        assert x.shape[0] == 1 and end <= self.capacity, (x.shape, end, self.capacity)
        if layer.positions == self.capacity and held.dtype == x.dtype:
            held[begin:end] = x[0]
            return held[None, :end]
        first = max(0, begin - layer.window + 1) if layer.window else 0
        seen = x
        if first < begin:
            before = held[np.arange(first, begin) % layer.positions]
            seen = np.concatenate([before[None].astype(x.dtype), x], axis=1)
        kept = min(count, layer.positions)
        held[np.arange(end - kept, end) % layer.positions] = x[0, count - kept :]
        return seen
