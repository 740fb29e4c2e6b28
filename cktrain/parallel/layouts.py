"""Layouts of a product whose matrix is divided over the tensor group (Shoeybi et al. 2019).

    x (N/t, C) --gather--> (N, C) --column--> (N, O/t) …heads, activation… --row--> sum of (N, C) --scatter--> (N/t, C)

A column-divided product has some of the outputs: whole heads, the same features of gate and up, some words of
the vocabulary. A row-divided one has the inputs that belong to them; its products are partial sums. Between a row-divided
product and the next column-divided one the stream, its norms and residuals are divided by rows (sequence parallelism,
Korthikanti et al. 2022): a reduce-scatter ends the one, an all-gather begins the other, which together send what an
all-reduce would.

Shapes: t tensor ranks; N rows of a micro-batch; C hidden size; O output features of the whole matrix.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.layout import Whole
from cktrain.parallel.sequence_parallel import SequenceParallelRegion

Span = tuple[int, int]


class Column(Whole):
    """Some of the output features. Takes rows (N/t, C), computes on all N, and returns the rows' gradients summed."""

    moves = True

    def __init__(
        self, region: SequenceParallelRegion, copies: int = 1, copied_rows: tuple[Span, ...] = ()
    ) -> None:
        """`copies` neighbouring ranks hold the same `copied_rows`: key/value heads, where there are too few."""
        self.region = region
        self.ranks = region.group.size
        self.copies = copies
        self.copied_rows = copied_rows

    def enter(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """All rows (N, C)."""
        return self.region.gather(x, slot, "gathered")

    def gradient(self, dx: np.ndarray, accumulate: bool, slot: Slot) -> tuple[np.ndarray, bool]:
        """This rank's features' part of the gradient, for all rows."""
        return self.region.partial(slot, dx.shape[1]), False

    def leave_gradient(self, dx: np.ndarray, gradient: np.ndarray, accumulate: bool) -> None:
        """dx (N/t, C) = or += this rank's rows, summed over the ranks' features."""
        self.region.scatter(dx, gradient, dx if accumulate else None)

    def all_reduce(self, array: np.ndarray, op: str) -> None:
        """Over the tensor group."""
        self.region.all_reduce(array, op)


class Row(Whole):
    """Some of the input features. Its products are partial sums; the sums' rows (N/t, C) come back.

    The bias is added, and its gradient computed, by tensor rank 0.
    """

    moves = True

    def __init__(self, region: SequenceParallelRegion) -> None:
        self.region = region
        self.adds_bias = region.group.rank == 0

    def product(
        self, out: np.ndarray, residual: np.ndarray | None, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The partial sums of all rows; the residual is added to this rank's rows on their way."""
        return self.region.partial(slot, out.shape[1]), None

    def leave(self, out: np.ndarray, y: np.ndarray, residual: np.ndarray | None) -> None:
        """out (N/t, C) = this rank's rows of the sum + residual (N/t, C)."""
        self.region.scatter(out, y, residual)

    def enter_gradient(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """All rows (N, C)."""
        return self.region.gather(dy, slot, "gathered_gradient")

    def sum_over_inputs(self, array: np.ndarray) -> None:
        """Over the tensor group."""
        self.region.all_reduce(array, "sum")


class OwnRows(Whole):
    """A whole matrix, multiplied by this rank's rows alone (GPT-2's table of positions)."""

    def __init__(self, region: SequenceParallelRegion) -> None:
        self.region = region

    def enter(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """This rank's rows of ids (N)."""
        return self.region.own(x)
