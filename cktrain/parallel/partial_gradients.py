"""Partial gradients: of parameters that stand on several ranks of one model replica, each with a part of the gradient.

Norm weights, position tables and biases after a divided product stand on every tensor rank; key/value heads on several,
where there are fewer heads than ranks; a tied embedding on the first and the last stage. Each of these ranks adds to
its copy what it computed of the gradient, so the gradient is the sum over the copies, and the copies stay equal bit by
bit, since each is updated with the same sum. In the gradient's norm and in a checkpoint an element counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.comm.group import Group
from cktrain.memory.arena import Arena
from cktrain.memory.param_store import ParamStore
from cktrain.parallel.buckets import Span, overlap
from cktrain.parallel.comm_timer import CommTimer


@dataclass(frozen=True, eq=False)
class PartialSpan:
    """Elements [start, stop) of the flat buffers, which stand on each rank of `group`; its rank 0 counts them."""

    group: Group
    start: int
    stop: int


class PartialGradients:
    """All spans of one rank whose gradients are partial."""

    def __init__(
        self,
        params: ParamStore,
        partial: Sequence[PartialSpan],
        summed: Sequence[Span],
        comm_timer: CommTimer,
    ) -> None:
        """`summed` is where the data group's sums stand; it must be the same for all copies."""
        self.params = params
        self.spans = partial
        self.comm_timer = comm_timer
        self.uncounted = sorted((p.start, p.stop) for p in partial if p.group.rank != 0)
        """What another rank counts and saves."""
        self._by_group: list[tuple[Group, list[Span], np.ndarray]] = []
        for group in dict.fromkeys(p.group for p in partial):
            spans = overlap(sorted((p.start, p.stop) for p in partial if p.group is group), summed)
            size, f32 = sum(stop - start for start, stop in spans), params.numerics.master_dtype
            packed = Arena("partial gradients", size * f32.itemsize).array((size,), f32)
            self._by_group.append((group, spans, packed))

    @property
    def messages(self) -> list[tuple[Group, int]]:
        """The group and the bytes of each message of a step."""
        return [(group, packed.nbytes) for group, _, packed in self._by_group]

    def sum(self) -> None:
        """Sum the gradients of the copies, in place: one message per group (collective over each)."""
        grad = self.params.grad
        for group, spans, packed in self._by_group:
            at = 0
            for start, stop in spans:
                packed[at : at + stop - start] = grad[start:stop]
                at += stop - start
            with self.comm_timer:
                group.all_reduce(packed, "sum")
            at = 0
            for start, stop in spans:
                grad[start:stop] = packed[at : at + stop - start]
                at += stop - start
