"""TwoLevelGroup on made nodes of this machine: the conformance checks, what it falls back to, and faults in and between
nodes. Results are bitwise those of the order that it promises (conformance.NODES)."""

from __future__ import annotations

import re
import signal
import socket
import time

import job
import pytest
import test_faults as faults

# A rank's end is seen within 2 s; the rest is what a loaded machine adds (test_faults.py).
KILLED_S = 3.5


def start(nodes: str, *arguments: str, **environment: str) -> job.Ranks:
    ranks = sum(map(int, nodes.split(",")))
    return job.start(
        ranks,
        "rank_program.py",
        *arguments,
        CKTRAIN_TEST_TRANSPORT="auto",
        CKTRAIN_TEST_NODES=nodes,
        **environment,
    )


def test_conformance():
    with start("2,2", "run_conformance", CKTRAIN_TEST_LOG="INFO") as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * 4, ends
    assert "checks run: 20" in ends[0].output
    assert "transport: tcp (2 nodes with 2 ranks each, shm inside)" in ends[0].output


SHORT = (
    "check_reduce_scatter_counts",
    "check_all_gather_counts",
    "check_all_to_all_counts",
    "check_slices",
    "check_split",
)


@pytest.mark.parametrize("nodes", ["3,3", "2,1"])
def test_conformance_in_short(nodes):
    """Three ranks per node, and unequal nodes, which go flat and say why."""
    with start(nodes, "run_conformance", *SHORT, CKTRAIN_TEST_LOG="INFO") as started:
        ends = started.ends(100)
    assert [end.status for end in ends] == [0] * len(ends), ends
    assert f"checks run: {len(SHORT)}" in ends[0].output
    words = "2 nodes with 3 ranks each, shm inside" if nodes == "3,3" else "flat: the nodes have 2, 1 ranks"
    assert f"transport: tcp ({words}" in ends[0].output


def test_many_operations_back_to_back():
    with start("2,2,2", "stress", "300", "3") as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * len(ends), ends


def test_ranks_in_different_groups_are_told_so():
    """Also those whose engine has phases that follow the one in which their node stands still."""
    with start("2,2", "cross_groups", "async") as started:
        ends = started.ends(30)
    for rank, end in enumerate(ends):
        assert end.status == 0, end.output
        told = re.search(
            r"^async after (\S+) s: \[comm\.(tcp|shm)\] rank (\d) called .* but rank ", end.output
        )
        assert told is not None and float(told[1]) < 4.5 and int(told[3]) == rank, end.output
    words = "broadcast(float32[100], root=0) with async_=True on"
    assert f"rank 0 called {words} group world.0, but rank 3 called {words} another group" in ends[0].output


def test_splits_use_what_joins_their_ranks():
    with start("2,2", "kinds_of_splits") as started:
        ends = started.ends(60)
    assert [end.status for end in ends] == [0] * 4, [e.output for e in ends]
    for end in ends:
        assert "node: ShmGroup, rail: TcpGroup, reversed: TwoLevelGroup, three: " in end.output


@pytest.mark.parametrize("kind, lost", [("small", 0), ("async", 1), ("reduce_scatter", 3), ("all_to_all", 2)])
def test_killed_rank_is_named_by_all(kind, lost):
    """By those of its node, and of the other one."""
    with start("2,2", "repeat", kind) as ranks:
        for rank in range(4):
            ranks.wait_for("running", rank)
        since = ranks.signal(lost, signal.SIGKILL)
        ends = ranks.ends(20)
    for rank, end in enumerate(ends):
        if rank != lost:
            assert end.status == 1, end.output
            assert f": lost rank {lost} on {socket.gethostname()} (" in end.output, end.output
            assert end.at - since < KILLED_S + job.slack_s(), f"rank {rank} took {end.at - since:.1f} s"


@pytest.mark.parametrize(
    "difference, how, mine, theirs",
    [
        ("length", "", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"),
        ("length", "async", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"),
        ("operation", "large", "all_reduce(float32[100], sum)", "broadcast(float32[100], root=0)"),
        ("root", "large", "broadcast(float32[100], root=0)", "broadcast(float32[100], root=1)"),
        ("way", "async", "all_reduce(float32[100], sum)", "all_reduce(float32[100], mean)"),
    ],
)
def test_mismatch_is_named_on_all_sides(difference, mine, theirs, how):
    """One rank of the second node calls something else; `way`: what it calls goes flat."""
    with start("2,2", "differ", difference, *([how] if how else [])) as ranks:
        ends = ranks.ends(20)
    if how == "large":
        mine, theirs = (
            x.replace("[100]", "[200,000]").replace("[50]", "[100,000]").replace("[51]", "[100,001]")
            for x in (mine, theirs)
        )
    for rank, end in enumerate(ends):
        assert end.status == 1, end.output
        assert "AssertionError" not in end.output, end.output
        assert f"rank {rank} called {theirs if rank == 3 else mine}, but " in end.output, end.output
        assert f"called {mine if rank == 3 else theirs}" in end.output, end.output


@pytest.mark.parametrize("how", ["", "async"])
def test_a_count_of_one_pair_that_differs_is_named_by_all(how):
    with start("2,2", "differ", "lengths", *([how] if how else [])) as ranks:
        ends = ranks.ends(20)
    faults.assert_pair_is_named(ends, "tcp")


def test_all_to_all_where_another_rank_calls_something_else():
    with start("2,2", "differ", "exchange") as ranks:
        ends = ranks.ends(20)
    for rank, end in enumerate(ends):
        assert end.status == 1 and "AssertionError" not in end.output, end.output
        mine, theirs = "all_to_all(float32)", "all_reduce(float32[100], sum)"
        mine, theirs = (theirs, mine) if rank == 3 else (mine, theirs)
        assert f"rank {rank} called {mine}, but " in end.output and f" called {theirs}" in end.output, (
            end.output
        )


def test_a_mismatch_is_named_by_who_waits_for_a_later_operation():
    with start("2,2", "differ_before_a_later_one") as ranks:
        ends = ranks.ends(20)
    for rank, end in enumerate(ends):
        assert end.status == 1 and "AssertionError" not in end.output, end.output
        called = "all_reduce(float32[51], sum)" if rank == 3 else "all_reduce(float32[50], sum)"
        assert f"rank {rank} called {called}, but " in end.output, end.output


def test_stopped_rank_is_a_warning_and_a_timeout_that_name_it():
    with start("2,2", "wait_for_one", "sleep", "1", CKTRAIN_TEST_TIMEOUT="4") as ranks:
        ranks.wait_for("late", 3)
        ranks.signal(3, signal.SIGSTOP)
        began = time.monotonic()
        while any(p.poll() is None for p in ranks.processes[:3]) and time.monotonic() < began + 15:
            time.sleep(0.01)
        took = time.monotonic() - began
        ranks.signal(3, signal.SIGKILL)
        ends = ranks.ends(5)
    assert [end.status for end in ends] == [1, 1, 1, -signal.SIGKILL], ends
    assert 3.5 < took < 4 + job.slack_s()
    both = [end.output for end in ends[1:3]]
    assert all(
        re.search(r"waits in all_reduce\(float32\[10\], sum\) on group world for rank 3 on", x) for x in both
    )
    assert any("not complete after 4 s; ranks not heard from: 3" in x for x in both), both


def test_deadline_stretches_for_a_rank_at_work_in_the_other_node():
    """Rank 0 waits for rank 2, which waits in its node for rank 3, which computes."""
    with start("2,2", "wait_for_one", "compute", "3", CKTRAIN_TEST_TIMEOUT="1") as ranks:
        ends = ranks.ends(20)
    assert [end.status for end in ends] == [0] * 4, [e.output for e in ends]


def test_planned_exit():
    with start("2,2", "exit_with", "75") as ranks:
        ends = ranks.ends(20)
    assert [(end.status, end.output) for end in ends] == [(75, "")] * 4, ends


@pytest.mark.mpi
def test_conformance_between_nodes_over_mpi(run_ranks):
    came = run_ranks(
        4, "rank_program.py", "run_conformance", limit_s=200, CKTRAIN_TEST_TRANSPORT="auto",
        CKTRAIN_TEST_NODES="2,2", CKTRAIN_TEST_LOG="INFO",
    )  # fmt: skip
    assert came.status == 0, came.output
    assert "checks run: 20" in came.output
    assert "transport: mpi (2 nodes with 2 ranks each, shm inside)" in came.output
