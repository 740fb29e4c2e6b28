"""Data parallelism: every data rank computes its rows of the global batch, then gradients are summed.

Ranks accumulate unnormalised sums, so the sum over ranks and micro-batches is the whole batch's gradient whatever the
split, and its scale is applied in the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cktrain.comm.group import Group
from cktrain.nn.params import FlatParams


@dataclass(frozen=True)
class StepSums:
    """What all data ranks know after a step's small vector was reduced over the data group."""

    loss_sum: float
    tokens: int
    """Valid targets in the global batch."""
    stop: bool
    """Whether any rank was asked to stop."""
    bad_data: bool
    """Whether any rank could not read its part of the batch."""


class DataParallel:
    """Reduces gradients and the step's sums over the data group, and broadcasts weights from its rank 0."""

    def __init__(self, group: Group, params: FlatParams) -> None:
        self.group = group
        self.params = params

    def broadcast_weights(self) -> None:
        """Rank 0's master weights to all ranks."""
        self.group.broadcast(self.params.data, root=0)
        self.params.refresh()

    def reduce_gradients(self) -> None:
        """Sum of all data ranks' flat gradients, in place; bitwise the same on all."""
        self.group.all_reduce(self.params.grad, "sum")

    def reduce_sums(
        self, loss_sum: float, tokens: int, stop: bool = False, bad_data: bool = False
    ) -> StepSums:
        """The small vector of a step, summed over the data group in fp64."""
        vector = np.array([loss_sum, tokens, stop, bad_data], np.float64)
        self.group.all_reduce(vector, "sum")
        return StepSums(float(vector[0]), int(vector[1]), bool(vector[2] > 0), bool(vector[3] > 0))
