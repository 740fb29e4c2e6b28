"""The rows of the stream that have a label, normed, chunk by chunk, and the way of their gradients back to the stream.

    stream x (N, C) --gather, norm--> chunk (n, C) … its gradient (n, C) --norm, scatter--> dx (N, C)

Rows without a label are in no chunk, so nothing is multiplied for them, and their dx is zero. Where every row has a label
the chunks are slices of the stream and nothing is gathered.

`WholeRows` norms a chunk at a time, in one array of a chunk's size. `DividedRows` is for a head whose columns tensor ranks
divide: the ranks' normed rows are gathered first, and the gradients of these rows are summed over the ranks last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.layout import Whole
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm

IGNORE_INDEX = -100


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some labelled rows."""

    index: slice | np.ndarray
    """Which of the N rows."""
    normed: np.ndarray
    """(n, C)."""
    gradient: np.ndarray
    """(n, C), for the gradient of `normed`; may be the same array."""
    statistics: tuple[np.ndarray, ...] = ()
    """The norm's, of these rows."""


class LabelledRows:
    """What both kinds share. `size` is the number of rows of a chunk, `index` int32 or None for all rows."""

    def __init__(self, labels: np.ndarray, size: int) -> None:
        labelled = labels != IGNORE_INDEX
        self.size = size
        self.count = int(np.count_nonzero(labelled))
        self.index = None if self.count == len(labels) else np.flatnonzero(labelled).astype(np.int32)

    def __iter__(self) -> Iterator[Chunk]:
        """Each labelled row once; one empty chunk where there is none, so that gradients are written all the same."""
        for start in range(0, max(self.count, 1), self.size):
            stop = min(start + self.size, self.count)
            yield self._chunk(start, stop)

    def _chunk(self, start: int, stop: int) -> Chunk:
        """The labelled rows [start, stop)."""
        raise NotImplementedError

    def put(self, chunk: Chunk, scratch: np.ndarray) -> None:
        """The chunk's gradient is computed; `scratch` (rows of f32) is memory that nobody needs any more."""
        raise NotImplementedError

    def finish(self) -> None:
        """All chunks were put."""
        raise NotImplementedError


class WholeRows(LabelledRows):
    """Rows of x (N, C); dx, which may be x, is written chunk by chunk."""

    def __init__(
        self,
        norm: Norm,
        x: np.ndarray,
        dx: np.ndarray | None,
        labels: np.ndarray,
        size: int,
        module: Module,
        slot: Slot,
    ) -> None:
        super().__init__(labels, size)
        self.norm, self.x, self.dx = norm, x, dx
        self.normed = slot.shared(module, "normed", (size, x.shape[1]), norm.num.compute_dtype)
        self.statistics = norm.statistics(x, slot)

    def _chunk(self, start: int, stop: int) -> Chunk:
        part = self.normed[: stop - start]
        here = tuple(array[start:stop] for array in self.statistics)
        if self.index is None:
            index: slice | np.ndarray = slice(start, stop)
            self.norm.apply(part, self.x[index], here)
        else:
            index = self.index[start:stop]
            self.norm.num.kernels.embedding_forward(part, index, self.x)  # gathers rows of x
            self.norm.apply(part, part, here)
        return Chunk(index, part, part, here)

    def put(self, chunk: Chunk, scratch: np.ndarray) -> None:
        """dx of the chunk's rows, through the norm."""
        assert self.dx is not None
        if isinstance(chunk.index, slice):
            rows = chunk.index
            self.norm.add_gradient(self.dx[rows], chunk.gradient, self.x[rows], chunk.statistics, False)
            return
        rows_of_x = _in_scratch(scratch, chunk.gradient)
        self.norm.num.kernels.embedding_forward(rows_of_x, chunk.index, self.x)
        self.norm.add_gradient(chunk.gradient, chunk.gradient, rows_of_x, chunk.statistics, False)
        self.dx[chunk.index] = chunk.gradient

    def finish(self) -> None:
        """dx of the rows without a label, and the norm's gradients."""
        assert self.dx is not None
        if self.index is not None:
            without = np.ones(len(self.x), bool)
            without[self.index] = False
            self.dx[without] = 0
        self.norm.grads_added()


class DividedRows(LabelledRows):
    """Rows of all tensor ranks, for x and dx (N/t, C) of this one."""

    def __init__(
        self,
        norm: Norm,
        x: np.ndarray,
        dx: np.ndarray | None,
        labels: np.ndarray,
        size: int,
        module: Module,
        slot: Slot,
        layout: Whole,
    ) -> None:
        super().__init__(labels, size)
        self.norm, self.x, self.dx, self.layout, self.slot = norm, x, dx, layout, slot
        self.normed = slot.shared(module, "normed rows", x.shape, norm.num.compute_dtype)
        norm.forward(self.normed, x, slot)
        self.rows = layout.enter(self.normed, slot)
        self.gradient, _ = layout.gradient(self.normed, False, slot)
        if self.index is not None:
            self.compact = self.gradient[: self.count]
            norm.num.kernels.embedding_forward(self.compact, self.index, self.rows)  # gathers rows

    def _chunk(self, start: int, stop: int) -> Chunk:
        if self.index is None:
            rows = slice(start, stop)
            return Chunk(rows, self.rows[rows], self.gradient[rows])
        part = self.compact[start:stop]
        return Chunk(self.index[start:stop], part, part)

    def put(self, chunk: Chunk, scratch: np.ndarray) -> None:
        """Nothing: the gradient stands where `finish` finds it."""

    def finish(self) -> None:
        """This rank's dx, from all ranks' gradients."""
        assert self.dx is not None
        gradient = self.gradient
        if self.index is not None:
            gradient = self.rows
            gradient[...] = 0
            gradient[self.index] = self.compact
        self.layout.leave_gradient(self.normed, gradient, False)
        self.norm.backward(self.dx, self.normed, self.x, self.slot)


def _in_scratch(scratch: np.ndarray, like: np.ndarray) -> np.ndarray:
    """An array of the shape and dtype of `like` in the memory of `scratch`, or, where that is too small, a new one."""
    if scratch.nbytes < like.nbytes:
        return np.empty_like(like)
    return scratch.reshape(-1).view(like.dtype)[: like.size].reshape(like.shape)
