"""What a run minimises: an objective turns a micro-batch and the model into a loss sum and gradients.

The last stage of the pipeline asks it once per micro-batch, for the stream x (N, C) after the last block. It returns the
unnormalised sum of the losses and how many things they are of; the division by what the whole global batch has happens
once, in the optimizer's scale. Which labels count is the batch's matter (`Batch.labels`, -100 does not).

What an objective must know beside the micro-batch it `prepare`s on all ranks before the step's first forward, and leaves in
the batches: `loss` is a function of its arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cktrain.data.loader import Batch
from cktrain.data.shards import Split
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer

if TYPE_CHECKING:
    from cktrain.parallel.pipeline import Stage


class LossSums(NamedTuple):
    """Of a micro-batch, or of several."""

    loss: float
    """The sum of the losses."""
    terms: int
    """How many losses that are: the mean is over these."""
    labels: int
    """Tokens with a label."""
    measures: tuple[float, ...] = ()
    """Sums of what the objective's `measures` name, over the same terms."""

    @staticmethod
    def total(each: Sequence[LossSums]) -> LossSums:
        """The sums of several micro-batches of one objective; of none, zeros without measures."""
        if not each:
            return NOTHING
        losses, terms, labels, measures = zip(*each, strict=True)
        return LossSums(sum(losses), sum(terms), sum(labels), tuple(map(sum, zip(*measures, strict=True))))


NOTHING = LossSums(0.0, 0, 0)


class Objective(Protocol):
    """A loss over micro-batches."""

    measures: tuple[str, ...]
    """What is measured beside the loss, by the names in metrics.jsonl."""
    counted: str
    """What the mean is over, in a word."""

    def prepare(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """The batches with what `loss` reads in them. Collective over the pipeline's and the tensor ranks."""

    def loss(self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool) -> LossSums:
        """The sums of a micro-batch whose stream after the last block is x (N, C).

        With `train` the gradient of the loss's sum with respect to x is left in `model.stream_gradient(slot)`, and those of
        the head's and the final norm's parameters are added.
        """

    @staticmethod
    def plan(model: Transformer, x: np.ndarray, labels: np.ndarray, slot: Slot, train: bool) -> None:
        """Ask the slot for what `loss` asks of it, in a dry run."""


class NextToken:
    """Cross-entropy of each id that follows: logits and both gradients in one pass over chunks of rows."""

    measures: tuple[str, ...] = ()
    counted = "tokens"

    def prepare(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """As `Objective.prepare`: nothing."""
        return list(batches)

    def loss(self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool) -> LossSums:
        """As `Objective.loss`."""
        total, count = model.loss(x, batch.labels, slot, train)
        return LossSums(total, count, count)

    @staticmethod
    def plan(model: Transformer, x: np.ndarray, labels: np.ndarray, slot: Slot, train: bool) -> None:
        """As `Objective.plan`."""
        model.loss(x, labels, slot, train)
