"""The small vector of a step: what all ranks must know of each other, reduced once over the world in fp64.

| entry | who contributes | so it is the sum over |
|---|---|---|
| loss sum of each micro-batch | last stage, tensor rank 0, at the micro-batch's place in the global batch | data |
| labels, what the mean is over, the objective's measures | last stage, tensor rank 0 | data |
| squared gradient norm | each rank, of the elements that it counts | all axes |
| stop, trouble | each rank | all axes |
| seconds of training | rank 0 | none: all go by its clock |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.parallel.ranks import Ranks
from cktrain.training.objective import LossSums


@dataclass(frozen=True)
class StepSums:
    """What all ranks know after the reduction."""

    loss_sum: float
    count: int
    """What the mean loss is over: labels of the global batch, or pairs."""
    tokens: int
    """Labels in the global batch."""
    measures: tuple[float, ...]
    """The objective's, as means over `count`; 0 of nothing."""
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
    sums: Sequence[LossSums],
    squared_norm: float = 0.0,
    stop: bool = False,
    trouble: bool = False,
    seconds: float = 0.0,
    measures: int = 0,
) -> StepSums:
    """Reduce this rank's sums over the world; `sums` are of its micro-batches, as many on every rank, each with so many
    `measures` where the head is.
    """
    micro_batches = len(sums)
    losses = micro_batches * ranks.data.size
    vector = np.zeros(losses + 6 + measures, np.float64)
    if ranks.reports_loss:
        first, mine = ranks.data.rank * micro_batches, LossSums.total(sums)
        vector[first : first + micro_batches] = [each.loss for each in sums]
        vector[losses : losses + 2] = mine.terms, mine.labels
        vector[losses + 6 :] = mine.measures or 0.0
    vector[losses + 2 : losses + 6] = squared_norm, stop, trouble, seconds if ranks.world.rank == 0 else 0.0
    with ranks.comm_timer:
        ranks.world.all_reduce(vector, "sum")
    total = 0.0
    for loss in vector[:losses].tolist():  # in the order of the global batch, whatever the ranks
        total += loss
    count, tokens, squared, stops, troubles, clock, *measured = vector[losses:].tolist()
    means = tuple(each / max(count, 1) for each in measured)
    return StepSums(total, int(count), int(tokens), means, squared, stops > 0, troubles > 0, clock)
