"""What a run minimises: an objective turns a micro-batch and the model into a loss sum and gradients.

The last stage of the pipeline asks it once per micro-batch, for the stream x (N, C) after the last block. It returns the
unnormalised sum of the losses and how many labels counted; the division by the labels of the whole global batch happens
once, in the optimizer's scale. Which labels count is the batch's matter (`Batch.labels`, -100 does not).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cktrain.data.loader import Batch
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer


class Objective(Protocol):
    """A loss over micro-batches."""

    def loss(
        self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool
    ) -> tuple[float, int]:
        """(loss sum in nats, labels that count) of a micro-batch whose stream after the last block is x (N, C).

        With `train` the gradient of the sum with respect to x is left in `model.stream_gradient(slot)`, and those of the
        head's and the final norm's parameters are added.
        """


class NextToken:
    """Cross-entropy of each id that follows: logits and both gradients in one pass over chunks of rows."""

    def loss(
        self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool
    ) -> tuple[float, int]:
        """As `Objective.loss`."""
        return model.loss(x, batch.labels, slot, train)


OBJECTIVES: dict[str, type[Objective]] = {"next_token": NextToken}
"""The objectives that a run can ask for, by the name in its configuration (`objective.name`)."""
