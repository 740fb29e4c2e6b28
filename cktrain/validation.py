"""Validation: mean loss over tokens of the validation split, and bits per byte where the text's bytes are known.

Bits per byte compare models with different tokenizers: (sum of the losses in bits) / (bytes of the text that the
counted tokens encode), with the split's own bytes per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.data.loader import validation_batches
from cktrain.data.shards import TokenSource
from cktrain.models.transformer import Transformer
from cktrain.nn.params import FlatParams
from cktrain.parallel.data import DataParallel


@dataclass(frozen=True)
class ValidationResult:
    """`loss` in nats per token over `tokens` tokens."""

    loss: float
    tokens: int
    bits_per_byte: float | None


class Validator:
    """Evaluates the model on the validation split, divided over the data ranks."""

    def __init__(
        self, config: Config, model: Transformer, params: FlatParams, source: TokenSource, group: Group
    ) -> None:
        self.config = config
        self.model = model
        self.source = source
        self.group = group
        self.data_parallel = DataParallel(group, params)
        size = config.batch.micro_batch_size
        self.slot = model.plan(size, config.data.sequence_length, train=False).allocate()[0]

    def run(self, batches: int | None = -1) -> ValidationResult:
        """Mean loss over `data.validation.batches` global batches (None: the whole split). Collective."""
        wanted = self.config.data.validation.batches if batches == -1 else batches
        loss_sum, count = 0.0, 0
        for batch in validation_batches(
            self.source,
            self.config.data.sequence_length,
            self.config.batch.micro_batch_size,
            self.config.batch.global_batch_size,
            batches=wanted,
            data_rank=self.group.rank,
            data_ranks=self.group.size,
            document_mask=self.config.data.document_mask,
        ):
            self.slot.describe(batch.positions, batch.first)
            loss, valid = self.model.forward_loss(batch.tokens, batch.targets, self.slot, train=False)
            loss_sum += loss
            count += valid
        sums = self.data_parallel.reduce_sums(loss_sum, count)
        loss = sums.loss_sum / max(sums.tokens, 1)
        bits = None
        if self.source.text_bytes:
            bits = loss / math.log(2) * (len(self.source) - 1) / self.source.text_bytes
        return ValidationResult(loss, sums.tokens, bits)
