"""Every schedule for 1 to 17 ranks, by the simulator: each contribution exactly once, in the promised order, without
deadlock under random interleavings, and with as many elements sent as the formula says.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest

from cktrain.comm.group import even_counts
from cktrain.comm.schedules import Schedule
from cktrain.comm.schedules.direct import (
    direct_all_gather,
    direct_all_reduce,
    direct_broadcast,
    direct_reduce_scatter,
    pairwise_all_to_all,
)
from cktrain.comm.schedules.logarithmic import (
    binomial_broadcast,
    chain_broadcast,
    dissemination_barrier,
    doubling_all_reduce,
    halving_doubling_all_reduce,
)
from cktrain.comm.schedules.ring import ring_all_gather, ring_all_reduce

sys.path.insert(0, str(Path(__file__).resolve().parent))
from simulator import simulate

RANKS = range(1, 18)


def begins_of(counts: list[int]) -> list[int]:
    return [0, *accumulate(counts)]


def uneven(n: int) -> list[int]:
    return [(7 * r + 3) % 5 for r in range(n)]


def all_reduce(make, n: int, count: int, seed: int) -> list[list[tuple[int, tuple[int, ...]]]]:
    arrays = [[(i, (r,)) for i in range(count)] for r in range(n)]
    return simulate(make, arrays, arrays, seed)


ALL_REDUCES = {
    "direct": lambda rank, n, count: direct_all_reduce(rank, begins_of(even_counts(count, n)), 2),
    "direct, one segment": lambda rank, n, count: direct_all_reduce(
        rank, begins_of(even_counts(count, n)), 1000
    ),
    "doubling": lambda rank, n, count: doubling_all_reduce(rank, n, count),
    "ring": lambda rank, n, count: ring_all_reduce(rank, begins_of(even_counts(count, n))),
    "halving-doubling": lambda rank, n, count: halving_doubling_all_reduce(rank, n, count),
}
CANONICAL = {"direct", "direct, one segment", "doubling"}


@pytest.mark.parametrize("name", ALL_REDUCES)
@pytest.mark.parametrize("n", RANKS)
def test_all_reduce(name, n):
    for count in (0, 1, n - 1, n, n + 1, 3 * n + 2) if n < 9 else (n + 1,):
        make = partial(ALL_REDUCES[name], n=n, count=count)
        results = [all_reduce(make, n, count, seed) for seed in range(2)]
        first = results[0][0]
        assert all(out == first for result in results for out in result), "ranks or runs differ"
        assert [index for index, _ in first] == list(range(count))
        for _, ranks in first:
            assert sorted(ranks) == list(range(n)), "each contribution exactly once"
            if name in CANONICAL:
                assert ranks == tuple(range(n)), "the order of ranks"


@pytest.mark.parametrize("n", RANKS)
def test_elements_sent_by_all_reduce(n):
    count = 16 * n
    sent = {name: [make(r, n, count).sent() for r in range(n)] for name, make in ALL_REDUCES.items()}
    assert sent["direct"] == sent["ring"] == [2 * count * (n - 1) // n] * n
    assert sent["doubling"] == [(n - 1) * count] * n
    m = 1 << (n.bit_length() - 1)
    if n == m:
        assert sent["halving-doubling"] == [2 * count * (n - 1) // n] * n
    else:
        assert max(sent["halving-doubling"]) <= 3 * count


@pytest.mark.parametrize("n", RANKS)
def test_rounds(n):
    log = math.ceil(math.log2(n))
    assert len(doubling_all_reduce(0, n, 4).rounds) == log + 2  # the copy before, the reduction after
    assert len(dissemination_barrier(0, n).rounds) == log
    assert max(len(binomial_broadcast(r, n, 4, 0).rounds) for r in range(n)) <= log
    assert len(chain_broadcast(n - 1, n, 40, 0, 4).rounds) == (10 if n > 1 else 0)


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("segment", [1, 3, 100])
def test_reduce_scatter(n, segment):
    begins = begins_of(uneven(n))
    given = [[(i, (r,)) for i in range(begins[-1])] for r in range(n)]
    taken = [[None] * (begins[r + 1] - begins[r]) for r in range(n)]
    before = [list(x) for x in given]
    out = simulate(lambda r: direct_reduce_scatter(r, begins, segment), given, taken, n)
    assert given == before
    for r in range(n):
        assert out[r] == [(i, tuple(range(n))) for i in range(begins[r], begins[r + 1])]
        sent = direct_reduce_scatter(r, begins, segment).sent()
        assert sent == begins[-1] - (begins[r + 1] - begins[r])


@pytest.mark.parametrize("make", [direct_all_gather, ring_all_gather])
@pytest.mark.parametrize("n", RANKS)
def test_all_gather(make, n):
    begins = begins_of(uneven(n))
    given = [[(i, (r,)) for i in range(begins[r], begins[r + 1])] for r in range(n)]
    out = simulate(lambda r: make(r, begins), given, [[None] * begins[-1] for _ in range(n)], n)
    assert all(x == [e for part in given for e in part] for x in out)
    for r in range(n):
        own, following = (begins[k + 1] - begins[k] for k in (r, (r + 1) % n))
        expected = (n - 1) * own if make is direct_all_gather else begins[-1] - following
        assert make(r, begins).sent() == (expected if n > 1 else 0)


BROADCASTS = {
    "direct": direct_broadcast,
    "binomial": binomial_broadcast,
    "chain": lambda rank, size, count, root: chain_broadcast(rank, size, count, root, 3),
}


@pytest.mark.parametrize("name", BROADCASTS)
@pytest.mark.parametrize("n", RANKS)
def test_broadcast(name, n):
    for root in {0, n // 2, n - 1}:
        for count in (0, 1, 10):
            arrays = [[(i, (r,)) for i in range(count)] for r in range(n)]
            make = partial(BROADCASTS[name], size=n, count=count, root=root)
            out = simulate(make, arrays, arrays, n)
            assert all(x == [(i, (root,)) for i in range(count)] for x in out)
            assert sum(BROADCASTS[name](r, n, count, root).sent() for r in range(n)) == (n - 1) * count


@pytest.mark.parametrize("n", RANKS)
def test_all_to_all(n):
    for part in (0, 1, 4):
        given = [[(i, (r,)) for i in range(n * part)] for r in range(n)]
        equal = begins_of([part] * n)
        make = partial(pairwise_all_to_all, begins=equal, received=equal)
        out = simulate(make, given, [[None] * (n * part) for _ in range(n)], n)
        for r in range(n):
            assert out[r] == [(r * part + i, (s,)) for s in range(n) for i in range(part)]


@pytest.mark.parametrize("n", RANKS)
def test_all_to_all_of_any_lengths(n):
    """Zeros among them; nobody but rank 0 sends; nobody sends."""
    uneven = [[(3 * s + 5 * r) % 4 for r in range(n)] for s in range(n)]
    from_one = [[2 * (s == 0) for _ in range(n)] for s in range(n)]
    for counts in (uneven, from_one, [[0] * n] * n):
        begins = [begins_of(counts[s]) for s in range(n)]
        received = [begins_of([counts[s][r] for s in range(n)]) for r in range(n)]
        given = [[(i, (s,)) for i in range(begins[s][-1])] for s in range(n)]
        make = lambda r, b=begins, c=received: pairwise_all_to_all(r, b[r], c[r])  # noqa: E731
        out = simulate(make, given, [[None] * received[r][-1] for r in range(n)], n)
        for r in range(n):
            assert out[r] == [(begins[s][r] + i, (s,)) for s in range(n) for i in range(counts[s][r])]
            assert make(r).sent() == begins[r][-1] - counts[r][r]


@pytest.mark.parametrize("n", RANKS)
def test_barrier_hears_of_everyone(n):
    """Simulated by hand: what a rank has heard grows with each round."""
    heard = [{r} for r in range(n)]
    schedules = [dissemination_barrier(r, n) for r in range(n)]
    for k in range(len(schedules[0].rounds)):
        sent = [set(h) for h in heard]
        for r, plan in enumerate(schedules):
            out, into = plan.rounds[k]
            assert (
                into.peer != r
                and schedules[into.peer].rounds[k][0].peer == r
                and out.count == into.count == 1
            )
            heard[r] |= sent[into.peer]
    assert all(h == set(range(n)) for h in heard)


def test_the_simulator_finds_mistakes():
    """A wrong peer, a missing receive, an order that is not the ranks'."""
    good = lambda r: doubling_all_reduce(r, 4, 3)  # noqa: E731

    def without_a_receive(r: int) -> Schedule:
        plan = good(r)
        return plan if r else Schedule((plan.rounds[0], plan.rounds[1][:1], *plan.rounds[2:]), plan.scratch)

    with pytest.raises(AssertionError):
        all_reduce(without_a_receive, 4, 3, 0)
    everyone_receives_first = lambda r: Schedule((good(r).rounds[1][1:], good(r).rounds[1][:1]), 12)  # noqa: E731
    with pytest.raises(AssertionError, match="deadlock"):
        all_reduce(everyone_receives_first, 4, 3, 0)
