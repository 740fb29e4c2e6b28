"""Distillation (Hinton et al. 2015): the model's distribution of each labelled token is to become that of a teacher.

    loss of a label = alpha · KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) · cross-entropy of the label

t are the teacher's logits and s the model's, T the temperature. It is the forward divergence, as TRL's GKD has it
with beta 0: its gradient is not multiplied by T², as in Hinton's paper. The mean is over labels.

The teacher is a second model in this process, whole on each rank that has the head. Its weights are frozen and keep their
file's dtype; its logits exist for a chunk of rows at a time, as the model's do (`Head.divergence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cktrain.config import Config, ObjectiveConfig
from cktrain.data.loader import Batch
from cktrain.data.same_tokenizer import tokenizer_differences
from cktrain.data.shards import Split
from cktrain.hf.freeze import hold_as_stored
from cktrain.hf.tensors import load_weights
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot
from cktrain.models.build import build_model
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import SavedModel, find_saved_model
from cktrain.side_files import SideFiles
from cktrain.training.objective import LossSums

if TYPE_CHECKING:
    from cktrain.parallel.pipeline import Stage


class Teacher:
    """A frozen model that reads the same micro-batches."""

    def __init__(self, saved: SavedModel, numerics: Numerics, batch_size: int, length: int) -> None:
        """Build it and give it memory; `read` reads its weights."""
        self._saved = saved
        config = saved.config.model_copy(update={"freeze": []})
        self.model = build_model(config, numerics, length, True)
        for param in self.model.params():
            param.tag(trainable=False)
        hold_as_stored(saved.path, config, self.model)
        self._params = ParamStore(self.model.params(), numerics, train=False)
        head = self.model.head
        assert head is not None
        self.head = head
        self.slot = self.model.plan(batch_size, length, train=False).allocate()[0]

    def read(self) -> None:
        """Read its weights. Raises ValueError for files that cannot be read."""
        load_weights(self._saved.path, self._saved.config, self._params)

    def stream(self, batch: Batch) -> np.ndarray:
        """The stream (N, C) after its last block, for a micro-batch."""
        self.slot.describe(batch.positions, batch.first)
        return self.model.hidden(batch.ids, self.slot)


def find_teacher(config: Config, side: SideFiles | None) -> SavedModel:
    """The saved teacher of a run whose model is resolved, whose tokenizer's files are `side`, if it has one.

    Raises ValueError for a teacher with another vocabulary, or too few positions.
    """
    path, model = config.objective.teacher, config.model
    assert path is not None
    saved, remedy = find_saved_model(path), "Take a teacher of the model's family."
    if not saved.hugging_face:
        raise ValueError(
            f"[objective] the teacher {path} is a run or a checkpoint, and a folder or a GGUF file is read. Export it: "
            f"cktrain export {path} OUT."
        )
    if saved.config.vocab_size != model.vocab_size:
        raise ValueError(
            f"[objective] the teacher {path} has another vocabulary: {saved.config.vocab_size:,} rows of logits, and the "
            f"model has {model.vocab_size:,}. {remedy}"
        )
    both = side is not None and saved.side is not None and side.has_tokenizer and saved.side.has_tokenizer
    if both and (found := tokenizer_differences(saved.side, side)):  # type: ignore[arg-type]
        raise ValueError(
            f"[objective] the teacher {path} has another vocabulary: its tokenizer differs in {', '.join(found)}. {remedy}"
        )
    most = saved.config.max_position_embeddings or 0
    if config.data.sequence_length > most:
        raise ValueError(
            f"[objective] the teacher {path} has {most:,} positions, and data.sequence_length is "
            f"{config.data.sequence_length:,}. Set it to {most} or less."
        )
    return saved


class Distillation:
    """Forward divergence from a teacher in this process."""

    measures: tuple[str, ...] = ("divergence", "cross_entropy")
    counted = "tokens"

    def __init__(self, config: ObjectiveConfig, teacher: Teacher | None) -> None:
        """`teacher`: None on ranks without the head."""
        self.temperature = config.said("temperature")
        self.alpha = config.said("alpha")
        self.teacher = teacher

    def prepare(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """As `Objective.prepare`: nothing."""
        return list(batches)

    def loss(self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool) -> LossSums:
        """As `Objective.loss`."""
        head, teacher = model.head, self.teacher
        assert head is not None and teacher is not None
        stream = teacher.stream(batch)
        dx = model.stream_gradient(slot) if train else None
        with slot.phase(head.role):
            divergence, entropy, count = head.divergence(
                x,
                dx,
                batch.labels.reshape(-1),
                lambda rows: teacher.head.logits(stream[rows]),
                self.temperature,
                self.alpha,
                slot,
            )
        loss = self.alpha * divergence + (1 - self.alpha) * entropy
        return LossSums(loss, count, count, (divergence, entropy))

    @staticmethod
    def plan(model: Transformer, x: np.ndarray, labels: np.ndarray, slot: Slot, train: bool) -> None:
        """As `Objective.plan`."""
        head = model.head
        assert head is not None
        with slot.phase(head.role):
            dx = model.stream_gradient(slot) if train else None
            head.plan_divergence(x, dx, labels.reshape(-1), slot)
