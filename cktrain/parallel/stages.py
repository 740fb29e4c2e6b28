"""Partition a model in pipeline stages of about equal cost: contiguous runs of blocks, at least one each.

The embedding stands with the first stage, the final norm and the head with the last; what they cost counts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from cktrain.models.transformer import Transformer

Partition = list[tuple[int, int]]
"""The blocks [start, stop) of each stage."""


def cut(blocks: Sequence[float], first: float, last: float, stages: int) -> Partition:
    """The blocks [start, stop) of each stage, so that the dearest stage is as cheap as can be.

    `blocks` are the costs of the blocks, in any unit; `first` and `last` what the first and last stage have besides.
    Of equally good cuts the one with fewer blocks on the later stages is taken. Raises ValueError for more stages than
    blocks.
    """
    count = len(blocks)
    if stages > count:
        raise ValueError(
            f"[parallel] pipeline {stages}: the model has {count} layers, and each stage needs at least one. "
            f"Set parallel.pipeline to {count} or less."
        )
    sums = [0.0]
    for cost in blocks:
        sums.append(sums[-1] + cost)

    @cache
    def best(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
        """(cost of the dearest stage from this one on, where each of them stops)."""
        if stage == stages - 1:
            return sums[count] - sums[start] + last, (count,)
        found: tuple[float, tuple[int, ...]] | None = None
        for stop in range(count - (stages - 1 - stage), start, -1):
            here = sums[stop] - sums[start] + (first if stage == 0 else 0.0)
            rest, stops = best(stage + 1, stop)
            if found is None or max(here, rest) < found[0]:
                found = max(here, rest), (stop, *stops)
        assert found is not None
        return found

    stops = best(0, 0)[1]
    return list(zip((0, *stops[:-1]), stops, strict=True))


def partition_by_flops(model: Transformer, stages: int, sequence_length: int) -> Partition:
    """The blocks of each stage of a whole model, by floating-point operations per token."""
    assert model.head is not None
    blocks = [block.flops(1, sequence_length) for block in model.blocks]
    return cut(blocks, 0.0, model.head.flops(1, sequence_length), stages)


def keep_stage(model: Transformer, blocks: tuple[int, int], stage: int, stages: int) -> None:
    """Leave in the model what one stage has. A tied weight stays on the first stage and on the last."""
    model.keep_blocks(model.blocks[slice(*blocks)], embedding=stage == 0, head=stage == stages - 1)
