"""The layout of a product: what its input, output and their gradients are on this rank, so where the ranks talk.

    forward    rows = enter(x)               out <- product(rows) <- leave
    backward   dy   = enter_gradient(dy)     dx  <- product(dy)   <- leave_gradient

Here is the layout of a product that stands whole on a rank: nothing moves, and each product is written where it is
wanted. `parallel/tensor.py` has those that divide a matrix over the tensor group, and gives them to linears, the
embedding and the head.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.slot import Slot


class Whole:
    """All inputs and outputs stand on this rank."""

    moves = False
    """Whether ranks exchange rows."""
    ranks = 1
    """Ranks that divide the product."""
    adds_bias = True
    """Whether this rank adds the bias, and computes its gradient."""
    copied_rows: tuple[tuple[int, int], ...] = ()
    """Rows [start, stop) of the weight that `copies` neighbouring ranks have alike."""
    copies = 1

    def enter(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The rows that the product reads."""
        return x

    def product(
        self, out: np.ndarray, residual: np.ndarray | None, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(where the product is written, what it adds), before `leave`."""
        return out, residual

    def leave(self, out: np.ndarray, y: np.ndarray, residual: np.ndarray | None) -> None:
        """out = the output that belongs here, from what was written to `product`'s array, plus the residual."""

    def enter_gradient(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The rows of the output's gradient that both backward products read."""
        return dy

    def gradient(self, dx: np.ndarray, accumulate: bool, slot: Slot) -> tuple[np.ndarray, bool]:
        """(where the input's gradient is written, whether it is added), before `leave_gradient`."""
        return dx, accumulate

    def leave_gradient(self, dx: np.ndarray, gradient: np.ndarray, accumulate: bool) -> None:
        """dx = or += what belongs here of the gradient that was written to `gradient`'s array."""

    def sum_over_inputs(self, array: np.ndarray) -> None:
        """Sum a small array over the ranks that divide the product's inputs, in place."""

    def all_reduce(self, array: np.ndarray, op: str) -> None:
        """Reduce a small array over the ranks that divide the product, in place."""
