"""The small vector of a step: what all ranks must know of each other, reduced once over the world in fp64.

| entry | who contributes | so it is the sum over |
|---|---|---|
| loss sum of each micro-batch | last stage, tensor rank 0, at the micro-batch's place in the global batch | data |
| number of valid targets | last stage, tensor rank 0 | data |
| squared gradient norm | each rank, of the elements that it counts | all axes |
| stop, trouble | each rank | all axes |
| seconds of training | rank 0 | none: all go by its clock |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.parallel.ranks import Ranks


@dataclass(frozen=True)
class StepSums:
    """What all ranks know after the reduction."""

    loss_sum: float
    tokens: int
    """Valid targets in the global batch."""
    squared_norm: float
    """Of the unnormalised gradient of the whole model; not finite when any element of it is not."""
    stop: bool
    """Whether any rank was asked to stop."""
    trouble: bool
    """Whether any rank could not read its part of the batch, or has met something else since the last sums."""
    seconds: float
    """Of training so far, by rank 0's clock."""


def reduce_step(
    ranks: Ranks,
    losses: Sequence[float],
    tokens: int,
    squared_norm: float = 0.0,
    stop: bool = False,
    trouble: bool = False,
    seconds: float = 0.0,
) -> StepSums:
    """Reduce this rank's sums over the world; `losses` are of its micro-batches, as many on every rank."""
    count = len(losses)
    vector = np.zeros(count * ranks.data.size + 5, np.float64)
    if ranks.reports_loss:
        first = ranks.data.rank * count
        vector[first : first + count] = losses
        vector[-5] = tokens
    vector[-4:] = squared_norm, stop, trouble, seconds if ranks.world.rank == 0 else 0.0
    with ranks.comm_timer:
        ranks.world.all_reduce(vector, "sum")
    total = 0.0
    for loss in vector[:-5].tolist():  # in the order of the global batch, whatever the ranks
        total += loss
    squared, stops, troubles, clock = vector[-4:].tolist()
    return StepSums(total, int(vector[-5]), squared, stops > 0, troubles > 0, clock)
