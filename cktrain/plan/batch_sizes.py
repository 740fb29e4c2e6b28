"""The sizes of a run's batches, once its ranks and their memory are known: `micro_batch_size: auto` and accumulation.

auto is the largest size that divides a data rank's share of the global batch, that fits, and that has no more than
ROWS_AT_ONCE tokens. It follows from the configuration, the layout and the memory alone: the same run is the same again.
"""

from __future__ import annotations

from collections.abc import Iterator

from cktrain.config import Config
from cktrain.config_types import AUTO
from cktrain.parallel.mesh import Mesh
from cktrain.plan.plan import Machine, gib, node_bytes

ROWS_AT_ONCE = 2048
"""Tokens of a micro-batch. One thread needs no more than 512 to be as fast as with 4,096
(docs/benchmarks/micro_batch_zen3_2026-12-01.md); four times as many leave work for more threads; more only take memory."""
PER_STAGE = 4
"""Micro-batches for each stage of a pipeline, where the batch has them: the bubble is a fifth of the time at most."""


def resolve_batch(
    config: Config, mesh: Mesh, precision: str, machine: Machine, before: Config | None = None
) -> tuple[Config, str]:
    """The configuration with both sizes as numbers, and what to say of the choice, "" where both were given.

    `config.model` is resolved; `before` is the configuration of the run that goes on, whose micro-batch is kept where the
    batch still has it. Raises ValueError where the data ranks do not divide the global batch.
    """
    batch = config.batch
    if batch.gradient_accumulation_steps is not None:
        config = with_accumulation(config, mesh.data)
        words = (
            f"batch: {config.batch.global_batch_size:,} sequences a step: micro_batch_size {batch.micro_batch_size:,} x "
            f"gradient_accumulation_steps {batch.gradient_accumulation_steps:,} x data ranks {mesh.data:,}"
        )
        return config, words
    if batch.micro_batch_size != AUTO:
        return config, ""
    total, length = batch.resolved_global_batch_size, config.data.sequence_length
    if total % mesh.data:
        raise ValueError(
            f"[parallel] global_batch_size {total} is not a multiple of {mesh.data} data ranks. Change one of them."
        )
    sizes = list(_sizes(total // mesh.data, length, mesh))
    kept = None if before is None else _kept(before, total, length, mesh)
    if kept is not None:
        return with_sizes(config, kept, total), f"batch: micro_batch_size auto: {kept:,}, as the run began"
    if config.run.deterministic:
        words = "batch: micro_batch_size auto: 1, since run.deterministic wants the same bits with any memory"
        return with_sizes(config, 1, total), words
    for size in sizes:
        chosen = with_sizes(config, size, total)
        needed = node_bytes(chosen, mesh, precision, machine)
        if needed <= machine.node_bytes or size == sizes[-1]:
            break
    larger = sizes[0] if size != sizes[0] else None
    why = "" if larger is None else f"; {larger:,} would be of use and do not fit"
    words = (
        f"batch: micro_batch_size auto: {size:,} of {total:,} sequences, {size * length:,} tokens at once, for "
        f"{gib(needed)} of {gib(machine.node_bytes)}{why}"
    )
    return chosen, words


def with_accumulation(config: Config, data_ranks: int) -> Config:
    """The configuration with the global batch that its accumulation makes on so many data ranks, where it has one."""
    steps = config.batch.gradient_accumulation_steps
    if steps is None:
        return config
    micro = config.batch.resolved_micro_batch_size
    return with_sizes(config, micro, micro * steps * data_ranks)


def with_sizes(config: Config, micro: int, total: int) -> Config:
    """The configuration with these numbers in its batch."""
    sizes = {"micro_batch_size": micro, "global_batch_size": total, "gradient_accumulation_steps": None}
    return config.model_copy(update={"batch": config.batch.model_copy(update=sizes)})


def _sizes(share: int, length: int, mesh: Mesh) -> Iterator[int]:
    """What divides a data rank's share and is of use, the largest first; 1 is always there."""
    fewest = min(share, PER_STAGE * mesh.pipeline if mesh.pipeline > 1 else 1)
    for size in range(min(share // fewest, max(1, ROWS_AT_ONCE // length)), 0, -1):
        if size == 1 or (share % size == 0 and size * length % mesh.tensor == 0):
            yield size


def _kept(before: Config, total: int, length: int, mesh: Mesh) -> int | None:
    micro = before.batch.micro_batch_size
    if not isinstance(micro, int) or total % (micro * mesh.data):
        return None
    same = (before.batch.global_batch_size, before.data.sequence_length) == (total, length)
    return micro if same else None
