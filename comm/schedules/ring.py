"""Round the ring: each rank talks to its two neighbours only. Reductions in an order of their own.

| | rounds | elements sent per rank |
|---|---|---|
| all_gather | n - 1 | S - the next rank's part |
| all_reduce | 2·(n - 1) | 2·S·(n - 1)/n |

Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations". Block b of the sum is
((x[b+1] + x[b+2]) + ...) + x[b], ranks modulo n.
"""

from __future__ import annotations

from collections.abc import Sequence

from cktrain.comm.schedules import IN, OUT, SCRATCH, Schedule, Step, copy, recv, reduce, schedule, send


def ring_all_gather(rank: int, begins: Sequence[int]) -> Schedule:
    """in, this rank's part, round the ring; all parts to out."""
    own = begins[rank + 1] - begins[rank]
    return schedule([[copy(OUT, begins[rank], own, (IN, 0))], *_gather_rounds(rank, begins)])


def ring_all_reduce(rank: int, begins: Sequence[int]) -> Schedule:
    """Partial sums go round, then the results do."""
    n = len(begins) - 1
    rounds: list[list[Step]] = [[copy(OUT, 0, begins[n], (IN, 0))]]
    longest = max(begins[r + 1] - begins[r] for r in range(n))
    for k in range(n - 1):
        out, got = (rank - 1 - k) % n, (rank - 2 - k) % n
        at, length = begins[got], begins[got + 1] - begins[got]
        rounds.append(
            [
                send((rank + 1) % n, OUT, begins[out], begins[out + 1] - begins[out]),
                recv((rank - 1) % n, SCRATCH, 0, length),
                reduce(OUT, at, length, (SCRATCH, 0), (OUT, at)),
            ]
        )
    return schedule([*rounds, *_gather_rounds(rank, begins)], longest)


def _gather_rounds(rank: int, begins: Sequence[int]) -> list[list[Step]]:
    """Rank r begins with block r complete."""
    n = len(begins) - 1
    rounds = []
    for k in range(n - 1):
        out, got = (rank - k) % n, (rank - 1 - k) % n
        rounds.append(
            [
                send((rank + 1) % n, OUT, begins[out], begins[out + 1] - begins[out]),
                recv((rank - 1) % n, OUT, begins[got], begins[got + 1] - begins[got]),
            ]
        )
    return rounds
