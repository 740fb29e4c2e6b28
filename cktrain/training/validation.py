"""Validation: mean loss over tokens of the validation split, and bits per byte where the text's bytes are known.

Bits per byte compare models with different tokenizers: (sum of the losses in bits) / (bytes of the text that the
counted tokens encode), with the split's own bytes per token. They are unknown where a loss mask leaves tokens out.

A rank that cannot read its data, or cannot evaluate it, takes part in the sums all the same, and all raise one error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cktrain.agreed import Trouble, agree
from cktrain.config import Config
from cktrain.data.loader import Batch, ValidationBatches, empty_batch
from cktrain.data.shards import TokenSource
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.step_reduction import reduce_step
from cktrain.training.objective import NOTHING, LossSums, NextToken, Objective

log = logging.getLogger("cktrain")


@dataclass(frozen=True)
class ValidationResult:
    """`loss` in nats per token over `tokens` tokens, or per pair, by the run's objective."""

    loss: float
    tokens: int
    bits_per_byte: float | None
    data: str = ""
    """Fingerprint of the split's tokens; empty where nobody asked for it."""
    parts: dict[str, float] = field(default_factory=dict)
    """Of a mixture the loss of each part by its name."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Means of what the objective measures beside the loss."""


def combined(results: Mapping[str, ValidationResult], config: Config, data: str) -> ValidationResult:
    """What came out of all splits: of one what came out of it; of a mixture's parts the mean by the last weights.

    A part that these leave out is told and does not count. `data` is the fingerprint of all.
    """
    if len(results) == 1:
        (result,) = results.values()
        return replace(result, data=data)
    _, weights = config.data.shares_of_stages[-1]
    total = sum(weights)
    loss = sum(
        weight / total * result.loss
        for weight, result in zip(weights, results.values(), strict=True)
        if weight
    )
    parts = {name: result.loss for name, result in results.items()}
    names = next(iter(results.values())).measures
    measures = {
        name: sum(w / total * r.measures[name] for w, r in zip(weights, results.values(), strict=True) if w)
        for name in names
    }
    return ValidationResult(loss, sum(r.tokens for r in results.values()), None, data, parts, measures)


class Validator:
    """Evaluates the model on the validation split, of a mixture on that of each part, divided over the data ranks."""

    def __init__(
        self,
        config: Config,
        part: ModelShard,
        sources: Mapping[str, TokenSource],
        fingerprint: str,
        objective: Objective | None = None,
    ) -> None:
        """`objective`: None is next token."""
        self.objective: Objective = NextToken() if objective is None else objective
        self.config = config
        self.sources = sources
        self.fingerprint = fingerprint
        """Of the tokens of all splits."""
        self.ranks = part.ranks
        self.stage = part.stage
        self.asked_to_stop: Callable[[], bool] = lambda: False
        """Whether this rank is to end; all then leave the validation, which may take longer than what is left."""

    def run(self, batches: int | None = -1) -> ValidationResult | None:
        """Mean loss over `data.validation.batches` global batches of each split (None: the whole of it). Collective.

        None where a rank was asked to stop meanwhile, which all hear of after each global batch.

        Raises AgreedError on all ranks when one of them cannot read or evaluate its part.
        """
        wanted = self.config.data.validation.batches if batches == -1 else batches
        found: dict[str, ValidationResult] = {}
        for name, source in self.sources.items():
            result = self._evaluate(source, wanted)
            if result is None:
                return None
            found[name] = result
        return combined(found, self.config, self.fingerprint)

    def _evaluate(self, source: TokenSource, wanted: int | None) -> ValidationResult | None:
        """What `run` returns and raises, of one split."""
        sequence_length, micro_batch_size = (
            self.config.data.sequence_length,
            self.config.batch.resolved_micro_batch_size,
        )
        found, trouble, able = NOTHING, None, True
        split: Sequence[Batch] | ValidationBatches = ()
        try:
            split = ValidationBatches(
                source,
                sequence_length,
                micro_batch_size,
                self.config.batch.resolved_global_batch_size,
                batches=wanted,
                data_rank=self.ranks.data.rank,
                data_ranks=self.ranks.data.size,
                document_mask=self.config.data.document_mask,
                vocab_size=self.config.model.vocab_size,
            )
        except ValueError as error:  # too few tokens
            trouble = Trouble.of(error)
        for index in range(max(len(split), 1)):  # a rank without a split votes once
            if index % self._batches_between_votes == 0:
                vote = reduce_step(self.ranks, [], stop=self.asked_to_stop(), trouble=trouble is not None)
                if vote.trouble:
                    break
                if vote.stop:
                    return None
            if not able:
                continue
            try:
                batch = split[index]
            except Exception as error:
                trouble = trouble or Trouble.of(error)
                batch = empty_batch(micro_batch_size, sequence_length)
            try:
                (batch,) = self.objective.prepare(self.stage, [batch], "validation")
                here = self.stage.evaluate(batch, self.objective)
                found = here if found is NOTHING else LossSums.total([found, here])
            except Exception as error:
                if self.ranks.data.size < self.ranks.world.size:
                    raise  # ranks with other parts of the model may wait for this one inside it
                log.error("validation failed", exc_info=error)
                trouble = trouble or Trouble(f"validation: {type(error).__name__}: {error}", False)
                able = False
        names = self.objective.measures
        sums = reduce_step(self.ranks, [found], trouble=trouble is not None, measures=len(names))
        if sums.trouble:
            agreed = agree(self.ranks.world, trouble)
            assert agreed is not None
            raise agreed
        loss = sums.loss_sum / max(sums.count, 1)
        bits = None
        if isinstance(self.objective, NextToken) and source.text_bytes and not source.has_loss_mask:
            bits = loss / math.log(2) * (len(source) - 1) / source.text_bytes
        measures = dict(zip(names, sums.measures, strict=True))
        return ValidationResult(loss, sums.tokens, bits, measures=measures)

    @property
    def _batches_between_votes(self) -> int:
        """A run alone asks itself at each micro-batch, several ranks once in a global batch, as they do in training."""
        if self.ranks.world.size == 1:
            return 1
        batch = self.config.batch
        return max(
            batch.resolved_global_batch_size // (batch.resolved_micro_batch_size * self.ranks.data.size), 1
        )
