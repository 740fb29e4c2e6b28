"""A mismatch is named by all ranks of the operation, also by one that sees the end of the rank that met it first."""

from __future__ import annotations

import os
import socket
import time

import job
import pytest

from cktrain.comm import _engine
from cktrain.comm.mismatch import Place, show, told

GROUP, WHOLE, SYNCHRONOUS, ASYNCHRONOUS, MESSAGES = 7, 9, 0, 1, 2
FIFTY, FIFTY_ONE, BROADCAST = (1, 0, 0, -1, 50, 0), (1, 0, 0, -1, 51, 0), (4, 0, 0, 0, 50, 0)
HERE = Place(GROUP, WHOLE, SYNCHRONOUS, 12, None)


def seats() -> _engine.Mapping:
    fd = os.memfd_create("seats")
    nbytes = 3 * _engine.SEAT_BYTES
    os.ftruncate(fd, nbytes)
    mapping = _engine.Mapping(fd, nbytes)
    os.close(fd)
    return mapping


def world_of_one_node() -> list[_engine.World]:
    """Of three ranks, whose seats are in memory that all of them map."""
    memory = seats()
    return [_engine.World(rank, rank, 3, memory, spin=False) for rank in range(3)]


def test_what_a_rank_of_the_node_showed_stays_when_it_is_gone():
    worlds = world_of_one_node()
    assert told(worlds[0], HERE, FIFTY) == {}
    show(worlds[2], HERE, FIFTY_ONE, {1: FIFTY})
    show(worlds[2], HERE, BROADCAST, {1: FIFTY})  # what follows from the first one
    del worlds[2]
    assert told(worlds[0], HERE, FIFTY) == told(worlds[1], HERE, FIFTY) == {2: FIFTY_ONE}


def test_a_rank_that_calls_the_same_names_the_one_that_differs_from_both():
    first, second, _ = world_of_one_node()
    show(second, HERE, FIFTY, {2: FIFTY_ONE})
    assert told(first, HERE, FIFTY) == {2: FIFTY_ONE}
    assert told(first, HERE, BROADCAST) == {1: FIFTY, 2: FIFTY_ONE}


@pytest.mark.parametrize(
    ("place", "same"),
    [
        (HERE, True),
        (HERE._replace(number=13), False),
        (HERE._replace(lane=ASYNCHRONOUS), False),
        (HERE._replace(group=8, whole=10), False),
        (HERE._replace(group=8, number=13), True),  # another part of the same group, which counts for itself
    ],
)
def test_it_counts_for_the_operation_that_a_rank_waits_in(place, same):
    first, _, last = world_of_one_node()
    show(last, HERE, FIFTY_ONE, {1: FIFTY})
    assert told(first, place, FIFTY) == ({2: FIFTY_ONE} if same else {})


@pytest.mark.parametrize(("pair", "same"), [({0, 2}, True), ({0, 1}, False)])
def test_a_message_is_that_between_the_same_ranks(pair, same):
    first, _, last = world_of_one_node()
    send, recv = (6, 0, 0, 2, 3, 0), (7, 0, 0, 0, 5, 0)
    show(last, HERE._replace(lane=MESSAGES, pair=frozenset({0, 2})), recv, {0: (6, 0, 0, -1, 3, 0)})
    found = told(first, HERE._replace(lane=MESSAGES, pair=frozenset(pair)), send)
    assert found == ({2: recv} if same else {})


def test_it_comes_ahead_of_the_end_of_a_rank_on_another_host():
    """Also where a third rank's end, for which it is to blame, is seen before it."""
    worlds = [_engine.World(rank, rank, 3, seats(), spin=False) for rank in range(3)]
    ends = {rank: socket.socketpair() for rank in (1, 2)}
    for rank, (_, theirs) in ends.items():
        worlds[rank].watch([(theirs.fileno(), 0, 0, _engine.CONTROL)])
    show(worlds[2], HERE, FIFTY_ONE, {1: FIFTY})
    worlds[1].fail(2, "its process ended")
    for rank, (_, theirs) in ends.items():
        worlds[rank].stop()
        theirs.close()
    worlds[0].watch([(ours.fileno(), rank, rank, _engine.CONTROL) for rank, (ours, _) in ends.items()])
    until = time.monotonic() + 10 * job.PATIENCE
    while worlds[0].failure() is None and time.monotonic() < until:
        time.sleep(0)
    assert worlds[0].failure() == (2, "its process ended")
    assert told(worlds[0], HERE, FIFTY) == {2: FIFTY_ONE}
    worlds[0].stop()
    for ours, _ in ends.values():
        ours.close()


@pytest.mark.parametrize("how", ["", "async"])
def test_a_mismatch_is_named_though_its_header_does_not_come(how):
    """Nothing that the odd rank sends on the connections of the group reaches rank 0, which sees it end."""
    arguments = ["differ_unheard", "length", *([how] if how else [])]
    with job.start(3, "rank_program.py", *arguments, CKTRAIN_TEST_TRANSPORT="tcp") as ranks:
        ends = ranks.ends()
    mine, theirs = "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"
    for rank, end in enumerate(ends):
        odd = rank == 2
        assert end.status == 1, end.output
        assert f"[comm.tcp] rank {rank} called {theirs if odd else mine}, but " in end.output, end.output
        assert f"called {mine if odd else theirs}" in end.output, end.output
