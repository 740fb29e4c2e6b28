"""Buckets: slices of the flat gradient buffer that travel together, and each data rank's piece of them.

The backward pass fills the buffer from its start, so bucket 0 is complete first. A bucket ends where a parameter ends,
and its pieces at whole cache lines. Pure arithmetic.

    flat buffer   | bucket 0              | bucket 1              | …
    data rank     | 0  | 1  | 2  | 3      | 0  | 1  | 2  | 3      | …       a piece each

For an optimizer that works on whole matrices no piece ends inside one: the ranks' shares of a bucket then differ, and
what a rank has less of one bucket it gets of the next. For one whose state is in blocks no piece ends inside a block.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from cktrain.comm.group import even_counts, offsets_of
from cktrain.memory.arena import CACHE_LINE
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore

BUCKET_BYTES = 25 << 20
_LINE = CACHE_LINE // 4
"""Elements of a cache line."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Bucket:
    """Elements [start, stop) of the flat buffers: the gradients of `params`."""

    start: int
    stop: int
    params: tuple[Param, ...]
    counts: tuple[int, ...]
    """Elements that belong to each data rank, in the order of ranks."""

    def piece(self, rank: int) -> Span:
        """The elements that belong to a data rank."""
        start = self.start + offsets_of(self.counts)[rank]
        return start, start + self.counts[rank]


def plan_buckets(
    params: ParamStore,
    ranks: int,
    alone: Collection[Param] = (),
    nbytes: int = BUCKET_BYTES,
    whole_matrices: bool = False,
    block: int = _LINE,
) -> list[Bucket]:
    """Cut the flat buffers in buckets of at least `nbytes`, the last one excepted.

    Parameters in `alone` are buckets of their own: their pieces then are the same wherever the parameter stands. With
    `whole_matrices` no parameter that is tagged `optimizer="matrix"` is cut. A parameter is cut at multiples of `block`
    elements, themselves a multiple of a cache line.
    """
    if not params.trainable:  # a stage that is frozen
        return []
    groups: list[list[Param]] = [[]]
    held = 0
    for param in params.trainable:
        if groups[-1] and (
            held * params.grad.itemsize >= nbytes or param in alone or groups[-1][-1] in alone
        ):
            groups.append([])
            held = 0
        groups[-1].append(param)
        held += param.size
    starts = [group[0].start for group in groups] + [params.size]
    buckets = []
    held_by = [0] * ranks
    for group, start, stop in zip(groups, starts[:-1], starts[1:], strict=True):
        counts = tuple(lines * _LINE for lines in even_counts((stop - start) // _LINE, ranks))
        ends = [param.start for param in group[1:]] + [stop]
        if block != _LINE:
            counts = _at_blocks(start, counts, [param.start for param in group], block)
        matrices = [
            (param.start, end)
            for param, end in zip(group, ends, strict=True)
            if param.spec.optimizer == "matrix"
        ]
        if whole_matrices and matrices:
            counts = _whole_counts(start, stop, matrices, held_by)
        held_by = [held + count for held, count in zip(held_by, counts, strict=True)]
        buckets.append(Bucket(start, stop, tuple(group), counts))
    return buckets


def _at_blocks(start: int, counts: tuple[int, ...], begins: list[int], block: int) -> tuple[int, ...]:
    """The counts of a bucket with each cut moved to the nearest block, of those that begin with its parameter."""
    stop = start + sum(counts)
    cuts = [start]
    for end in list(accumulate(counts))[:-1]:
        cut = start + end
        place = bisect_right(begins, cut)
        low, high = begins[place - 1], begins[place] if place < len(begins) else stop
        cuts.append(min(low + (cut - low + block // 2) // block * block, high))
    cuts.append(stop)
    return tuple(high - low for low, high in pairwise(cuts))


def _whole_counts(start: int, stop: int, matrices: list[Span], held_by: list[int]) -> tuple[int, ...]:
    """Each rank's elements of a bucket: what makes the ranks' totals equal, then moved to where no matrix is cut.

    `held_by` is what each rank has of the buckets before.
    """
    level = _water_level(held_by, stop - start)
    wanted, cuts = float(start), [start]
    for held in held_by[:-1]:
        wanted += max(0.0, level - held)
        cut = int(wanted - start) // _LINE * _LINE + start
        for low, high in matrices:
            if low < cut < high:
                cut = low if cut - low <= high - cut else high
        cuts.append(min(max(cut, cuts[-1]), stop))
    cuts.append(stop)
    return tuple(high - low for low, high in pairwise(cuts))


def _water_level(held_by: list[int], amount: int) -> float:
    """The height to which `amount` fills columns of these heights."""
    for count in range(len(held_by), 0, -1):
        lowest = sorted(held_by)[:count]
        level = (sum(lowest) + amount) / count
        if level >= lowest[-1]:
            return level
    raise AssertionError("no column can be filled")


def join(spans: Iterable[Span]) -> list[Span]:
    """The same elements in as few spans as possible; empty ones are dropped."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if start >= stop:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def overlap(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """What stands in both; each list has disjoint spans in order."""
    others = list(others)
    found = [(max(a, c), min(b, d)) for a, b in spans for c, d in others]
    return join(span for span in found if span[0] < span[1])


def without(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """The spans less the holes."""
    left = join(spans)
    for low, high in holes:
        left = join(part for a, b in left for part in ((a, min(b, low)), (max(a, high), b)))
    return left
