"""Texts of many prompts side by side: a step reads each weight once for all of them.

A batch has places. A text takes a place, reads its prompt there alone, and then all places go on by one token in each step;
where a text ends, the next prompt begins. A row of a product is the same whatever rows stand beside it (docs/kernels.md),
so each text is what it is alone.

Shapes: B places, logits (B, V) of a step, (V,) of a place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from cktrain.generation.decoder import Decoder

Piece = TypeVar("Piece")


class Place:
    """Where one text at a time is read and written, as `generate` does it."""

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def follow(self, ids: Sequence[int]) -> np.ndarray:
        """The logits (V,) after these ids, at least one."""
        return self._batch.decoder.read(self._index, ids)

    def put(self, token: int) -> None:
        """The text goes on with this token, when all places do."""
        self._batch.put(self._index, token)

    def logits(self) -> np.ndarray:
        """The logits (V,) after the token that was put."""
        return self._batch.logits(self._index)


class Batch:
    """The places of a decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        count = len(decoder.cache.lengths)
        self.places = [Place(self, index) for index in range(count)]
        self._tokens = np.zeros(count, np.int32)
        self._is_put = np.zeros(count, bool)
        self._is_ready = np.zeros(count, bool)
        self._logits = np.empty(0)

    def put(self, index: int, token: int) -> None:
        """The text at a place goes on with this token."""
        self._tokens[index] = token
        self._is_put[index], self._is_ready[index] = True, False

    def logits(self, index: int) -> np.ndarray:
        """The logits (V,) after the token that was put at a place: whoever asks first makes the step of all."""
        if not self._is_ready[index]:
            assert self._is_put[index], index
            self._logits = self.decoder.step(self._tokens, self._is_put)
            self._is_ready, self._is_put = self._is_put, np.zeros_like(self._is_put)
        return self._logits[index]

    def leave(self, index: int) -> None:
        """The text at a place has ended."""
        self._is_put[index] = self._is_ready[index] = False
        self.decoder.forget(index)


def side_by_side(
    batch: Batch, begin: Callable[[int, Place], Iterator[Piece]], count: int
) -> Iterator[tuple[int, list[Piece]]]:
    """(number, its pieces) of the texts 0, 1, … count - 1, each as it ends; `begin(number, place)` begins one.

    Of every text at a place a piece is taken in turn, so that all of them have put their token before the next step.
    """
    waiting = iter(range(count))
    running: dict[int, tuple[int, Iterator[Piece], list[Piece]]] = {}
    while True:
        for index, place in enumerate(batch.places):
            number = None if index in running else next(waiting, None)
            if number is not None:
                running[index] = number, begin(number, place), []
        if not running:
            return
        for index, (number, pieces, taken) in list(running.items()):
            try:
                taken.append(next(pieces))
            except StopIteration:
                batch.leave(index)
                del running[index]
                yield number, taken
