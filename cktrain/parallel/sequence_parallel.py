"""The sequence-parallel region (Korthikanti et al. 2022): where tensor ranks divide the rows of the stream among them.

Shapes: N rows of a micro-batch, t tensor ranks; rank r has rows [r·N/t, (r+1)·N/t) of the divided arrays.
"""

from __future__ import annotations

import numpy as np

from cktrain.comm.group import Group
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.parallel.comm_timer import CommTimer


class SequenceParallelRegion(Module):
    """Gathers rows where the region ends, scatters them where it begins. Its arrays are had once for all layers."""

    def __init__(self, numerics: Numerics, group: Group, comm_timer: CommTimer) -> None:
        super().__init__("sequence_parallel", numerics)
        self.group = group
        self.comm_timer = comm_timer

    def own(self, whole: np.ndarray) -> np.ndarray:
        """This rank's rows of (N, …), a view."""
        count = whole.shape[0] // self.group.size
        return whole[self.group.rank * count : (self.group.rank + 1) * count]

    def gather(self, x: np.ndarray, slot: Slot, name: str) -> np.ndarray:
        """All rows (N, C) of x (N/t, C), in the array `name`, which the next gather of that name overwrites."""
        whole = slot.shared(self, name, (slot.rows, x.shape[1]), self.num.compute_dtype)
        if not self.num.is_dry:
            with self.comm_timer:
                self.group.all_gather(whole, x)
        return whole

    def partial(self, slot: Slot, width: int) -> np.ndarray:
        """The array (N, width) for partial sums that `scatter` is given next."""
        return slot.shared(self, "partial", (slot.rows, width), self.num.compute_dtype)

    def scatter(self, y: np.ndarray, partial: np.ndarray, residual: np.ndarray | None = None) -> None:
        """y (N/t, C) = this rank's rows of the sum over ranks of partial (N, C), plus residual (N/t, C).

        y may be the residual; `partial` is used up.
        """
        if residual is not None:
            own = self.own(partial)
            self.num.kernels.add(own, own, residual)
        if not self.num.is_dry:
            with self.comm_timer:
                self.group.reduce_scatter(y, partial, "sum")

    def all_reduce(self, array: np.ndarray, op: str) -> None:
        """Reduce a small array over the group, in place."""
        if not self.num.is_dry:
            with self.comm_timer:
                self.group.all_reduce(array, op)
