"""Few rounds, for what is short: their number grows with the logarithm of the ranks.

| | rounds | elements sent per rank |
|---|---|---|
| recursive doubling all_reduce | ceil(log2 n) | (n - 1)·S; canonical: the contributions travel, not sums |
| halving-doubling all_reduce | 2·log2 m (+ 2) | 2·S·(m - 1)/m (+ S), m = largest power of 2 up to n; own order |
| dissemination barrier | ceil(log2 n) | ceil(log2 n) |
| binomial broadcast | up to ceil(log2 n) | S per child |
| chain broadcast | chunks + n - 2 | S |

Bruck et al. 1997 (all-gather for any n), Thakur et al. 2005 (halving and doubling), Hensgen et al. 1988 (barrier).
"""

from __future__ import annotations

from cktrain.comm.schedules import IN, OUT, SCRATCH, Schedule, Step, copy, recv, reduce, schedule, send


def doubling_all_reduce(rank: int, size: int, count: int) -> Schedule:
    """All contributions to all ranks, the known ones doubling each round; then everyone reduces them in rank order.

    Row j of scratch is what rank (rank + j) mod n gave.
    """
    rounds: list[list[Step]] = [[copy(SCRATCH, 0, count, (IN, 0))]]
    known = 1
    while known < size:
        more = min(known, size - known)
        rounds.append(
            [
                send((rank - known) % size, SCRATCH, 0, more * count),
                recv((rank + known) % size, SCRATCH, known * count, more * count),
            ]
        )
        known += more
    rows = [(SCRATCH, (r - rank) % size * count) for r in range(size)]
    return schedule([*rounds, [reduce(OUT, 0, count, *rows)]], size * count)


def halving_doubling_all_reduce(rank: int, size: int, count: int) -> Schedule:
    """Rabenseifner's: vector halving with distance doubling, then back. Ranks beyond the power of two fold in."""
    power = 1 << (size.bit_length() - 1)
    extra = size - power
    rounds: list[list[Step]] = [[copy(OUT, 0, count, (IN, 0))]]
    if rank >= power:
        return schedule([[send(rank - power, IN, 0, count)], [recv(rank - power, OUT, 0, count)]])
    if rank < extra:
        rounds.append([recv(rank + power, SCRATCH, 0, count), reduce(OUT, 0, count, (OUT, 0), (SCRATCH, 0))])
    begin, end = 0, count
    back: list[list[Step]] = []
    distance = 1
    while distance < power:
        peer, middle = rank ^ distance, (begin + end) // 2
        low = not rank & distance
        keep, give = ((begin, middle), (middle, end)) if low else ((middle, end), (begin, middle))
        here, there = (OUT, keep[0]), (SCRATCH, 0)
        rounds.append(
            [
                send(peer, OUT, give[0], give[1] - give[0]),
                recv(peer, SCRATCH, 0, keep[1] - keep[0]),
                reduce(OUT, keep[0], keep[1] - keep[0], *((here, there) if low else (there, here))),
            ]
        )
        back.append(
            [send(peer, OUT, keep[0], keep[1] - keep[0]), recv(peer, OUT, give[0], give[1] - give[0])]
        )
        begin, end = keep
        distance *= 2
    rounds += reversed(back)
    if rank < extra:
        rounds.append([send(rank + power, OUT, 0, count)])
    return schedule(rounds, count)


def dissemination_barrier(rank: int, size: int) -> Schedule:
    """After round k a rank has heard, straight or through others, of the 2^(k+1) - 1 ranks before it."""
    rounds = []
    distance = 1
    while distance < size:
        rounds.append(
            [send((rank + distance) % size, SCRATCH, 0, 1), recv((rank - distance) % size, SCRATCH, 1, 1)]
        )
        distance *= 2
    return schedule(rounds, 2)


def binomial_broadcast(rank: int, size: int, count: int, root: int) -> Schedule:
    """In round k the ranks that have the array, counted from the root, send it 2^k further."""
    place = (rank - root) % size
    rounds: list[list[Step]] = []
    distance = 1
    while distance < size:
        if place < distance and place + distance < size:
            rounds.append([send((rank + distance) % size, IN if place == 0 else OUT, 0, count)])
        elif distance <= place < 2 * distance:
            rounds.append([recv((rank - distance) % size, OUT, 0, count)])
        distance *= 2
    return schedule(rounds)


def chain_broadcast(rank: int, size: int, count: int, root: int, chunk: int) -> Schedule:
    """Chunk by chunk from rank to rank: the next chunk comes in while the last one goes on."""
    place = (rank - root) % size
    chunks = [(at, min(chunk, count - at)) for at in range(0, count, chunk)]
    rounds: list[list[Step]] = []
    for k in range(len(chunks) + 1):
        steps = []
        if place > 0 and k < len(chunks):
            steps.append(recv((rank - 1) % size, OUT, *chunks[k]))
        if place < size - 1 and k > 0:
            steps.append(send((rank + 1) % size, IN if place == 0 else OUT, *chunks[k - 1]))
        rounds.append(steps)
    return schedule(rounds)
