"""How long a run is, in steps: from its epochs or its tokens, its training sequences and its global batch."""

from __future__ import annotations

import math

from cktrain.config import Config
from cktrain.config_types import LARGEST


def count_steps(config: Config, sequences: int, done: int = 0, examples: int = 0) -> Config:
    """The configuration with `run.steps`, where it has `run.epochs` or `run.tokens`.

    `sequences` are those of the training data; a run that goes on has `done` steps behind it, which consumed `examples`
    sequences. The last step may begin another epoch. Raises ValueError where the schedule does not fit into the steps.
    """
    run, batch, length = config.run, config.batch.resolved_global_batch_size, config.data.sequence_length
    if run.epochs is not None:
        wanted = math.ceil(min(run.epochs * sequences, float(LARGEST)))
        asked = f"run.epochs {run.epochs:g} of {sequences:,} sequences"
    elif run.tokens is not None:
        wanted = -(-run.tokens // length)
        asked = f"run.tokens {run.tokens:,}"
    else:
        return config
    steps = done + max(0, -(-(wanted - examples) // batch))
    if steps * batch * length >= 2**63:
        raise ValueError(f"[run] {asked} are more tokens than can be counted (2^63). Lower it.")
    config.schedule.check(steps)
    return config.model_copy(update={"run": run.model_copy(update={"steps": steps})})


def without_counted_steps(config: Config) -> Config:
    """The configuration as it was given: of epochs and tokens, from which the steps follow."""
    if config.run.epochs is None and config.run.tokens is None:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"steps": None})})


def length_in_words(config: Config, sequences: int) -> str:
    """The line that says what was counted, empty where the steps were given: of a configuration whose steps are counted."""
    run, batch, length = config.run, config.batch.resolved_global_batch_size, config.data.sequence_length
    if run.epochs is not None:
        return (
            f"epochs: {run.epochs:g} of {sequences:,} sequences of {length:,} tokens, {batch:,} in a step: "
            f"{run.total_steps:,} steps, {sequences / batch:,.1f} an epoch"
        )
    if run.tokens is not None and config.data.mixture is not None:  # whose parts have epochs of their own
        return f"tokens: {run.tokens:,}, {batch * length:,} in a step: {run.total_steps:,} steps"
    if run.tokens is not None:
        return (
            f"tokens: {run.tokens:,}, {batch * length:,} in a step: {run.total_steps:,} steps, "
            f"{run.total_steps * batch / sequences:,.2f} epochs"
        )
    return ""
