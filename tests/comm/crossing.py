"""Ranks that use several groups in different orders, legally and not. Programs of rank_program.py."""

from __future__ import annotations

import sys
import time

import numpy as np
from footprint import say

from cktrain.comm import standstill
from cktrain.comm.errors import CollectiveMismatchError
from cktrain.comm.group import Group


def cross_groups(group: Group) -> None:
    """The last rank calls on another group than the others, or in another way; all wait for each other.

    In each way of argv with groups of its own, as none is to be used after an error.
    """
    odd, following = group.rank == group.size - 1, (group.rank + 1) % group.size
    payload = np.full(100, group.rank + 1, np.float32)
    for how in sys.argv[2:]:
        a, b = group.split(0), group.split(0)
        pair = group.split(0 if group.rank > 0 else 1)  # without rank 0
        calls = {
            "whole": lambda a=a, b=b: (b if odd else a).all_reduce(payload),
            "part": lambda a=a, pair=pair: (pair if odd else a).all_reduce(payload),
            "async": lambda a=a, b=b: (b if odd else a).broadcast(payload, async_=True).wait(),
            "lane": lambda a=a: a.all_reduce(payload, async_=odd).wait(),
            "message": lambda a=a, b=b: (b if odd else a).recv(payload, following),
        }
        group.barrier()
        began = time.monotonic()
        try:
            calls[how]()
        except CollectiveMismatchError as error:
            assert np.all(payload == group.rank + 1)
            say(f"{how} after {time.monotonic() - began:.1f} s: {error}")
        else:
            raise AssertionError("the difference was not seen")


def cross_legally(group: Group) -> None:
    """Groups used in another order on each rank, the last one late each time: nobody waits for ever."""
    standstill.AFTER_S = standstill.LAST_WORDS_S = 0.2
    n, last = 50_000, group.size - 1
    a, b, expected = group.split(0), group.split(0), sum(range(group.size))

    def late() -> None:
        if group.rank == last:
            time.sleep(1.4)  # twice what finding out takes here

    for turn in range(2):
        x, y, z = (np.full(n, group.rank, np.float32) for _ in range(3))
        # In flight on two groups, in either order; the first ranks wait in one, for one that is in the other.
        first, second = (a, b) if (group.rank + turn) % 2 else (b, a)
        if turn == 0:
            late()
        works = [first.all_reduce(x, async_=True), second.all_reduce(y, async_=True)]
        if group.rank == 1:
            works[turn].wait()
        group.all_reduce(z)
        for work in works:
            work.wait()
        assert np.all(x == expected) and np.all(y == expected) and np.all(z == expected)
        # A message whose sender waits in a group, for its receiver among others.
        sent = a.send(x, 1, async_=True) if group.rank == 0 else None
        b.barrier()
        if group.rank == 1:
            a.recv(z, 0)
            assert np.array_equal(z, x)
        if sent is not None:
            sent.wait()
    # The last rank's bytes come to rank 1 by the engine of rank 0, which itself waits for rank 1 in another group.
    large = np.full(1 << 19, group.rank, np.float32)
    passed_on = b.broadcast(large, last, async_=True) if group.rank == 0 else None
    late()
    if group.rank != 0:
        b.broadcast(large, last, async_=True).wait()
    a.barrier()
    if passed_on is not None:
        passed_on.wait()
    assert np.all(large == last)
    say("crossed")
