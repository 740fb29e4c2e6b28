"""Direct preference optimization (Rafailov et al. 2023): of two answers the chosen one is to become more probable than the
rejected one, beside what a reference model says of both.

    s = log p(answer) - log p_ref(answer), divided by the answer's tokens where that is wanted
    d = beta · (s_chosen - s_rejected)
    loss of a pair = -(1 - e) · log sigmoid(d) - e · log sigmoid(-d)         e: label_smoothing (cDPO, Mitchell 2023)

The mean is over pairs, as TRL's is. The derivative by an answer's log-probability is one number, with which the gradient of
its tokens' cross-entropy is weighted: the head computes scores first and gradients then (`nn/head.py`).

A pair are two documents one behind the other in one sequence of packed rows (`data/chat/pairs.py`), so that it is never
divided over micro-batches or ranks. Shapes: labels, first (B, T); logp, row_weight (N,); answers (2·pairs,) in the order of
the rows, chosen before rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cktrain.config import Config, ObjectiveConfig
from cktrain.data.loader import IGNORE_INDEX, Batch
from cktrain.data.shards import Split
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer
from cktrain.training.objective import LossSums

if TYPE_CHECKING:
    from cktrain.parallel.pipeline import Stage

Floats = npt.NDArray[np.float64]


def kind_of_reference(config: Config) -> Literal["adapter_off", "precomputed"]:
    """That of a run whose adapter is resolved. Raises ValueError for one that cannot be."""
    adapter, asked = config.adapter, config.objective.reference
    alone = adapter is not None and not adapter.modules_to_save
    if asked == "adapter_off" and not alone:
        why = "there is no adapter" if adapter is None else "adapter.modules_to_save trains weights"
        raise ValueError(
            f"[objective] objective.reference is adapter_off, and {why}: switching an adapter off would not "
            "undo the training. Set objective.reference: precomputed."
        )
    if asked is not None:
        return asked
    return (
        "adapter_off" if alone and adapter is not None and adapter.from_pretrained is None else "precomputed"
    )


class References(Protocol):
    """Where the reference's log-probabilities come from (`reference.py`)."""

    def given(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """The batches with `Batch.reference`, on the ranks that have the head."""


@dataclass(frozen=True)
class Answers:
    """Which labelled rows belong to which answer."""

    rows: npt.NDArray[np.int64]
    """Of the N rows, those with a label."""
    answer: npt.NDArray[np.int64]
    """Of each of them, the number of its answer: even ones are chosen, odd ones rejected."""
    lengths: npt.NDArray[np.int64]
    """Labels of each answer."""

    @staticmethod
    def of(batch: Batch) -> Answers:
        """Those of packed rows of pairs."""
        assert batch.first is not None, "preference data are packed rows"
        labels = batch.labels.reshape(-1)
        starts = batch.first + np.arange(len(batch.first))[:, None] * batch.first.shape[1]
        rows = np.flatnonzero(labels != IGNORE_INDEX)
        documents, answer = np.unique(starts.reshape(-1)[rows], return_inverse=True)
        assert len(documents) % 2 == 0, "an answer without its pair"
        return Answers(rows, answer, np.bincount(answer, minlength=len(documents)))

    def sums(self, logp: np.ndarray) -> Floats:
        """The log-probability of each answer, of the labels' logp (N,): fp64 (2·pairs,)."""
        found = np.bincount(self.answer, weights=logp[self.rows], minlength=len(self.lengths))
        return found.astype(np.float64)  # of no answer it would be integers


@dataclass(frozen=True)
class PairLoss:
    """The loss of each of some pairs, fp64 (pairs,), and what it is made of."""

    loss: Floats
    gradient: Floats
    """(2·pairs,): of the loss, by each answer's log-probability."""
    rewards: Floats
    """(2·pairs,): beta · (log p - log p_ref)."""


def pair_loss(
    logp: Floats,
    reference: Floats,
    lengths: npt.NDArray[np.int64],
    beta: float,
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
) -> PairLoss:
    """The losses of pairs, of their answers' log-probabilities (2·pairs,), chosen and rejected in turn."""
    ratio = logp - reference
    slope = np.full(len(logp), beta)
    if length_normalized:
        slope /= lengths
    slope[1::2] *= -1
    scaled = slope * ratio
    d = scaled[0::2] + scaled[1::2]
    loss = (1 - label_smoothing) * np.logaddexp(0.0, -d) + label_smoothing * np.logaddexp(0.0, d)
    by_d = _sigmoid(d) - (1 - label_smoothing)
    return PairLoss(loss, slope * np.repeat(by_d, 2), beta * ratio)


def _sigmoid(x: Floats) -> Floats:
    """Without an overflow at either end."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


class Preference:
    """DPO; the reference's log-probabilities are found by `references` before each step."""

    measures: tuple[str, ...] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    )
    counted = "pairs"

    def __init__(self, config: ObjectiveConfig, references: References) -> None:
        self.config = config
        self.references = references

    def prepare(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """As `Objective.prepare`."""
        return self.references.given(stage, batches, split)

    def loss(self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool) -> LossSums:
        """As `Objective.loss`, of a batch that was prepared."""
        head = model.head
        assert head is not None
        answers, labels = Answers.of(batch), batch.labels.reshape(-1)
        assert batch.reference is not None, "prepare was not called"
        with slot.phase(head.role):
            row_logp, lse = head.score(x, labels, slot)
            logp, said = answers.sums(row_logp), self.config.said
            found = pair_loss(
                logp,
                batch.reference.reshape(-1),
                answers.lengths,
                said("beta"),
                said("label_smoothing"),
                said("length_normalized"),
            )
            if train:
                weight = np.zeros(len(labels), lse.dtype)
                weight[answers.rows] = -found.gradient[answers.answer]
                head.gradient(model.stream_gradient(slot), x, labels, weight, lse, slot)
        rewards, pairs = found.rewards.reshape(-1, 2), len(found.loss)
        margins = rewards[:, 0] - rewards[:, 1]
        measured = (
            rewards[:, 0].sum(),
            rewards[:, 1].sum(),
            margins.sum(),
            np.count_nonzero(margins > 0),
            logp[0::2].sum(),
            logp[1::2].sum(),
        )
        return LossSums(
            float(found.loss.sum()), pairs, len(answers.rows), tuple(float(each) for each in measured)
        )

    @staticmethod
    def plan(model: Transformer, x: np.ndarray, labels: np.ndarray, slot: Slot, train: bool) -> None:
        """As `Objective.plan`."""
        head = model.head
        assert head is not None
        labels = labels.reshape(-1)
        with slot.phase(head.role):
            logp, lse = head.score(x, labels, slot)
            if train:
                head.gradient(model.stream_gradient(slot), x, labels, logp, lse, slot)
