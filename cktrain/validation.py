"""Validation: mean loss over tokens of the validation split, and bits per byte where the text's bytes are known.

Bits per byte compare models with different tokenizers: (sum of the losses in bits) / (bytes of the text that the
counted tokens encode), with the split's own bytes per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cktrain.config import Config
from cktrain.data.loader import validation_batches
from cktrain.data.shards import TokenSource
from cktrain.parallel.part import Part
from cktrain.parallel.sums import reduce_sums


@dataclass(frozen=True)
class ValidationResult:
    """`loss` in nats per token over `tokens` tokens."""

    loss: float
    tokens: int
    bits_per_byte: float | None


class Validator:
    """Evaluates the model on the validation split, divided over the data ranks."""

    def __init__(self, config: Config, part: Part, source: TokenSource) -> None:
        self.config = config
        self.source = source
        self.ranks = part.ranks
        self.stage = part.stage

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
            data_rank=self.ranks.data.rank,
            data_ranks=self.ranks.data.size,
            document_mask=self.config.data.document_mask,
        ):
            loss, valid = self.stage.evaluate(batch)
            loss_sum += loss
            count += valid
        sums = reduce_sums(self.ranks, [loss_sum], count)
        loss = sums.loss_sum / max(sums.tokens, 1)
        bits = None
        if self.source.text_bytes:
            bits = loss / math.log(2) * (len(self.source) - 1) / self.source.text_bytes
        return ValidationResult(loss, sums.tokens, bits)
