"""Epochs in steps: how long a run is follows from its training sequences and its global batch."""

from __future__ import annotations

import math

from cktrain.config import Config
from cktrain.config_types import LARGEST


def count_steps(config: Config, sequences: int, done: int = 0, examples: int = 0) -> Config:
    """The configuration with `run.steps`, where it has `run.epochs`.

    `sequences` are those of the training data; a run that goes on has `done` steps behind it, which consumed `examples`
    sequences. The last step may begin another epoch. Raises ValueError where the schedule does not fit into the steps.
    """
    epochs, batch = config.run.epochs, config.batch.global_batch_size
    if epochs is None:
        return config
    left = math.ceil(min(epochs * sequences, float(LARGEST))) - examples
    steps = done + max(0, -(-left // batch))
    if steps * batch * config.data.sequence_length >= 2**63:
        raise ValueError(
            f"[run] run.epochs {epochs:g} of {sequences:,} sequences are more tokens than can be counted (2^63). Lower it."
        )
    config.schedule.check(steps)
    return config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})


def epochs_in_words(config: Config, sequences: int) -> str:
    """The line that says what the epochs are: of a configuration whose steps are counted."""
    batch = config.batch.global_batch_size
    return (
        f"epochs: {config.run.epochs:g} of {sequences:,} sequences of {config.data.sequence_length:,} tokens, {batch:,} in "
        f"a step: {config.run.total_steps:,} steps, {sequences / batch:,.1f} an epoch"
    )
