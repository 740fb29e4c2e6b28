"""Every rank straight to every other: one hop, bandwidth-optimal, canonical, n - 1 messages at a time.

| | rounds | elements sent per rank |
|---|---|---|
| reduce_scatter | segments | S - own part |
| all_gather | 1 | (n - 1)·own part |
| all_reduce | segments + 1 | reduce_scatter + all_gather = 2·S·(n - 1)/n |
| all_to_all | n (pairwise) | S - own part |
| broadcast | 1 | root: (n - 1)·S |
"""

from __future__ import annotations

from collections.abc import Sequence

from cktrain.comm.schedules import IN, OUT, SCRATCH, Schedule, Step, copy, recv, reduce, schedule, send


def direct_reduce_scatter(rank: int, begins: Sequence[int], segment: int, out_at: int = 0) -> Schedule:
    """The part of `rank` of the reduction over `in`, to out[out_at:]."""
    rounds = [_reduce_segment(rank, begins, s, segment, out_at) for s in range(_segments(begins, segment))]
    return schedule(rounds, (len(begins) - 1) * segment)


def direct_all_gather(rank: int, begins: Sequence[int]) -> Schedule:
    """in, this rank's part, to all; their parts to out."""
    n, own = len(begins) - 1, begins[rank + 1] - begins[rank]
    steps = [send((rank + d) % n, IN, 0, own) for d in range(1, n)]
    for d in range(1, n):
        peer = (rank - d) % n
        steps.append(recv(peer, OUT, begins[peer], begins[peer + 1] - begins[peer]))
    return schedule([[*steps, copy(OUT, begins[rank], own, (IN, 0))]])


def direct_all_reduce(rank: int, begins: Sequence[int], segment: int) -> Schedule:
    """Reduce-scatter and all-gather of the one array: a segment's result travels while the next one is reduced."""
    n = len(begins) - 1
    rounds: list[list[Step]] = []
    count = _segments(begins, segment)
    for s in range(count + 1):
        steps = _reduce_segment(rank, begins, s, segment, begins[rank]) if s < count else []
        local = [step for step in steps if step.peer < 0]
        steps = [step for step in steps if step.peer >= 0]
        if s:
            at, length = _part(begins, rank, s - 1, segment)
            steps += [send((rank + d) % n, OUT, at, length) for d in range(1, n)]
            for d in range(1, n):
                peer = (rank - d) % n
                steps.append(recv(peer, OUT, *_part(begins, peer, s - 1, segment)))
        rounds.append(steps + local)
    return schedule(rounds, n * segment)


def direct_broadcast(rank: int, size: int, count: int, root: int) -> Schedule:
    """The root to everyone."""
    if rank != root:
        return schedule([[recv(root, OUT, 0, count)]])
    return schedule([[send((root + d) % size, IN, 0, count) for d in range(1, size)]])


def pairwise_all_to_all(rank: int, begins: Sequence[int], received: Sequence[int]) -> Schedule:
    """Round d exchanges with the ranks d before and behind: every rank talks to two others at a time.

    `begins` are those of in, `received` those of out.
    """
    n = len(begins) - 1
    rounds = [[copy(OUT, received[rank], begins[rank + 1] - begins[rank], (IN, begins[rank]))]]
    for d in range(1, n):
        to, source = (rank + d) % n, (rank - d) % n
        rounds.append(
            [
                send(to, IN, begins[to], begins[to + 1] - begins[to]),
                recv(source, OUT, received[source], received[source + 1] - received[source]),
            ]
        )
    return schedule(rounds)


def _segments(begins: Sequence[int], segment: int) -> int:
    longest = max(begins[r + 1] - begins[r] for r in range(len(begins) - 1))
    return -(-longest // segment)


def _part(begins: Sequence[int], rank: int, s: int, segment: int) -> tuple[int, int]:
    """Where segment s of the rank's part begins, and its length."""
    at = min(begins[rank] + s * segment, begins[rank + 1])
    return at, min(segment, begins[rank + 1] - at)


def _reduce_segment(rank: int, begins: Sequence[int], s: int, segment: int, out_at: int) -> list[Step]:
    n = len(begins) - 1
    at, length = _part(begins, rank, s, segment)
    steps = [send((rank + d) % n, IN, *_part(begins, (rank + d) % n, s, segment)) for d in range(1, n)]
    steps += [recv((rank - d) % n, SCRATCH, (rank - d) % n * segment, length) for d in range(1, n)]
    sources = [(IN, at) if r == rank else (SCRATCH, r * segment) for r in range(n)]
    return [*steps, reduce(OUT, out_at + at - begins[rank], length, *sources)]
